"""Tokens of a pretrained video model: what stands in the places of `ContextTokens`, `FutureLatents` and `History`.

The present image is the first latent frame, at noise level 0; futures are the latent frames after it. Positions are
latent frames, and rows and columns of patches. Text is raw features of the model's text encoder, and latents are raw
patches: the model embeds both (`nn.backbones.video_dit`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from wamkit.config import ConfigError, check_multiple
from wamkit.nn.attention_mask import FUTURE, TEXT, visibility
from wamkit.nn.autoencoders.base import FutureCodec
from wamkit.nn.backbones.base import Cache, Tokens
from wamkit.nn.backbones.video_dit import Keys
from wamkit.nn.backbones.video_model import VideoModel, video_model
from wamkit.nn.backbones.wan import grid_positions, patches, unpatched
from wamkit.nn.encoders import IMAGE_ENCODER
from wamkit.nn.flow import row_noise
from wamkit.nn.heads import ActionChunk, Stream
from wamkit.nn.history import Moments
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.options import BackboneConfig
from wamkit.nn.tokens import IMAGE, PROPRIO, canvas, grid_of, noisy_state, uncanvas, view_cells
from wamkit.types import Batch, Spec, WamkitError


class VideoContext(nn.Module):
    """The encoder of observations: the present image's latents, the robot's state, and the instruction.

    Where the video model has an image branch, CLIP's features of the image stand before those of the instruction.

    width: D, of the state's token.   proprio_noise: as in `ContextTokens`.
    Raises ConfigError for images that are no whole number of cells.
    """

    def __init__(self, spec: Spec, config: BackboneConfig, width: int, proprio_noise: float = 0.0):
        super().__init__()
        if spec.past_offsets:
            raise ConfigError("a pretrained video model reads window.past_offsets moment by moment: add chunk_causal")
        self.model = model = video_model(config)
        self.spec, self.config, self.proprio_noise = spec, config, proprio_noise
        self.rows_columns = rows, columns = grid_of(spec, model.stride)
        self.cells, self.texts = rows * columns, model.image_tokens + config.text_length + (config.state == "text")
        self.length = self.cells + self.texts + (config.state == "token")
        if config.state in ("token", "text"):
            size = model.text_dim if config.state == "text" else width
            self.proprio = projection(spec.proprio_dim, size, config)
        self.register_buffer("place", grid_positions(torch.zeros(1), rows, columns), persistent=False)
        self.register_buffer("outside", torch.tensor([[0.0, -1.0, -1.0]]), persistent=False)

    def forward(self, batch: Batch, normalizer: Normalizer, generator: torch.Generator | None = None) -> list[Tokens]:
        """The context, `length` tokens: the present image's `cells` first, then the state and the text.

        Noise is added to the state only where a generator is given, as training does.
        """
        kept = batch.features
        z = kept["present"] if "present" in kept else self.latents(batch.obs)
        clip = kept.get("clip")
        if clip is None:
            clip = self.model.image_features(batch.obs)
        return self._moment(z, clip, batch.proprio, batch.text, normalizer, generator)

    def moments(self, batch: Batch, normalizer: Normalizer, generator: torch.Generator | None = None) -> list[Tokens]:
        """Every moment by itself, in B * M rows: the present first, then the past unless it is remembered.

        All are read with the present instruction, as LingBot-VA and DreamZero do.
        """
        images, proprio = batch.obs.unsqueeze(1), batch.proprio.unsqueeze(1)
        if batch.memory is None:
            images, proprio = torch.cat([images, batch.past], 1), torch.cat([proprio, batch.past_proprio], 1)
        texts = [text for text in batch.text for _ in range(images.shape[1])]
        every = images.flatten(0, 1)
        z, clip = self.latents(every), self.model.image_features(every)
        return self._moment(z, clip, proprio.flatten(0, 1), texts, normalizer, generator)

    def keep_texts(self, folder: Path) -> None:
        """Keeps features of instructions on disk, below `folder`, from run to run."""
        prompts = self.model.prompts(self.config.text_length, self.config.prompt)
        prompts.keep_in(folder, self.model.digest("text_encoder") + self.model.digest("tokenizer"))

    def latents(self, images: UInt8[Tensor, "B V 3 H W"]) -> Float[Tensor, "B L c"]:
        """Patches of the latents of single images."""
        return patches(self.model.autoencoder.encode(canvas(images).unsqueeze(2)), self.model.patch)

    def _moment(
        self,
        z_BLc: Tensor,
        clip: Tensor | None,
        proprio: Tensor,
        texts: Sequence[str],
        normalizer: Normalizer,
        generator: torch.Generator | None,
    ) -> list[Tokens]:
        words = self.model.prompts(self.config.text_length, self.config.prompt)(texts, z_BLc.device)
        image = Tokens(z_BLc, IMAGE, self.place)
        if clip is not None:
            size = max(clip.shape[2], words.shape[2])
            words = torch.cat([F.pad(x, (0, size - x.shape[2])) for x in (clip, words)], 1)
        if self.config.state in ("action", "none"):
            return [image, Tokens(words, TEXT)]
        state = self.proprio(noisy_state(proprio, normalizer, self.proprio_noise, generator)).unsqueeze(1)
        if self.config.state == "text":
            return [image, Tokens(torch.cat([words, state.to(words.dtype)], 1), TEXT)]
        return [image, Tokens(state, PROPRIO, self.outside), Tokens(words, TEXT)]


def projection(inputs: int, outputs: int, config: BackboneConfig) -> nn.Module:
    """A linear map, or two with a GELU between them where there is a hidden layer; with a ReLU, as GR00T has it."""
    if not (hidden := config.projector):
        return nn.Linear(inputs, outputs)
    between = nn.ReLU() if config.action_encoder == "groot" else nn.GELU(approximate="tanh")
    return nn.Sequential(nn.Linear(inputs, hidden), between, nn.Linear(hidden, outputs))


class _Velocities(Stream):
    """A stream whose outputs are velocities already: the video model has the head."""

    def velocity(self, y_BLc: Float[Tensor, "B L c"]) -> Float[Tensor, "B L c"]:
        """Outputs of the backbone, in float32."""
        return y_BLc.float()


class VideoLatents(FutureCodec):
    """Future frames as latent frames of a pretrained autoencoder: `cells` tokens of `channels` values each.

    Raises ConfigError where the number of frames is no multiple of what a latent frame holds.
    """

    pretrained = True

    def __init__(self, spec: Spec, config: BackboneConfig):
        super().__init__()
        self._model = model = video_model(config)
        self.spec, count, self._held = spec, len(spec.frame_offsets), model.frames_a_latent
        if not count or count % self._held:
            near = [n for n in (count // self._held * self._held, (count // self._held + 1) * self._held) if n]
            raise ConfigError(
                f"window.frame_offsets has {count} frames, and a latent frame of {config.path} holds {self._held}: "
                f"{' or '.join(map(str, near))} would fit"
            )
        self.frames, (rows, columns) = count // self._held, grid_of(spec, model.stride)
        self.grid = (self.frames // model.patch[0], rows, columns)
        self._now = rows * columns  # patches of the present image, which come first
        self.cells, self.channels = self.grid[0] * self._now, model.patch_channels
        place = grid_positions(torch.arange(1, self.grid[0] + 1), rows, columns)
        self.stream = _Velocities(FUTURE, self.channels, place)

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, " B"]:
        raise WamkitError("a pretrained autoencoder is not trained")

    def encode(self, batch: Batch) -> Float[Tensor, "B L c"]:
        return self._latents(batch)[:, self._now :]

    def digest(self) -> str:
        """SHA-256 of the files of the autoencoder, and of CLIP where it is read too."""
        return self._model.digest("vae") + (self._model.digest(IMAGE_ENCODER) if self._model.image_tokens else "")

    def features(self, batch: Batch) -> dict[str, Tensor]:
        z, clip = self._latents(batch), self._model.image_features(batch.obs)
        found = {"latents": z[:, self._now :], "present": z[:, : self._now]}
        return found if clip is None else found | {"clip": clip}

    def _latents(self, batch: Batch) -> Float[Tensor, "B L c"]:
        """Patches of the present image, then of the future."""
        clip = torch.cat([canvas(batch.obs).unsqueeze(1), canvas(batch.future)], 1).transpose(1, 2)
        return patches(self._model.autoencoder.encode(clip), self._model.patch)

    def targets(self, batch: Batch) -> Float[Tensor, "B L c"]:
        """The latents, from `batch.features` if they were computed ahead, with zeros where there is no evidence."""
        z = batch.features["latents"] if batch.features else self.encode(batch)
        return z.masked_fill(~self.valid(batch), 0)

    def frames_of(self, z_BLc: Float[Tensor, "B L c"], obs: UInt8[Tensor, "B V 3 H W"]) -> Float[Tensor, "B F 3 H W"]:
        """Latents to frames on the canvas in about [-1, 1], without gradients, given the current ones."""
        coder = self._model.autoencoder
        z = torch.cat([coder.encode(canvas(obs).unsqueeze(2)), unpatched(z_BLc, self.grid, self._model.patch)], 2)
        return coder.decode(z)[:, :, 1:].transpose(1, 2)

    def decode(self, z_BLc: Float[Tensor, "B L c"], obs: UInt8[Tensor, "B V 3 H W"]) -> UInt8[Tensor, "B F V 3 H W"]:
        return uncanvas(self.frames_of(z_BLc, obs), self.spec.views)

    def noise(self, generators: Sequence[torch.Generator], device: torch.device) -> Float[Tensor, "B L c"]:
        """The start of sampling."""
        return row_noise(generators, (self.cells, self.channels), device)

    def tokens(self, z_BLc: Tensor, sigma_B: Tensor, context: Sequence[Tokens]) -> Tokens:
        """Noisy latents to tokens. They attend to the present image, which is the frame before them."""
        return self.stream.run(z_BLc, sigma_B)

    def valid(self, batch: Batch) -> Bool[Tensor, "B L 1"]:
        """True for tokens that are evidence: all their frames inside the episode, in views that the row has."""
        inside = batch.frame_valid.unflatten(1, (self.grid[0], -1)).all(-1)
        return (
            (inside.unsqueeze(2) & view_cells(batch, self.grid[1:]).unsqueeze(1))
            .expand(-1, -1, self.grid[1] * self.grid[2])
            .flatten(1)
            .unsqueeze(2)
        )


class LevelledActions(nn.Module):
    """GR00T's embedding of actions (arXiv:2503.14734): values and noise levels, then two layers over both."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.width = width
        self.values, self.both = nn.Linear(channels, width), nn.Linear(2 * width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BLc: Float[Tensor, "B L c"], sigma: Tensor) -> Float[Tensor, "B L D"]:
        """sigma: noise levels in [0, 1], as of a stream's tokens."""
        x = self.values(x_BLc)
        steps = torch.arange(self.width // 2, device=x.device) * (math.log(10_000.0) / (self.width // 2))
        angle = 1000 * sigma.reshape(len(sigma), -1, 1) * torch.exp(-steps)
        levels = torch.cat([angle.sin(), angle.cos()], -1).to(x.dtype)
        return self.out(F.silu(self.both(torch.cat([x, levels.expand(*x.shape[:2], -1)], -1))))


class VideoActions(Stream):
    """Actions beside a video: an embedding and a head; the backbone knows their noise levels and times."""

    def __init__(self, kind: str, channels: int, place_L3: Float[Tensor, "L 3"], width: int, config: BackboneConfig):
        super().__init__(kind, channels, place_L3)
        self.levelled = config.action_encoder == "groot"
        self.embed = LevelledActions(channels, width) if self.levelled else projection(channels, width, config)
        self.head = projection(width, channels, config)
        for p in (self.head[-1] if isinstance(self.head, nn.Sequential) else self.head).parameters():
            nn.init.zeros_(p)

    def tokens(self, x_BLc: Float[Tensor, "B L c"], sigma: Float[Tensor, " b"] | Float[Tensor, "b L"]) -> Tokens:
        """Noisy values to tokens. sigma: as in `NoisyStream.tokens`."""
        return self.run(self.embed(x_BLc, sigma) if self.levelled else self.embed(x_BLc), sigma)

    def velocity(self, y_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B l c"]:
        """Outputs of the backbone to velocities, in float32; those of tokens after the actions' are left out."""
        return self.head(y_BLD[:, : self.length]).float()


class GivenVideoActions(Stream):
    """Actions beside a video that are always given, never noisy."""

    def __init__(self, kind: str, channels: int, place_L3: Float[Tensor, "L 3"], width: int, config: BackboneConfig):
        super().__init__(kind, channels, place_L3)
        self.embed = projection(channels, width, config)

    def tokens(self, x_BLc: Float[Tensor, "B L c"]) -> Tokens:
        """Values to tokens."""
        return self.run(self.embed(x_BLc))


class ChunkAndState(ActionChunk):
    """A chunk of noisy actions, and the robot's state in one more token at their noise level."""

    def __init__(self, spec: Spec, config: BackboneConfig, width: int, per_token: int):
        super().__init__(spec, width, per_token, partial(VideoActions, config=config))
        self.length = self.count + 1
        self.proprio = projection(spec.proprio_dim, width, config)
        self.register_buffer("outside", torch.tensor([[0.0, -1.0, -1.0]]), persistent=False)

    def tokens(
        self,
        x_BLc: Float[Tensor, "B L c"],
        sigma_B: Float[Tensor, " b"],
        batch: Batch,
        normalizer: Normalizer,
        problem: int = 0,
    ) -> Tokens:
        """As `ActionChunk.tokens`, the state's token last."""
        run = super().tokens(x_BLc, sigma_B, batch, normalizer, problem)
        state = self.proprio(normalizer.encode("proprio", batch.proprio)).unsqueeze(1)
        sigma = run.sigma
        if sigma is not None and sigma.dim() == 2:  # the executed ones among the actions are at 0
            sigma = torch.cat([sigma, sigma_B.expand(len(sigma)).unsqueeze(1)], 1)
        return Tokens(torch.cat([run.values, state], 1), run.kind, torch.cat([run.position, self.outside]), sigma)


def video_actions(spec: Spec, config: BackboneConfig, width: int, per_token: int, given: bool) -> ActionChunk:
    """A chunk of actions beside a video. Raises ConfigError for places within frames that actions do not fill, and for
    a state or levels that given actions have not."""
    if given and (config.state == "action" or config.action_encoder == "groot"):
        raise ConfigError("backbone.state action and action_encoder groot go with noisy actions, and these are given")
    if config.state == "action":
        chunk: ActionChunk = ChunkAndState(spec, config, width, per_token)
    else:
        kind = GivenVideoActions if given else VideoActions
        chunk = ActionChunk(spec, width, per_token, partial(kind, config=config))
    number, count = torch.arange(chunk.count).float(), len(spec.frame_offsets) // video_model(config).frames_a_latent
    if config.action_rope == "index":
        time = number
    elif config.action_rope == "frame":
        check_multiple("the number of action tokens", chunk.count, "the number of latent frames", max(count, 1))
        each = chunk.count // max(count, 1)
        time = 1 + number // each + (number % each + 1) / (each + 1)  # those of frame 0 are executed already
    else:  # the end of its steps
        time = (number + 1) * per_token * latents_a_step(spec, video_model(config))
    place = torch.stack([time, *[torch.full_like(time, -1.0)] * 2], 1)
    chunk.stream.register_buffer("place", place, persistent=False)
    return chunk


def latents_a_step(spec: Spec, model: VideoModel) -> float:
    """Latent frames that one step of the robot takes."""
    return len(spec.frame_offsets) / model.frames_a_latent / spec.frame_offsets[-1]


class VideoHistory(Moments):
    """`History` for a pretrained video model: keys of a moment are turned by its age, as if they were read there.

    context: the encoder of one moment.
    """

    def __init__(self, spec: Spec, context: VideoContext):
        super().__init__(spec, context.length - context.texts, context.texts)
        self._model = context.model
        age = torch.tensor([[k * latents_a_step(spec, context.model), 0.0, 0.0] for k in spec.past_offsets])
        self.register_buffer("age", age, persistent=False)

    def forward(
        self, read: Callable[[Sequence[Tokens], Tensor], Cache], moments: Sequence[Tokens], batch: Batch
    ) -> tuple[list[Tokens], Cache, Float[Tensor, "B N 2 h l d"]]:
        """As `History.forward`."""
        B, cache, kept = len(batch), [], []
        cos, sin = (x.unsqueeze(2) for x in self._model.rope(self.age.unsqueeze(0)))  # over (B, P, l, heads, d)
        shown = torch.ones(self.length * (1 + self.moments) + self.texts, dtype=torch.bool, device=batch.obs.device)
        shown[self.length : self.length + self.texts] = False
        alone_LL = visibility(self.segments[:2]).to(batch.obs.device)
        for i, keys in enumerate(cast("list[Keys]", read(moments, alone_LL))):
            k, v = (x.unflatten(0, (B, -1)) for x in (keys.k, keys.v))
            first = lambda x: x.unflatten(0, (B, -1))[:, 0]  # noqa: E731
            text = {stream: (first(a), first(b)) for stream, (a, b) in keys.text.items()}
            past_k, past_v = k[:, 1:], v[:, 1:]
            if batch.memory is not None:
                past_k, past_v = batch.memory[:, :, i].transpose(3, 4).unbind(2)
            past_k = self._model.turn(past_k, (cos, sin))
            whole = [torch.cat([now[:, 0], past.flatten(1, 2)], 1) for now, past in ((k, past_k), (v, past_v))]
            cache.append(Keys(whole[0], whole[1], text, shown))
            kept.append(torch.stack([k[:, 0], v[:, 0]], 1).transpose(2, 3))
        image = replace(moments[0], values=moments[0].values.unflatten(0, (B, -1))[:, 0])
        return [image], cast(Cache, cache), torch.stack(kept, 1)

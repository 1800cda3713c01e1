"""From observations to tokens: images, proprioception and instructions."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from wamkit.config import check_multiple
from wamkit.nn.attention_mask import TEXT
from wamkit.nn.backbones.base import Tokens
from wamkit.nn.normalizer import Normalizer
from wamkit.types import Batch, NotFinite, Spec

IMAGE, PROPRIO = "image", "proprio"


def canvas(images: UInt8[Tensor, "... V 3 H W"]) -> Float[Tensor, "... 3 H VW"]:
    """Tiles the views side by side and maps uint8 to [-1, 1], so that no family needs view logic."""
    *lead, V, C, H, W = images.shape
    tiled = images.movedim(-4, -2).reshape(*lead, C, H, V * W)
    return tiled.float().mul_(1 / 127.5).sub_(1)


def uncanvas(image: Float[Tensor, "... 3 H VW"], views: int) -> UInt8[Tensor, "... V 3 H W"]:
    """The inverse of `canvas`, rounding to the nearest of 256 levels and clipping.

    Raises NotFinite for NaN and infinities, which would look like any other pixels.
    """
    check_finite(image, "future frames")
    *lead, C, H, VW = image.shape
    levels = image.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.reshape(*lead, C, H, views, VW // views).movedim(-2, -4)


def view_cells(batch: Batch, grid: tuple[int, int]) -> Bool[Tensor, "B l"]:
    """True for cells of the canvas, row by row, in views that the row has; l is 1 where every row has all.

    grid: rows and columns of cells.
    """
    if batch.view_valid is None:
        return torch.ones(len(batch), 1, dtype=torch.bool, device=batch.obs.device)
    rows, columns = grid
    return batch.view_valid.repeat_interleave(columns // batch.view_valid.shape[1], 1).repeat(1, rows)


def without_absent(frames: Float[Tensor, "B F 3 H VW"], batch: Batch) -> Float[Tensor, "B F 3 H VW"]:
    """Frames on the canvas, black in views that the row lacks, as they are in the data."""
    if batch.view_valid is None:
        return frames
    return frames.masked_fill(~view_cells(batch, (1, frames.shape[-1]))[:, None, None, None], -1)


def check_finite(x: Tensor, what: str) -> None:
    """Raises NotFinite, naming `what`, if `x` holds NaN or infinities. Call it before these turn into valid values."""
    if not torch.isfinite(x).all():
        raise NotFinite(f"{what}: the model computed NaN or infinite values; {INSANE}")


INSANE = "its weights or its inputs are not sane: take an earlier checkpoint, or train again"


def grid_of(spec: Spec, stride: int) -> tuple[int, int]:
    """Rows and columns of cells of `stride` x `stride` pixels on the canvas.

    Raises ConfigError, with the sizes that would fit, unless every view is a whole number of cells.
    """
    for name in ("height", "width"):
        check_multiple(f"image {name}", getattr(spec, name), "the stride", stride)
    return spec.height // stride, spec.width * spec.views // stride


def image_positions(spec: Spec, stride: int, time: float) -> Float[Tensor, "L 3"]:
    """Positions (see `Tokens`) of the cells of one frame, row by row: their centres in pixels of the canvas."""
    centres = [(torch.arange(n) + 0.5) * stride for n in grid_of(spec, stride)]
    return torch.stack(torch.meshgrid(torch.tensor([float(time)]), *centres, indexing="ij"), -1).flatten(0, 2)


def step_positions(times: Sequence[float]) -> Float[Tensor, "L 3"]:
    """Positions (see `Tokens`) of tokens outside the image, at so many steps from now."""
    return torch.tensor([[float(t), -1.0, -1.0] for t in times])


def noisy_state(
    proprio: Float[Tensor, "... s"], normalizer: Normalizer, noise: float, generator: torch.Generator | None
) -> Float[Tensor, "... s"]:
    """Proprioception, normalised, with noise of deviation `noise` where a generator is given, as training does."""
    proprio = normalizer.encode("proprio", proprio)
    if generator is None or not noise:
        return proprio
    return proprio + noise * torch.randn(proprio.shape, generator=generator).to(proprio.device)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, group norm and SiLU: (B, c_in, H, W) -> (B, c_out, H/2, W/2)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(8, c_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class ImageTokens(nn.Module):
    """A frame as a grid of tokens, one a cell of `stride` pixels, 16 or 32: (B, 3, H, W) -> (B, H/16 * W/16, D).

    inputs: channels of the frame; 3 for each of several frames that are read as one.
    """

    stride = 16

    def __init__(self, width: int, stride: int = 16, inputs: int = 3):
        super().__init__()
        self.stride = stride
        self.patch = nn.Conv2d(inputs, 48, 4, stride=4)
        self.down = Downsample(48, 96)
        self.deeper = Downsample(96, 192) if stride == 32 else nn.Identity()
        self.last = nn.Conv2d(192 if stride == 32 else 96, width, 3, stride=2, padding=1)
        self.to(memory_format=torch.channels_last)

    def forward(self, frame_BCHW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L D"]:
        x = F.silu(self.patch(frame_BCHW.contiguous(memory_format=torch.channels_last)))
        return self.last(self.deeper(self.down(x))).flatten(2).transpose(1, 2)


@lru_cache(maxsize=1024)  # instructions of strangers may be long, and each another one
def ngram_ids(text: str, buckets: int) -> tuple[int, ...]:
    """Bucket ids of an instruction's words and word pairs, lower-cased and hashed with CRC-32: any text has ids.

    Pairs keep word order: "red on blue" and "blue on red" differ. A text without a letter or digit has no ids.
    """
    words = re.findall(r"[^\W_]+", text.lower())
    grams = [*words, *(f"{a} {b}" for a, b in zip(words, words[1:], strict=False))]
    return tuple(zlib.crc32(g.encode()) % buckets for g in grams)


class TextTable(nn.Module):
    """Instructions as one token each: the mean of learned n-gram embeddings (fastText, arXiv:1607.01759).

    dropout: probability that training leaves out each n-gram. With it embeddings begin at 0, so that n-grams which
        training never saw are known by that, and are left out as well.
    """

    def __init__(self, width: int, buckets: int = 4096, dropout: float = 0.0):
        super().__init__()
        self.buckets, self.dropout = buckets, dropout
        self.table = nn.EmbeddingBag(buckets, width, mode="mean")
        self.project = nn.Linear(width, width)
        if dropout:
            nn.init.zeros_(self.table.weight)

    def forward(self, texts: list[str], generator: torch.Generator | None = None) -> Float[Tensor, "B 1 D"]:
        """Embeddings of `texts`. N-grams are left out at random only where a generator is given, as training does."""
        ids = [ngram_ids(t, self.buckets) for t in texts]
        counts = torch.tensor([len(i) for i in ids])
        flat = torch.tensor([j for i in ids for j in i], dtype=torch.int64)
        device = self.table.weight.device
        if self.dropout:
            if generator is not None:
                kept = torch.rand(flat.shape, generator=generator) >= self.dropout
            else:
                kept = self.table.weight[flat.to(device)].any(-1).cpu()
            row = torch.arange(len(texts)).repeat_interleave(counts)[kept]
            flat, counts = flat[kept], torch.bincount(row, minlength=len(texts))
        offsets = counts.cumsum(0) - counts
        return self.project(self.table(flat.to(device), offsets.to(device))).unsqueeze(1)


class ContextTokens(nn.Module):
    """The encoder of observations: image, proprioception and instruction now, then images and proprioception before.

    proprio_noise: deviation, in normalised units, of the noise that training adds to proprioception. Without it a
        policy reads its own trajectory off the joints and ignores the images.
    stride: pixels a side of an image token's cell.
    image: the encoder of frames on the canvas, to one token a cell; `ImageTokens` if not given.
    """

    def __init__(
        self,
        width: int,
        spec: Spec,
        text: nn.Module,
        proprio_noise: float = 0.0,
        stride: int = 16,
        image: nn.Module | None = None,
    ):
        super().__init__()
        self.image, self.text = image or ImageTokens(width, stride), text
        self.proprio = nn.Linear(spec.proprio_dim, width)
        rows, columns = self.rows_columns = grid_of(spec, stride)
        self.cells, moments = rows * columns, 1 + len(spec.past_offsets)
        self.length = moments * (self.cells + 1) + 1
        self.grid = nn.Parameter(0.5 * torch.randn(self.cells, width))
        self.spec, self.proprio_noise = spec, proprio_noise
        if spec.past_offsets:
            self.age = nn.Parameter(0.5 * torch.randn(len(spec.past_offsets), 1, width))
            self.before = nn.Parameter(torch.zeros(width))  # in place of observations from before the episode began
        times = (0, *spec.past_offsets)
        image = torch.stack([image_positions(spec, stride, t) for t in times])
        self.register_buffer("image_place", image, persistent=False)
        self.register_buffer("proprio_place", step_positions(times).unsqueeze(1), persistent=False)

    def forward(self, batch: Batch, normalizer: Normalizer, generator: torch.Generator | None = None) -> list[Tokens]:
        """The context, `length` tokens: the present image's `cells` first, proprioception, text, then the past.

        Noise is added to proprioception only where a generator is given, as training does.
        """
        present = self._seen(batch.obs, normalizer, batch.proprio, generator)
        parts = [*self._moment(0, *present), self._text(self.text(batch.text, generator))]
        if not self.spec.past_offsets:
            return parts
        past = torch.cat(self._seen(batch.past, normalizer, batch.past_proprio, generator), -2)
        past = torch.where(batch.past_valid[..., None, None], past, self.before) + self.age
        for i, moment in enumerate(past.unbind(1)):
            parts += self._moment(1 + i, moment[:, : self.cells], moment[:, self.cells :])
        return parts

    def moments(self, batch: Batch, normalizer: Normalizer, generator: torch.Generator | None = None) -> list[Tokens]:
        """Every moment by itself, in B * M rows: the present first, then the past unless it is remembered.

        A moment is image, proprioception and, for every one, the present instruction.
        """
        images, proprio = batch.obs.unsqueeze(1), batch.proprio.unsqueeze(1)
        if batch.memory is None:
            images, proprio = torch.cat([images, batch.past], 1), torch.cat([proprio, batch.past_proprio], 1)
        seen = self._seen(images, normalizer, proprio, generator)
        text = self.text(batch.text, generator).unsqueeze(1).expand(-1, images.shape[1], -1, -1)
        return [*self._moment(0, *(x.flatten(0, 1) for x in seen)), self._text(text.flatten(0, 1))]

    def _moment(self, i: int, image_BLD: Tensor, proprio_B1D: Tensor) -> list[Tokens]:
        """Image and proprioception of the present (i = 0) or of a past moment."""
        image = Tokens(image_BLD, IMAGE, self.image_place[i])
        return [image, Tokens(proprio_B1D, PROPRIO, self.proprio_place[i])]

    def _text(self, text_BLD: Tensor) -> Tokens:
        return Tokens(text_BLD, TEXT, self.proprio_place[0])

    def _seen(
        self, images: Tensor, normalizer: Normalizer, proprio: Tensor, generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "... L D"], Float[Tensor, "... 1 D"]]:
        """Images (..., V, 3, H, W) and proprioception (..., s), embedded."""
        proprio = noisy_state(proprio, normalizer, self.proprio_noise, generator)
        lead = proprio.shape[:-1]
        frames = canvas(images)
        cells = self.image(frames.reshape(-1, *frames.shape[-3:])).unflatten(0, lead) + self.grid
        return cells, self.proprio(proprio).unsqueeze(-2)

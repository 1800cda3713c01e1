"""`hidden_state`: features of one video pass condition a small action head.

Two leaves in one file, as their methods differ in two switches only:
* `detach`: the action head reads the video expert without training it, after it was trained. Cascaded / implicit /
  predictive features (VPP, arXiv:2412.14803; mimic-video).
* not `detach`: both learn together. Joint / diffusion / multi-stream / hidden state (Fast-WAM, DiT4DiT).

The video expert denoises the future. The action expert attends to its keys and values, layer by layer; nobody attends to
actions. In training the future's noise level is independent of the action's (mimic-video), so the same weights act on what was
never imagined (`imagine` off: one video pass over pure noise, which carries no future but asks for one) and on what was
(`imagine` on: the video is denoised first). At level 0 a real future makes the head an inverse dynamics model.

Where this differs from the reference code: noise of the feature pass is seeded (VPP draws it anew at every call, unseeded); rows
without actions train the video (Fast-WAM's release refuses them); the level that a policy query uses, 1, is trained exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy
from wamkit.nn.attention_mask import ACTION, CONTEXT, FUTURE, Program, Segment, expand, table
from wamkit.nn.autoencoders.frame_codec import FutureLatents
from wamkit.nn.backbones.mixture_of_transformers import Mixture
from wamkit.nn.backbones.transformer import Cache
from wamkit.nn.encoders import build_text
from wamkit.nn.flow import denoise, euler, interpolate, row_noise, shift_sigma, uniform_sigma
from wamkit.nn.heads import ActionChunk, masked_mean
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.options import CodecConfig, TrunkConfig
from wamkit.nn.tokens import ContextTokens, context_length
from wamkit.types import Batch, Query, Spec


@dataclass(frozen=True)
class HiddenStateConfig(CodecConfig, TrunkConfig):
    """Sizes and choices of the family `hidden_state`."""

    width: int = 112
    """Of the video expert and of the attention that both share."""
    action_width: int = 56
    """Of the action expert."""
    detach: bool = False
    """Whether the action head only reads the video expert, which is then trained first, in a stage of its own."""
    imagine: bool = False
    """Whether a policy query denoises the future first, or reads the features of a single pass over noise."""
    actions_per_token: int = 4
    policy_label: Literal["expert", "executed"] = "expert"
    inverse: float = 0.3
    """Share of rows that train inverse dynamics: the future is given, clean."""
    blind: float = 0.4
    """Share of rows whose future is pure noise, as it is in a policy query that imagines nothing."""
    future_shift: float = 3.0
    inverse_shift: float = 9.0
    """Moves the action's noise levels of inverse rows towards noise, where they are sampled."""
    denoising_steps: int = 8
    """Of the future, where it is imagined; the actions that follow then take `policy_steps`."""
    policy_steps: int = 4
    inverse_steps: int = 1
    """One step from pure noise gives the mean of what the model believes was done."""


@FAMILIES.register("hidden_state")
class HiddenState(Family):
    """See the module's docstring."""

    name = "hidden_state"
    taxonomy = Taxonomy(
        "joint / diffusion / multi-stream / hidden-state (detached: cascaded / implicit)",
        "frame latents",
        "action head attends to video features",
        "small head denoises",
        "joint or detached",
    )
    queries = frozenset({Query.POLICY, Query.VIDEO, Query.INVERSE, Query.JOINT})
    Config = HiddenStateConfig

    def __init__(self, config: HiddenStateConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        c, D = config, config.width
        self.context = ContextTokens(D, spec, build_text(c.text, D), c.proprio_noise)
        self.future = FutureLatents(spec, D, c.codec_channels)
        self.action = ActionChunk(spec, c.action_width, c.actions_per_token)
        self.experts = Mixture({FUTURE: D, ACTION: c.action_width}, c.depth, c.heads, D)

    def stages(self) -> tuple[Stage, ...]:
        c, rest = self.config, 1 - self.config.codec_share
        codec = Stage("codec", c.codec_share, ("future.codec",), c.codec_lr)
        video, head = ("context", "future.stream", *_expert(FUTURE)), ("action", *_expert(ACTION))
        if c.detach:
            return codec, Stage("video", rest / 2, video), Stage("head", rest / 2, head)
        return codec, Stage("main", rest, video + head)

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        B, device, c = len(batch), batch.obs.device, self.config
        z = self.future.known(batch)
        draw = torch.rand(B, generator=generator).to(device)
        inverse = (
            draw < c.inverse
        ) | ~batch.is_demonstration  # all that a row that nobody should imitate is evidence for
        blind = ~inverse & (draw > 1 - c.blind)
        sigma_z = shift_sigma(uniform_sigma(B, generator), c.future_shift).to(device)
        sigma_z = sigma_z.masked_fill(inverse, 0).masked_fill(blind, 1)
        sigma_a = uniform_sigma(B, generator).to(device)
        sigma_a = torch.where(inverse, shift_sigma(sigma_a, c.inverse_shift), sigma_a)
        label = batch.action_expert if c.policy_label == "expert" else batch.action
        label = torch.where(inverse.view(B, 1, 1), batch.action, label)
        x = self.action.known(label, batch, self.normalizer)
        eps_z, eps_a = (torch.randn(t.shape, generator=generator).to(device) for t in (z, x))
        context = self.context(batch, self.normalizer, generator)
        future = self.future.tokens(interpolate(z, eps_z, sigma_z), sigma_z, context)
        tokens = {FUTURE: torch.cat([context, future], 1)}
        if stage != "video":
            tokens[ACTION] = self.action.tokens(interpolate(x, eps_a, sigma_a), sigma_a, batch)
        detach = {(ACTION, FUTURE)} if c.detach else set()
        mask = self._masks(device)
        if stage == "video":
            mask = {FUTURE: mask[FUTURE][:, : -self.action.length]}
        y, _ = self.experts(tokens, mask, detach=detach)
        losses, rows = {}, lambda t: t.view(B, 1, 1)
        if stage != "head":
            error_z = (self.future.stream.velocity(y[FUTURE][:, context.shape[1] :]) - (eps_z - z)).square()
            losses["future"] = masked_mean(error_z, self.future.valid(batch) & ~rows(inverse))
        if stage != "video":
            error_a, valid = (self.action.stream.velocity(y[ACTION]) - (eps_a - x)).square(), self.action.valid(batch)
            losses["policy"] = masked_mean(error_a, valid & ~rows(inverse))
            losses["action"] = masked_mean(error_a, valid & rows(inverse))
        return losses

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        lengths = ((CONTEXT, context_length(self.spec)), (FUTURE, self.future.cells), (ACTION, self.action.length))
        segments = [Segment(*s) for s in lengths]
        return segments, table(segments, Program.VIDEO_NOISY_TO_ACTION)

    def _masks(self, device: torch.device) -> dict[str, Tensor]:
        """Who sees whom, split by who asks: the video expert holds context and future, the action expert actions."""
        segments, seen_SS = self.attention_layout()
        mask_LK = expand(seen_SS, segments).to(device)
        return {FUTURE: mask_LK[: -self.action.length], ACTION: mask_LK[-self.action.length :]}

    # ---------------------------------------------------------------------------------------------------------- sampling

    def default_steps(self, query: Query) -> int:
        if self._imagines(query):
            return self.config.denoising_steps
        return self.config.inverse_steps if query is Query.INVERSE else self.config.policy_steps

    def _imagines(self, query: Query) -> bool:
        """Whether an answer to `query` begins with denoising the future."""
        return query in (Query.VIDEO, Query.JOINT) or (query is Query.POLICY and self.config.imagine)

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        device = batch.obs.device
        noise_a = row_noise(generators, (self.action.length, self.action.channels), device)
        z = row_noise(generators, (self.future.cells, self.future.channels), device)
        context = self.context(batch, self.normalizer)
        _, known = self.experts({FUTURE: context}, {FUTURE: None})

        def video(z: Tensor, sigma: float) -> tuple[Tensor, Cache]:
            tokens = self.future.tokens(z, torch.full((1,), sigma, device=device), context)
            y, cache = self.experts({FUTURE: tokens}, {FUTURE: None}, known)
            return self.future.stream.velocity(y[FUTURE]), cache

        if imagines := self._imagines(query):
            path = denoise(steps, self.config.future_shift)
            z = euler(lambda x, s: {FUTURE: video(x[FUTURE], s[FUTURE])[0]}, {FUTURE: z}, {FUTURE: path})[FUTURE]
        future = self.future.decode(z, batch.obs) if imagines else None
        if query is Query.VIDEO:
            return None, future
        given = query is Query.INVERSE
        _, features = video(self.future.encode(batch) if given else z, 0.0 if given or imagines else 1.0)

        def velocity(x: dict[str, Tensor], sigma: dict[str, float]) -> dict[str, Tensor]:
            tokens = self.action.tokens(x[ACTION], torch.full((1,), sigma[ACTION], device=device), batch)
            y, _ = self.experts({ACTION: tokens}, {ACTION: None}, features)
            return {ACTION: self.action.stream.velocity(y[ACTION])}

        path = denoise(self.config.policy_steps if imagines else steps, self.config.inverse_shift if given else 1.0)
        actions = euler(velocity, {ACTION: noise_a}, {ACTION: path})[ACTION]
        return self.action.unpack(actions, self.normalizer), future


def _expert(stream: str) -> tuple[str, ...]:
    """The prefixes of one expert's parameters."""
    return f"experts.blocks.{stream}", f"experts.norms.{stream}"

"""`hidden_state`: features of one video pass condition a small action head.

Two leaves in one file, as their methods differ in two switches only:
* `detach`: the action head reads the video expert without training it, after it was trained. Cascaded / implicit /
  predictive features (VPP, arXiv:2412.14803; mimic-video).
* not `detach`: both learn together. Joint / diffusion / multi-stream / hidden state (Fast-WAM, DiT4DiT).

The video expert denoises the future. The action expert attends to its keys and values, layer by layer; no token attends
to actions. In training the future's noise level is independent of the action's (mimic-video). So the same weights act
without imagination (`imagine` off: one video pass over pure noise, which asks for the future) and with it (`imagine`
on: the video is denoised first). At level 0 a real future makes the head an inverse dynamics model.

Departures from the reference code: noise of the feature pass is seeded (VPP draws it anew at every call, unseeded);
rows without actions train the video (Fast-WAM's release refuses them); the level that a policy query uses, 1, is
trained exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy, codec_stage, replaced
from wamkit.nn import Cache, Normalizer, Tokens, flow, masked_mean
from wamkit.nn.attention_mask import ACTION, CONTEXT, FUTURE, Program, Segment, table
from wamkit.nn.family_options import HiddenStateConfig
from wamkit.types import Batch, Query, Spec


@FAMILIES.register("hidden_state")
class HiddenState(Family):
    """A video expert that denoises the future, and an action expert that reads its keys and values."""

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
        self.context = config.build_context(spec)
        self.future = config.build_future(spec, config.width)
        self.action = config.build_action(spec, config.action_width)
        self.experts = config.build_experts(FUTURE, ACTION)
        self.declare(self.experts, codec=self.future, denoised=self.action)

    def stages(self) -> tuple[Stage, ...]:
        codec = codec_stage(self)
        rest = 1 - sum(stage.share for stage in codec)
        expert = {s: tuple(f"experts.{prefix}" for prefix in self.experts.prefixes(s)) for s in (FUTURE, ACTION)}
        video, head = ("context", "future.stream", *expert[FUTURE]), ("action", *expert[ACTION])
        if self.config.detach:
            acts = frozenset({Query.POLICY, Query.INVERSE})
            return (
                *codec,
                Stage("video", rest / 2, video, teaches=frozenset({Query.VIDEO})),
                Stage("head", rest / 2, head, teaches=acts),
            )
        return *codec, Stage("main", rest, video + head)

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        lengths = {CONTEXT: self.context.length, FUTURE: self.future.cells, ACTION: self.action.length}
        segments = [Segment(*s) for s in lengths.items()]
        return segments, table(segments, Program.VIDEO_NOISY_TO_ACTION)

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        B, device, c = len(batch), batch.obs.device, self.config
        z = self.future.targets(batch)
        draw = torch.rand(B, generator=generator).to(device)
        # Off-expert rows are evidence for inverse dynamics alone.
        inverse = (draw < c.inverse) | ~batch.is_demonstration
        sigma_z = flow.shift_sigma(flow.uniform_sigma(B, generator), c.future_shift).to(device)
        sigma_z = sigma_z.masked_fill(inverse, 0).masked_fill(~inverse & (draw > 1 - c.blind), 1)
        sigma_a = flow.uniform_sigma(B, generator).to(device)
        sigma_a = torch.where(inverse, flow.shift_sigma(sigma_a, c.inverse_shift), sigma_a)
        inverse = inverse.view(B, 1, 1)
        x = self.action.targets(torch.where(inverse, batch.action, c.label(batch)), batch, self.normalizer)
        (noisy_z, target_z), (noisy_a, target_a) = (
            flow.corrupt(t, s, generator) for t, s in ((z, sigma_z), (x, sigma_a))
        )
        context = self.context(batch, self.normalizer, generator)
        parts = {FUTURE: [*context, self.future.tokens(noisy_z, sigma_z, context)]}
        mask_LK = self.attention_mask(device)
        mask = {FUTURE: mask_LK[: -self.action.length], ACTION: mask_LK[-self.action.length :]}
        if stage == "video":
            mask = {FUTURE: mask[FUTURE][:, : -self.action.length]}
        else:
            parts[ACTION] = [self.action.tokens(noisy_a, sigma_a, batch, self.normalizer)]
        y, _ = self.experts(parts, mask, detach={(ACTION, FUTURE)} if c.detach else set())
        losses = {}
        if stage != "head":
            error_z = (self.future.stream.velocity(y[FUTURE][-1]) - target_z).square()
            losses["future"] = masked_mean(error_z, self.future.valid(batch) & ~inverse)
        if stage != "video":
            error_a, valid = (self.action.stream.velocity(y[ACTION][0]) - target_a).square(), self.action.valid(batch)
            losses["policy"] = masked_mean(error_a, valid & ~inverse)
            losses["action"] = masked_mean(error_a, valid & inverse)
        return losses

    def embed(self, batch: Batch) -> list[Tokens]:
        """As everywhere, in the video expert."""
        context = self.context(batch, self.normalizer)
        return replaced(context, self.experts.before_last({FUTURE: context}, {FUTURE: None})[FUTURE])

    def default_steps(self, query: Query) -> int:
        if self._imagines(query):
            return self.config.denoising_steps
        return self.config.inverse_steps if query is Query.INVERSE else self.config.policy_steps

    def _imagines(self, query: Query) -> bool:
        """True if the answer to `query` begins with denoising the future."""
        return query in (Query.VIDEO, Query.JOINT) or (query is Query.POLICY and self.config.imagine)

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        device, c = batch.obs.device, self.config
        noise, z = (part.noise(generators, device) for part in (self.action, self.future))
        context = self.context(batch, self.normalizer)
        _, keys = self.experts({FUTURE: context}, {FUTURE: None})

        def video(z: Tensor, sigma: Tensor) -> tuple[Tensor, Cache]:
            y, cache = self.experts({FUTURE: [self.future.tokens(z, sigma, context)]}, {FUTURE: None}, keys)
            return self.future.stream.velocity(y[FUTURE][0]), cache

        if imagines := self._imagines(query):
            z = flow.integrate(lambda x, s: video(x, s)[0], z, flow.denoise(steps, c.future_shift))
        future = self.future.decode(z, batch.obs) if imagines else None
        if query is Query.VIDEO:
            return None, future
        given = query is Query.INVERSE
        level = torch.full((1,), 0.0 if given or imagines else 1.0, device=device)
        _, features = video(self.future.encode(batch) if given else z, level)

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            actions = self.action.tokens(x, sigma, batch, self.normalizer)
            y, _ = self.experts({ACTION: [actions]}, {ACTION: None}, features)
            return self.action.stream.velocity(y[ACTION][0])

        path = flow.denoise(c.policy_steps if imagines else steps, c.inverse_shift if given else 1.0)
        return self.action.denoise(velocity, noise, path, batch, self.normalizer), future

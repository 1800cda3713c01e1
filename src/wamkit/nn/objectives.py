"""The training problems of families that denoise future and action together: which noise, at which level, with which target.

Every row trains two problems that share one context: the policy alone (action tokens only, so that a policy query is
short), and one conditional of the joint, drawn a row. Which conditional it is follows from noise levels alone (UWM,
arXiv:2504.02792): what is given sits at 0, what is absent at 1. Off-expert rows train only what they are evidence for: forward and
inverse dynamics. Rows without actions train the future alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wamkit.config import ConfigError, check_bounds
from wamkit.nn.attention_mask import ACTION, FUTURE, TEACHER_FORCED, Program, Segment, expand, sees_other
from wamkit.nn.autoencoders.frame_codec import FutureLatents
from wamkit.nn.flow import interpolate, shift_sigma, uniform_sigma
from wamkit.nn.heads import ActionChunk, masked_mean
from wamkit.nn.normalizer import Normalizer
from wamkit.types import Batch, Query

POLICY = "policy"
WORLD = (Query.JOINT, Query.FORWARD, Query.INVERSE, Query.VIDEO)


@dataclass(frozen=True)
class TargetConfig:
    """What the rows of a batch train."""

    policy_label: Literal["expert", "executed"] = "expert"
    """What the policy learns to do: the clean expert action, or what was executed, noise included."""
    joint_label: Literal["expert", "executed"] = "executed"
    """The same for the actions of joint rows, whose futures came from what was executed."""
    modes: tuple[float, float, float, float] = (0.25, 0.25, 0.35, 0.15)
    """How often a row trains joint, forward, inverse, video."""
    future_shift: float = 3.0
    """Moves the future's noise levels towards noise, in training and sampling: its many numbers are redundant, so that
    what happens is decided at high noise, and below it only how that looks."""
    inverse_shift: float = 9.0
    """The same for the actions of inverse rows: trained where they are sampled, with one step from pure noise."""
    shared_level: bool = False
    """Whether future and action of joint rows share one noise level, in training and sampling (PAD, VideoVLA, DreamZero)."""

    def __post_init__(self) -> None:
        check_bounds(self, future_shift=(1e-6, inf), inverse_shift=(1e-6, inf))
        check_modes(self.modes)

    def action_shift(self, query: Query) -> float:
        """How far the levels of actions are moved towards noise when `query` is sampled."""
        if query is Query.INVERSE:
            return self.inverse_shift
        return self.future_shift if query is Query.JOINT and self.shared_level else 1.0


def check_modes(modes: tuple[float, ...]) -> None:
    """Raises ConfigError unless these can be shares: finite, none negative, not all zero."""
    if not all(0 <= m < inf for m in modes) or not sum(modes):
        raise ConfigError(f"modes = {modes}: shares must be at least 0, and not all 0")


@dataclass(frozen=True)
class TrainingTargets:
    """One batch's problems. `x`, `eps`, `sigma`: data, noise and level of "policy", "future" and "action".

    executed: what was done, as tokens, for those who are shown it.   mode: int64 (B,), which of WORLD a row trains.
    """

    x: Mapping[str, Float[Tensor, "B L c"]]
    eps: Mapping[str, Float[Tensor, "B L c"]]
    sigma: Mapping[str, Float[Tensor, " B"]]
    executed: Float[Tensor, "B L c"]
    mode: Int[Tensor, " B"]

    def noisy(self, name: str) -> Float[Tensor, "B L c"]:
        """The point on the path from data to noise that the network is shown."""
        return interpolate(self.x[name], self.eps[name], self.sigma[name])

    def is_(self, query: Query) -> Bool[Tensor, "B 1 1"]:
        """Which rows train the conditional `query`."""
        return (self.mode == WORLD.index(query)).view(-1, 1, 1)

    def visible(self, segments: Sequence[Segment], seen_SS: Bool[Tensor, "S S"]) -> Bool[Tensor, "B 1 L L"]:
        """The mask of a batch from the table of its segments. A stream at sigma = 1 is absent: the future of a `video` row
        does not see the action tokens of its draw."""
        device = self.mode.device
        action_L = torch.cat([torch.full((s.length,), s.stream == ACTION and s.problem == 1) for s in segments])
        absent_LK = (action_L & ~action_L.unsqueeze(1)).to(device)
        return (expand(seen_SS, segments).to(device) & ~(self.is_(Query.VIDEO) & absent_LK)).unsqueeze(1)

    def losses(
        self, velocity: Mapping[str, Tensor], batch: Batch, future: FutureLatents, action: ActionChunk
    ) -> dict[str, Float[Tensor, " B"]]:
        """Mean squared errors of the velocities over what each row is evidence for, by name."""
        error = {n: (v - (self.eps[n] - self.x[n])).square() for n, v in velocity.items()}
        joint, forward, inverse = (self.is_(q) for q in WORLD[:3])
        is_demonstration, action_valid = batch.is_demonstration.view(-1, 1, 1), action.valid(batch)
        valid = {
            POLICY: action_valid & is_demonstration,
            ACTION: action_valid & (joint & is_demonstration | inverse),
            FUTURE: future.valid(batch) & (~inverse & is_demonstration | forward),
        }
        return {n: masked_mean(error[n], valid[n]) for n in (POLICY, ACTION, FUTURE) if n in error}


def supported_queries(program: Program, config: TargetConfig) -> frozenset[Query]:
    """What can be asked under `program`: dynamics only where it shows one stream to the other.

    Raises ConfigError where streams that come one after the other were to share a noise level.
    """
    if config.shared_level and program in TEACHER_FORCED:
        raise ConfigError(
            f"program {program.value} denoises one stream after the other, shared_level both at once: use one of them"
        )
    dynamics = {Query.FORWARD: (FUTURE, ACTION), Query.INVERSE: (ACTION, FUTURE)}
    return frozenset(q for q in Query if q not in dynamics or sees_other(program, *dynamics[q]))


def sample_targets(
    batch: Batch,
    future: FutureLatents,
    action: ActionChunk,
    normalizer: Normalizer,
    config: TargetConfig,
    queries: Collection[Query],
    generator: torch.Generator,
) -> TrainingTargets:
    """Draws the problems of `batch` among the conditionals that are in `queries`."""
    B, device = len(batch), batch.obs.device
    z = future.known(batch)
    executed = action.known(batch.action, batch, normalizer)
    expert = action.known(batch.action_expert, batch, normalizer)
    mode = _modes(batch, config, queries, generator).to(device)
    joint, forward, inverse, video = (mode == i for i in range(4))

    sigma_p, sigma_a, sigma_z = (uniform_sigma(B, generator).to(device) for _ in range(3))
    sigma_z = shift_sigma(sigma_z, config.future_shift)
    sigma_a = torch.where(inverse, shift_sigma(sigma_a, config.inverse_shift), sigma_a)
    if config.shared_level:
        sigma_a = torch.where(joint, sigma_z, sigma_a)
    sigma_a = sigma_a.masked_fill(forward, 0).masked_fill(video, 1)
    sigma_z = sigma_z.masked_fill(inverse, 0)
    joint_x = expert if config.joint_label == "expert" else executed
    x = {
        POLICY: expert if config.policy_label == "expert" else executed,
        ACTION: torch.where(joint.view(B, 1, 1), joint_x, executed),
        FUTURE: z,
    }
    eps = {n: torch.randn(t.shape, generator=generator).to(device) for n, t in x.items()}
    return TrainingTargets(x, eps, {POLICY: sigma_p, ACTION: sigma_a, FUTURE: sigma_z}, executed, mode)


def _modes(batch: Batch, config: TargetConfig, queries: Collection[Query], generator: torch.Generator) -> Tensor:
    """One of WORLD for each row (int64 (B,)), among those that are in `queries` and that the row is evidence for."""
    possible = torch.tensor([q in queries for q in WORLD])
    weights = (torch.tensor(config.modes) * possible).repeat(len(batch), 1)
    off_expert, no_action = ~batch.is_demonstration.cpu(), ~batch.has_action.cpu()
    if possible[1] or possible[2]:
        weights[off_expert] *= torch.tensor([0.0, 1.0, 1.0, 0.0])
    weights[no_action] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    return torch.multinomial(weights, 1, generator=generator).squeeze(1)

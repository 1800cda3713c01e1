"""Families that denoise future and action together: training targets, and the start of sampling.

Every row trains two problems that share one context: the policy alone (action tokens only, so that a policy query is
short), and one conditional of the joint, drawn for each row. The noise levels alone say which conditional it is (UWM,
arXiv:2504.02792): a given stream is at 0, an absent one at 1. Off-expert rows train only the conditionals that they are
evidence for, forward and inverse dynamics. Rows without actions train the future alone. The joint may be left to a
share of the rows (`JointConfig.joint_share`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wamkit.config import ConfigError
from wamkit.nn.attention_mask import ACTION, FUTURE, TEACHER_FORCED, Program, Segment, expand, sees_other
from wamkit.nn.autoencoders.future import FutureLatents
from wamkit.nn.backbones.base import Tokens
from wamkit.nn.flow import corrupt, denoise, hold, shift_sigma, uniform_sigma
from wamkit.nn.heads import ActionChunk, masked_mean, mean_over_draws
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.options import JointConfig, TargetConfig
from wamkit.types import Answer, Batch, Query

Losses = Callable[[Batch, torch.Generator, bool], dict[str, Tensor]]
"""Losses of a batch by name, each (B,), with the joint or of the policy alone."""

POLICY = "policy"
WORLD = (Query.JOINT, Query.FORWARD, Query.INVERSE, Query.VIDEO)


@dataclass(frozen=True)
class TrainingTargets:
    """One batch's problems, "policy", "future" and "action", and "policy.1", ... for further draws of the first.

    noisy, velocity, sigma: for each problem the network's input, its target, and the noise level.
    clean: "future" and "action", the executed one, without noise, for streams that see them (teacher forcing).
    mode: int64 (B,), the conditional among WORLD that a row trains.
    """

    noisy: Mapping[str, Float[Tensor, "B L c"]]
    velocity: Mapping[str, Float[Tensor, "B L c"]]
    sigma: Mapping[str, Float[Tensor, " B"]]
    clean: Mapping[str, Float[Tensor, "B L c"]]
    mode: Int[Tensor, " B"]

    def is_(self, query: Query) -> Bool[Tensor, "B 1 1"]:
        """True for rows that train the conditional `query`."""
        return (self.mode == WORLD.index(query)).view(-1, 1, 1)

    def visible(self, segments: Sequence[Segment], seen_SS: Bool[Tensor, "S S"]) -> Bool[Tensor, "B 1 L L"]:
        """The mask of a batch from the table of its segments.

        A stream at sigma = 1 is absent: the future of a `video` row does not see the action tokens of its problem.
        """
        device = self.mode.device
        action_L = torch.cat([torch.full((s.length,), s.stream == ACTION and s.problem == 1) for s in segments])
        absent_LK = (action_L & ~action_L.unsqueeze(1)).to(device)
        return (expand(seen_SS, segments).to(device) & ~(self.is_(Query.VIDEO) & absent_LK)).unsqueeze(1)

    def losses(
        self, predicted: Mapping[str, Tensor], batch: Batch, future: FutureLatents, action: ActionChunk
    ) -> dict[str, Float[Tensor, " B"]]:
        """Mean squared errors of the predicted velocities, by name, over the values that each row is evidence for."""
        error = {n: (v - self.velocity[n]).square() for n, v in predicted.items()}
        draws = [error.pop(n) for n in tuple(error) if n.partition(".")[0] == POLICY]
        valid_in = [action.valid(batch, k) for k in range(len(draws) + 1)]
        error[POLICY], policy_valid = mean_over_draws(draws, valid_in[:-1])
        joint, forward, inverse = (self.is_(q) for q in WORLD[:3])
        is_demonstration = batch.is_demonstration.view(-1, 1, 1)
        valid = {
            POLICY: policy_valid & is_demonstration,
            ACTION: valid_in[-1] & (joint & is_demonstration | inverse),
            FUTURE: future.valid(batch) & (~inverse & is_demonstration | forward),
        }
        return {n: masked_mean(error[n], valid[n]) for n in (POLICY, ACTION, FUTURE) if n in error}


def spare_joint(batch: Batch, share: float, generator: torch.Generator, losses: Losses) -> dict[str, Tensor]:
    """Losses of a batch of which only a share of the rows trains the joint.

    losses: gives those of some rows, with the joint (True) or of the policy alone (False). Rows without a policy to
    train, off-expert ones and video, train the joint in any case. Where the others do, it weighs as much more as they
    are fewer, so that its mean over rows is expected to be as without `share`.
    """
    B = len(batch)
    always = ~(batch.is_demonstration & batch.has_action).cpu()
    few = int(always.sum())
    count = max(math.ceil(share * B), few)
    if count == B and share == 1:
        return losses(batch, generator, True)
    if count == B:  # two passes all the same: processes that train together make as many, whatever their rows are
        spare = losses(batch.rows(torch.zeros(1, dtype=torch.int64)), torch.Generator().manual_seed(0), False)
        none = sum(loss.sum() for loss in spare.values()) * 0
        return {n: loss + none for n, loss in losses(batch, generator, True).items()}
    order = torch.randperm(B, generator=generator)
    order = order[torch.argsort(always[order], descending=True, stable=True)]
    both = losses(batch.rows(order[:count]), generator, True)
    alone = losses(batch.rows(order[count:]), generator, False)
    weight = torch.ones(count)
    weight[few:] = (B - few) / max(count - few, 1)
    weight, back = weight.to(batch.obs.device), torch.argsort(order)
    blank = torch.zeros(B - count, device=batch.obs.device)
    joined = {n: [loss if n in alone else loss * weight, alone.get(n, blank)] for n, loss in both.items()}
    return {n: torch.cat(pair)[back] for n, pair in joined.items()}


def supported_queries(program: Program, config: TargetConfig) -> frozenset[Query]:
    """Queries under `program`: dynamics only where it shows one stream to the other.

    Raises ConfigError where streams that are denoised one after the other would share a noise level.
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
    more: Sequence[str] = (),
) -> TrainingTargets:
    """Draws the problems of `batch`, with conditionals that are in `queries`. more: names of further policy draws.

    Where `queries` is empty, the policy is the only problem.
    """
    B, device = len(batch), batch.obs.device
    executed = action.targets(batch.action, batch, normalizer)
    expert = action.targets(batch.action_expert, batch, normalizer)
    x = {POLICY: expert if config.policy_label == "expert" else executed}
    clean, mode = {}, torch.zeros(B, dtype=torch.int64)
    if queries:
        clean = {FUTURE: future.targets(batch), ACTION: executed}
        mode = _modes(batch, config, queries, generator)
    mode = mode.to(device)
    level = lambda: shift_sigma(uniform_sigma(B, generator), config.policy_shift).to(device)  # noqa: E731
    sigma = {POLICY: level()}
    if queries:
        joint, forward, inverse, video = (mode == i for i in range(4))
        sigma_a, sigma_z = (uniform_sigma(B, generator).to(device) for _ in range(2))
        sigma_z = shift_sigma(sigma_z, config.future_shift)
        sigma_a = torch.where(inverse, shift_sigma(sigma_a, config.inverse_shift), sigma_a)
        if config.shared_level:
            sigma_a = torch.where(joint, sigma_z, sigma_a)
        sigma[ACTION] = sigma_a.masked_fill(forward, 0).masked_fill(video, 1)
        sigma[FUTURE] = sigma_z.masked_fill(inverse, 0)
        joint_x = expert if config.joint_label == "expert" else executed
        x |= {ACTION: torch.where(joint.view(B, 1, 1), joint_x, executed), FUTURE: clean[FUTURE]}
    pairs = {n: corrupt(t, sigma[n], generator) for n, t in x.items()}
    for name in more:
        sigma[name] = level()
        pairs[name] = corrupt(x[POLICY], sigma[name], generator)
    noisy, velocity = ({n: pair[i] for n, pair in pairs.items()} for i in range(2))
    return TrainingTargets(noisy, velocity, sigma, clean, mode)


def _modes(batch: Batch, config: TargetConfig, queries: Collection[Query], generator: torch.Generator) -> Tensor:
    """One of WORLD for each row (int64 (B,)), among those that are in `queries` and that the row is evidence for."""
    possible = torch.tensor([q in queries for q in WORLD])
    weights = (torch.tensor(config.modes) * possible).repeat(len(batch), 1)
    off_expert, no_action = ~batch.is_demonstration.cpu(), ~batch.has_action.cpu()
    if possible[1] or possible[2]:
        weights[off_expert] *= torch.tensor([0.0, 1.0, 1.0, 0.0])
    # Off-expert rows train nothing where no dynamics are trained: the losses leave joint rows of theirs out.
    weights[off_expert & (weights.sum(1) == 0)] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    weights[no_action] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    return torch.multinomial(weights, 1, generator=generator).squeeze(1)


@dataclass(frozen=True)
class JointStreams:
    """The two streams of a family, future and action: how they become tokens, start sampling, and become an answer."""

    config: JointConfig
    future: FutureLatents
    action: ActionChunk
    normalizer: Normalizer

    @property
    def first(self) -> str | None:
        """The stream that is denoised before the other one, or None where both are denoised together."""
        return TEACHER_FORCED.get(self.config.program)

    @property
    def more(self) -> tuple[str, ...]:
        """Names of the policy's problems beside the first."""
        return tuple(f"{POLICY}.{k}" for k in range(1, self.config.policy_draws))

    def more_segments(self) -> list[Segment]:
        """Those of the policy's problems beside the first."""
        return [Segment(ACTION, self.action.length, problem=2 + k) for k in range(len(self.more))]

    def queries(self) -> frozenset[Query]:
        """Queries under the program. Raises ConfigError where the options contradict one another."""
        return supported_queries(self.config.program, self.config.targets)

    def sample_targets(self, batch: Batch, generator: torch.Generator, joint: bool = True) -> TrainingTargets:
        """Draws the problems of `batch`, among the conditionals that are supported; without `joint` the policy's."""
        parts, queries = (self.future, self.action, self.normalizer), self.queries() if joint else ()
        return sample_targets(batch, *parts, self.config.targets, queries, generator, self.more)

    def spare_joint(self, batch: Batch, generator: torch.Generator, losses: Losses) -> dict[str, Tensor]:
        """As the function of this name, with the configured share."""
        return spare_joint(batch, self.config.joint_share, generator, losses)

    @property
    def problems(self) -> int:
        """Chunks of actions that a row denoises: the policy's draws, and last that of the joint."""
        return self.config.policy_draws + 1

    def tokens(
        self, name: str, x: Tensor, sigma: Tensor, context: Sequence[Tokens], batch: Batch, problem: str = POLICY
    ) -> Tokens:
        """Noisy values of the stream `name` to tokens. problem: its name, as in `TrainingTargets`."""
        if name == FUTURE:
            return self.future.tokens(x, sigma, context)
        at = self.problems - 1 if problem == ACTION else (POLICY, *self.more).index(problem)
        return self.action.tokens(x, sigma, batch, self.normalizer, at)

    def velocity(self, name: str, y: Tensor) -> Tensor:
        """Outputs of the backbone to velocities of the stream `name`."""
        return (self.future if name == FUTURE else self.action).stream.velocity(y)

    def start(
        self,
        batch: Batch,
        query: Query,
        generators: Sequence[torch.Generator],
        steps: int,
        imagine: bool = False,
    ) -> tuple[dict[str, Tensor], dict[str, tuple[float, ...]]]:
        """First states and schedules of the streams that `query` gives or asks for; with `imagine`, the future too."""
        config = self.config.targets
        state: dict[str, Tensor] = {}
        schedules: dict[str, tuple[float, ...]] = {}
        # Noise is drawn in one order for every query, so that queries with one seed share it.
        noise = {
            n: part.noise(generators, batch.obs.device) for n, part in ((ACTION, self.action), (FUTURE, self.future))
        }
        if query.wants_action:
            state[ACTION], schedules[ACTION] = noise[ACTION], denoise(steps, config.action_shift(query))
        if query.wants_future or imagine:
            state[FUTURE], schedules[FUTURE] = noise[FUTURE], denoise(steps, config.future_shift)
        if query is Query.FORWARD:
            state[ACTION], schedules[ACTION] = self.action.pack(batch.action, self.normalizer), hold(0, steps)
        if query is Query.INVERSE:
            state[FUTURE], schedules[FUTURE] = self.future.encode(batch), hold(0, steps)
        return state, schedules

    def answer(self, state: Mapping[str, Tensor], query: Query, batch: Batch, memory: Tensor | None) -> Answer:
        """Final states as the answer to `query`."""
        return Answer(
            self.action.unpack(state[ACTION], self.normalizer) if query.wants_action else None,
            self.future.decode(state[FUTURE], batch.obs) if query.wants_future else None,
            memory=memory,
        )

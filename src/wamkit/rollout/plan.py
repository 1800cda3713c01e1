"""The plan of a collection: its options, and the episodes that follow from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from wamkit import config as cfg
from wamkit.config import ConfigError
from wamkit.envs.base import TRAIN_SEEDS, VALIDATION_SEED_BASE
from wamkit.envs.spec import EnvSpec

_Length = Annotated[int, cfg.Between(1, inf), cfg.AtMost(10**6)]
_Length0 = Annotated[int, cfg.Between(0, inf), cfg.AtMost(10**6)]

_FROM_RESET_EVERY = 4
"""Every fourth off-expert episode starts from the reset, where only the arm moves; the others start amid the task."""


@dataclass(frozen=True, kw_only=True)
class CollectConfig(cfg.Checked):
    """Options of `collect`."""

    out: Path
    """Folder of the data set."""
    tasks: tuple[str, ...] = ()
    """Task names of the environment; may be left out where it has but one."""
    env: str = "metaworld"
    """Environment name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the environment's Config (JSON-able), the same for all tasks."""
    episodes: cfg.Episodes = 30
    """Successful demonstrations per task."""
    off_expert: cfg.Episodes = 10
    """Episodes of smooth random actions per task: they show the effects of actions and are marked as not for
    imitation."""
    noise: Annotated[tuple[float, ...], cfg.Between(0, inf), cfg.AtMost(1e3)] = (0.0, 0.1, 0.3)
    """Standard deviations of Gaussian action noise, in half ranges of the action space; demonstrations take them in
    turn. Noise drives the expert off its path, so that the data contains recoveries. The label stays the clean
    action."""
    steps_after_success: _Length0 = 8
    """Steps recorded after success, so that a policy learns to stay."""
    off_expert_steps: _Length = 60
    """Steps of an off-expert episode."""
    off_expert_skip: _Length0 = 60
    """Most off-expert episodes start after a random number of unrecorded expert steps, at most this many, so that
    contacts happen; after half of them, or a quarter, where the episode has ended by then."""
    perturbed_experts: cfg.Episodes = 0
    """Episodes per task of an expert with a constant offset added to its actions: purposeful, yet most of them fail, as
    weak policies do. Training data for world models in which policies are evaluated and for success classifiers; marked
    as not for imitation."""
    perturbed_offset: Annotated[float, cfg.Between(0, inf), cfg.AtMost(1e3)] = 0.4
    """Standard deviation of a perturbed expert's offset, sampled once an episode, in half ranges of the action space. A
    random factor between 1/8 and 1 scales it, so that some episodes barely miss and others succeed."""
    perturbed_steps: _Length = 120
    """Steps of a perturbed-expert episode that does not succeed."""
    policies: tuple[Path, ...] = ()
    """Run folders of policies that act in `policy_episodes`, in turn. Their mistakes teach a world model to evaluate
    other policies."""
    policy_episodes: cfg.Episodes = 0
    """Episodes per task in which a policy acts; marked as not for imitation."""
    max_attempts: Annotated[int, cfg.Between(1, inf), cfg.AtMost(1000)] = 20
    """Largest number of seeds tried for a demonstration; an expert that fails is tried again with the next seed."""
    snapshots: bool = False
    """Record the simulator's state at every step, from which ground truth can be read later."""
    held_out: bool = False
    """Reset with seeds that no training episode uses: validation episodes."""
    seed: cfg.Seed = 0
    """Seed of everything random."""
    processes: cfg.Processes = 2
    """Worker processes, without influence on the recordings."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", json.loads(json.dumps(dict(self.options))))
        if not self.tasks and len(known := self.env_spec.known_tasks()) == 1:
            object.__setattr__(self, "tasks", known)
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ConfigError(f"tasks must be distinct, and at least one; found {self.tasks}")
        super().__post_init__()
        per_task = self.episodes + self.off_expert + self.perturbed_experts + self.policy_episodes
        if per_task == 0:
            raise ConfigError(
                "episodes, off_expert, perturbed_experts and policy_episodes are all 0: there is nothing to collect"
            )
        if bool(self.policies) != bool(self.policy_episodes):
            raise ConfigError(
                "policies and policy_episodes go together: give both, found "
                f"{len(self.policies)} policies and {self.policy_episodes} episodes"
            )
        jobs = len(self.tasks) * per_task
        if jobs * self.max_attempts > TRAIN_SEEDS:
            raise ConfigError(
                f"{jobs} episodes of up to {self.max_attempts} attempts need more than {TRAIN_SEEDS} seeds"
            )

    @property
    def env_spec(self) -> EnvSpec:
        """The environment to collect in."""
        return EnvSpec(self.env, self.tasks, self.options)


@dataclass(frozen=True)
class Job:
    """One episode of the plan. seeds: one for each attempt."""

    index: int
    task: str
    kind: Literal["expert", "off-expert", "perturbed-expert", "policy"]
    noise: float
    from_reset: bool
    seeds: tuple[int, ...]
    policy: Path | None = None


COUNTS = ("episodes", "off_expert", "perturbed_experts", "policy_episodes")
"""Options that a collection may be extended by."""

Counts = Mapping[str, int]
"""The number of episodes a task of each kind, by the option's name."""


def counts_of(config: CollectConfig) -> Counts:
    """The numbers of episodes that `config` asks for."""
    return {name: getattr(config, name) for name in COUNTS}


def plan(config: CollectConfig, earlier: Sequence[Counts] = ()) -> tuple[Job, ...]:
    """All episodes in the order of the store: tasks in turn and all kinds spread evenly, so every prefix is balanced.

    earlier: what was asked for before, where the collection was extended: each plan begins with the one before it, and
        what it asks for beyond that follows, spread evenly.

    No two jobs share a seed.
    """
    kinds: list[str] = []
    before: Counts = dict.fromkeys(COUNTS, 0)
    for counts in (*earlier, counts_of(config)):
        kinds += _kinds({name: counts[name] - before[name] for name in COUNTS})
        before = counts
    first = int(np.random.SeedSequence(config.seed).generate_state(1)[0])
    base = VALIDATION_SEED_BASE if config.held_out else 0
    jobs: list[Job] = []
    count = dict.fromkeys(("expert", "off-expert", "perturbed-expert", "policy"), 0)
    for kind in kinds:
        for task in config.tasks:
            start = first + len(jobs) * config.max_attempts
            jobs.append(
                Job(
                    index=len(jobs),
                    task=task,
                    kind=kind,
                    noise=config.noise[count[kind] % len(config.noise)] if kind == "expert" else 0.0,
                    from_reset=kind == "off-expert" and count[kind] % _FROM_RESET_EVERY == 0,
                    seeds=tuple(base + (start + k) % TRAIN_SEEDS for k in range(config.max_attempts)),
                    policy=config.policies[count[kind] % len(config.policies)] if kind == "policy" else None,
                )
            )
        count[kind] += 1
    return tuple(jobs)


def _kinds(counts: Counts) -> list[str]:
    """The kinds of so many episodes of one task, spread evenly."""
    others = _spread(counts["perturbed_experts"], ["off-expert"] * counts["off_expert"], "perturbed-expert")
    others = _spread(counts["policy_episodes"], others, "policy")
    remaining = iter(others)
    return [k or next(remaining) for k in _spread(len(others), ["expert"] * counts["episodes"], "")]


def _spread(count: int, among: list[str], name: str) -> list[str]:
    """`among` with `name` inserted `count` times at even distances."""
    rest, total = iter(among), count + len(among)
    return [name if (r + 1) * count // total > r * count // total else next(rest) for r in range(total)]

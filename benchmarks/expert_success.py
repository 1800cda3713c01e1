"""Successes of a scripted expert from seeds that training never uses, for each size of action noise.

    python -m benchmarks.expert_success --env metaworld --task drawer-open-v3
    python -m benchmarks.expert_success --env gym --episodes 100 --options id=gymnasium_robotics:FetchPickAndPlace-v4 \\
        'state=observation[0:3]' image=examples.fetch:VIEWS expert=examples.fetch:PickPlace
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wamkit.cli.parse import Options, parse
from wamkit.envs.base import held_out_seeds
from wamkit.envs.spec import EnvSpec
from wamkit.eval.metrics.intervals import clopper_pearson
from wamkit.rollout.collect import NoisyExpert
from wamkit.rollout.loop import rollout


@dataclass(frozen=True, kw_only=True)
class ExpertSuccess(Options):
    """Count the successes of a scripted expert."""

    env: str = "metaworld"
    """Environment name."""
    task: str = ""
    """Its task; the only one if not given."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the environment."""
    episodes: int = 100
    """Seeds for each size of noise."""
    noise: tuple[float, ...] = (0.0, 0.1, 0.3)
    """Standard deviations as of `wamkit collect --noise`."""


def main(args: ExpertSuccess) -> None:
    """Prints a line for each size of noise."""
    spec = EnvSpec(args.env, (args.task,) if args.task else (), args.options)
    spec.check()
    env = spec.make(args.task or spec.known_tasks()[0])
    low, high = env.action_space.low, env.action_space.high
    for noise in args.noise:
        steps = []
        for seed in held_out_seeds(args.episodes):
            actor = NoisyExpert(env.expert(), noise * env.noise_range, low, high)
            episode = rollout(
                env, actor, seed=seed, session=np.random.default_rng([seed, 1]), record_images=False, noise=noise
            )
            steps += [len(episode)] if episode.succeeded else []
        rate = clopper_pearson(len(steps), args.episodes)
        print(
            f"{env.task}, noise {noise:g}: {len(steps)} of {args.episodes} [{rate.low:.1%}, {rate.high:.1%}], "
            f"{np.mean(steps) if steps else np.nan:.1f} steps to success on average",
            flush=True,
        )
    env.close()


if __name__ == "__main__":
    main(parse(ExpertSuccess, "expert_success", sys.argv[1:]))

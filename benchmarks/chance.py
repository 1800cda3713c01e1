"""What success is worth nothing: held-out states solved by actions that look at nothing.

Usage: python benchmarks/chance.py --data data/demos
  random   uniform over the action space, a new one every step
  mean     the mean executed action of the demonstrations of all tasks, at every step
  task mean   that of the task's own demonstrations
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from wamkit.data.loading.dataset import open_frames
from wamkit.envs.base import held_out_seeds
from wamkit.envs.spec import EnvSpec
from wamkit.eval.metrics.intervals import clopper_pearson
from wamkit.rollout.loop import Actor, rollout
from wamkit.runs.provenance import Provenance
from wamkit.types import Observation
from wamkit.workers import run_parallel


@dataclass(frozen=True)
class Args:
    """Where the demonstrations are, and how much to play."""

    data: Path = Path("data/demos")
    """Data set folder."""
    episodes: int = 20
    """Held-out reset states a task."""


@dataclass(frozen=True)
class Blind(Actor):
    """Acts without looking: always `action`, or where there is none at random."""

    action: np.ndarray | None

    def needs_images(self, session: Any) -> bool:
        """Never."""
        return False

    def act(self, obs: Observation, session: Any) -> tuple[np.ndarray, Any]:
        """The session is the generator."""
        return (session.uniform(-1, 1, 4).astype(np.float32) if self.action is None else self.action), session


def play(where: EnvSpec, episodes: int, job: tuple[str, str, Blind]) -> int:
    """How many held-out states of the job's task are solved."""
    env = where.make(job[1])
    seeds = held_out_seeds(episodes)
    done = [
        rollout(env, job[2], seed=s, session=np.random.default_rng(s), record_images=False).succeeded for s in seeds
    ]
    env.close()
    return sum(done)


def main(args: Args) -> None:
    frames, store = open_frames(args.data)
    env = Provenance.of(store).env
    tasks = [m.task for m in store.episodes]
    shown = frames.is_demonstration[frames.episode]
    of_task = np.array(tasks)[frames.episode]
    jobs = []
    for task in env.tasks:
        own, every = (frames.action[rows].mean(0) for rows in (shown & (of_task == task), shown))
        jobs += [("random", task, Blind(None)), ("mean", task, Blind(every)), ("task mean", task, Blind(own))]
    solved = run_parallel(jobs, functools.partial(play, env, args.episodes), desc="chance", unit="task")
    rates: dict[str, list[int]] = {}
    for (name, task, _), count in zip(jobs, solved, strict=True):
        rates.setdefault(name, []).append(count)
        print(f"{name:<10} {task:<28} {count} of {args.episodes}")
    for name, counts in rates.items():
        rate = clopper_pearson(sum(counts), args.episodes * len(counts))
        print(f"{name:<10} all: {rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]")


if __name__ == "__main__":
    main(tyro.cli(Args))

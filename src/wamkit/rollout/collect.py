"""Collection of demonstrations, off-expert episodes, perturbed-expert episodes and policy episodes into a store.

The content of episode i depends on (config, i) alone: not on the number of workers, nor on how often collection was
killed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from wamkit import old_names
from wamkit.config import to_bytes, to_dict
from wamkit.data.format import checksums
from wamkit.data.format.metadata_io import save_metadata
from wamkit.data.format.store import Store
from wamkit.data.format.video import encode_video
from wamkit.envs import Environment
from wamkit.envs.base import Expert
from wamkit.files import read_json
from wamkit.inference.model import Model, load
from wamkit.inference.policy import Policy, Session
from wamkit.rollout.loop import Action, Actor, NothingRecorded, rollout
from wamkit.rollout.plan import COUNTS, CollectConfig, Counts, Job, counts_of, plan
from wamkit.runs.run import Run
from wamkit.types import Episode, Observation, Snapshot, WamkitError
from wamkit.workers import run_parallel

_CORRELATION = 0.9
"""Correlation of an off-expert episode's random actions from one step to the next: an eighth of a second at 80 Hz."""

_SMALLEST_SCALE = 1 / 8
"""Smallest random factor of a perturbed expert's offset."""

_DEFAULTS = {
    "perturbed_experts": 0,
    "perturbed_offset": 0.4,
    "perturbed_steps": 120,
    "policies": [],
    "policy_episodes": 0,
    "extended": [],
}
"""Values of fields that an older collect.json lacks."""


def collect(config: CollectConfig, progress: bool = True) -> Store:
    """Records the planned episodes in worker processes and returns the store; existing episodes are kept.

    After an interruption, call it again: it continues where it stopped, and writes nothing if nothing is left to do.
    With larger numbers of episodes, and otherwise as before, it extends the data set: the further episodes follow the
    last one. The resolved configuration is `collect.json` in the folder, with the numbers asked for before as
    `extended`, unless the same episodes would have been planned at once.
    Raises WamkitError for unknown names, for a folder that was collected with another configuration (naming the
    difference), and when an expert keeps failing.
    """
    config.env_spec.check()
    runs = {path: Run.open(path) for path in config.policies}
    store, jobs = _open(config, runs)
    if len(store) > len(jobs):
        raise WamkitError(
            f"{config.out} holds {len(store)} episodes, more than the {len(jobs)} planned: use another folder"
        )
    todo = [(config, job, None if job.policy is None else runs[job.policy]) for job in jobs[len(store) :]]
    results = run_parallel(
        todo,
        _work,
        processes=config.processes,
        desc="collect",
        describe=lambda item: f"episode {item[1].index} ({item[1].kind}, {item[1].task})",
        progress=progress,
        done=len(store),
    )
    with closing(results):  # ends the progress bar and the workers even if the disk is full
        for episode, encoded in results:
            store.append(episode, encoded=encoded)
    store.finalize()
    return store


def record(config: CollectConfig, job: Job, env: Environment, run: Run | None = None) -> Episode:
    """Records the episode of `job`; a demonstration is repeated with the next seed until it succeeds.

    run: of the policy that acts, if the job names one.
    """
    if run is not None:
        return _record_policy(config, run, job.seeds[0], env)
    expert = env.expert()
    if job.kind == "off-expert":
        return _record_off_expert(config, job, env, expert)
    if expert is None:
        raise WamkitError(
            f"{config.env} has no scripted expert for {job.task}: collect with --episodes 0, evaluate with --held-out 0"
        )
    if job.kind == "perturbed-expert":
        return _record_perturbed_expert(config, job, env, expert)
    for seed in job.seeds:
        episode = rollout(
            env,
            NoisyExpert(expert, job.noise * env.noise_range, env.action_space.low, env.action_space.high),
            seed=seed,
            session=np.random.default_rng([seed, 1]),
            steps_after_success=config.steps_after_success,
            snapshot=_snapshot(config, env),
            noise=job.noise,
        )
        if episode.succeeded:
            return episode
    raise WamkitError(
        f"the scripted expert of {job.task} failed {len(job.seeds)} times in a row with noise {job.noise} "
        f"(seeds {job.seeds[0]} to {job.seeds[-1]}): lower the noise, or leave the task out"
    )


def _snapshot(config: CollectConfig, env: Environment) -> Callable[[], Snapshot] | None:
    return env.snapshot if config.snapshots else None


def _record_off_expert(config: CollectConfig, job: Job, env: Environment, expert: Expert | None) -> Episode:
    seed = job.seeds[0]
    rng = np.random.default_rng([seed, 2])
    skip = 0 if expert is None or job.from_reset else int(rng.integers(config.off_expert_skip + 1))
    while True:
        try:
            return rollout(
                env,
                Wanderer(expert, env.action_space.low, env.action_space.high),
                seed=seed,
                session=Wandering(rng, rng.standard_normal(env.action_space.shape), skip),
                max_steps=config.off_expert_steps,
                skip=skip,
                steps_after_success=None,
                snapshot=_snapshot(config, env),
                is_demonstration=False,
            )
        except NothingRecorded:  # the environment's episodes are shorter, or end with success
            skip //= 2


def _record_perturbed_expert(config: CollectConfig, job: Job, env: Environment, expert: Expert) -> Episode:
    seed, low, high = job.seeds[0], env.action_space.low, env.action_space.high
    rng = np.random.default_rng([seed, 3])
    size = config.perturbed_offset * _SMALLEST_SCALE ** rng.random()
    offset = size * env.noise_range * (high - low) / 2 * rng.standard_normal(low.shape)
    return rollout(
        env,
        NoisyExpert(expert, 0.0, low, high, offset),
        seed=seed,
        session=rng,
        max_steps=config.perturbed_steps,
        steps_after_success=config.steps_after_success,
        snapshot=_snapshot(config, env),
        is_demonstration=False,
    )


def _record_policy(config: CollectConfig, run: Run, seed: int, env: Environment) -> Episode:
    return rollout(
        env,
        _policy(run),
        seed=seed,
        session=Session(seed),
        steps_after_success=config.steps_after_success,
        snapshot=_snapshot(config, env),
        is_demonstration=False,
    )


def _check_policy(run: Run, env: Environment, name: str) -> None:
    """Raises WamkitError, before anything is recorded, for a run that cannot act in this environment."""
    model = _policy(run).model
    if model.embodiment is None and run.embodiments:
        known = ", ".join(run.embodiments)
        raise WamkitError(f"{run.path} was trained on a mixture, and collection has no option to choose of {known}")
    check_fits(run, model, env, name)


def check_fits(run: Run, model: Model, env: Environment, name: str) -> None:
    """Raises WamkitError, before anything is played, for a model that cannot act in this environment.

    name: of the environment. Names of cameras must agree where the run's data came from it; elsewhere their number.
    """
    spec, space, robot = model.spec, env.observation_space, model.embodiment
    cameras, state, action = (spec.cameras, tuple(env.cameras)), spec.proprio_dim, spec.action_dim
    if run.provenance.env.env != name:
        cameras = (len(spec.cameras), len(env.cameras))
    rate = spec.fps
    if robot is not None:  # of a mixture: `spec` has the unified sizes, and its views are roles
        seen = max(robot.views) + 1
        cameras, state, action = (seen, min(seen, len(env.cameras))), robot.own_state_size, robot.own_action_size
        name_of = next((n for n, e in run.embodiments.items() if e == robot), "")  # every robot acts at its own rate
        rate = run.metadata[name_of].rate if name_of in run.metadata else 0.0
    pairs = {
        "cameras": cameras,
        "height and width": ((spec.height, spec.width), space["images"].shape[-2:]) if run.image is None else (0, 0),
        "dimensions of proprioception": (state, space["proprio"].shape[0]),
        "dimensions of actions": (action, env.action_space.shape[0]),
        "scene points per side": (spec.point_grid, env.point_grid if spec.point_grid else 0),
        "steps a second": (rate, rate if not rate or abs(env.fps / rate - 1) < 0.01 else env.fps),
    }
    trained = run.provenance.env
    data = " ".join(f"{k}={json.dumps(v)}" for k, v in trained.options.items()) if trained.env == name else ""
    more = f"; its data are of --options {data}" if data else ""
    for what, (wanted, found) in pairs.items():
        if wanted != found:
            raise WamkitError(
                f"{run.label} cannot act in {name}: it was trained with {what} = {wanted}, found {found}{more}"
            )


@functools.lru_cache(maxsize=8)
def _policy(run: Run) -> Policy:
    return Policy(load(run))


@dataclass(frozen=True)
class NoisyExpert(Actor):
    """Executes clip(expert + noise + offset), with the expert's own action as the label. Its session is a random
    generator.

    noise: standard deviation in half ranges of the action space.   low, high: float32 (a,), that range.
    offset: (a,), added to every action.
    """

    expert: Expert
    noise: float
    low: np.ndarray
    high: np.ndarray
    offset: np.ndarray | float = 0.0

    def needs_images(self, session: np.random.Generator) -> bool:
        """Never: the expert reads the simulator's state."""
        return False

    def act(self, observation: Observation, session: np.random.Generator) -> tuple[Action, np.random.Generator]:
        clean = np.clip(self.expert(session), self.low, self.high)
        scale = self.noise * (self.high - self.low) / 2
        noisy = np.clip(clean + self.offset + scale * session.standard_normal(clean.shape), self.low, self.high)
        return Action(noisy.astype(np.float32), clean), session


class Wandering(NamedTuple):
    """Session of `Wanderer`: generator, position of the random walk float (a,), remaining expert steps."""

    rng: np.random.Generator
    position: np.ndarray
    expert_steps: int


@dataclass(frozen=True)
class Wanderer(Actor):
    """After the expert's steps, a discrete Ornstein-Uhlenbeck process (Uhlenbeck and Ornstein 1930).

    x' = rho x + sqrt(1 - rho^2) n with n standard normal, so x stays standard normal. The action is the centre of the
    range plus half its width times x, clipped.   low, high: float32 (a,), the range.
    """

    expert: Expert | None
    low: np.ndarray
    high: np.ndarray

    def needs_images(self, session: Wandering) -> bool:
        """Never: neither the expert nor the random walk looks."""
        return False

    def act(self, observation: Observation, session: Wandering) -> tuple[np.ndarray, Wandering]:
        rng, x, left = session
        if left and self.expert is not None:
            return self.expert(rng), Wandering(rng, x, left - 1)
        action = (self.high + self.low) / 2 + (self.high - self.low) / 2 * x
        x = _CORRELATION * x + math.sqrt(1 - _CORRELATION**2) * rng.standard_normal(x.shape)
        return np.clip(action, self.low, self.high).astype(np.float32), Wandering(rng, x, 0)


def _work(item: tuple[CollectConfig, Job, Run | None]) -> tuple[Episode, dict[str, bytes]]:
    """The episode of one job, with its images encoded and dropped, so that workers encode and pipes carry little."""
    config, job, run = item
    episode = record(config, job, config.env_spec.shared(job.task), run)
    encoded = {camera: encode_video(episode.images[:, v], episode.fps) for v, camera in enumerate(episode.cameras)}
    return dataclasses.replace(episode, images=None), encoded


def _bounds(space: spaces.Box) -> tuple[tuple[float, float], ...]:
    """(lowest, highest) value of each action dimension; none where one of them is unbounded."""
    bounded = np.isfinite(space.low).all() and np.isfinite(space.high).all()
    return tuple(zip(space.low.tolist(), space.high.tolist(), strict=True)) if bounded else ()


def _same_policies(before: list[str], runs: Mapping[Path, Run]) -> bool:
    """True if `before`, as collect.json names policies, are these, whichever version wrote it."""
    named = [text.rpartition(" @") for text in before]
    return [path for path, *_ in named] == [str(p) for p in runs] and all(
        run.is_named(digest) for (*_, digest), run in zip(named, runs.values(), strict=True)
    )


def _extended(config: CollectConfig, before: Mapping[str, Any]) -> list[Counts]:
    """The numbers of episodes to plan before those of `config`, given the collect.json `before`.

    Raises WamkitError where `config` asks for fewer.
    """
    asked: Counts = {name: before[name] for name in COUNTS}
    stages, now = [{name: counts[name] for name in COUNTS} for counts in before["extended"]], counts_of(config)
    if any(not 0 <= counts[name] <= asked[name] for counts in stages for name in COUNTS):
        raise ValueError(f"extended is {stages}")
    if now == asked:
        return stages
    if fewer := [name for name in COUNTS if now[name] < asked[name]]:
        raise WamkitError(
            f"{config.out} was collected with {fewer[0]} = {asked[fewer[0]]}, now {now[fewer[0]]}: it can be extended, "
            "not shortened. Use another folder for it"
        )
    recorded = plan(dataclasses.replace(config, **asked), stages)
    return [] if plan(config)[: len(recorded)] == recorded else [*stages, asked]


def _open(config: CollectConfig, runs: Mapping[Path, Run]) -> tuple[Store, tuple[Job, ...]]:
    """The store of this configuration, a new one or one of the same but fewer episodes, and the plan."""
    resolved = {k: v for k, v in to_dict(config).items() if k not in ("out", "processes")}
    resolved["policies"] = [f"{path} @{runs[path].digest[:8]}" for path in config.policies]
    path, stages = config.out / "collect.json", list[Counts]()
    if path.exists():
        try:
            before = _DEFAULTS | old_names.collected(read_json(path))
            if _same_policies(before["policies"], runs):
                resolved["policies"] = before["policies"]
            changed = [
                k for k in resolved | before if resolved.get(k) != before.get(k) and k not in (*COUNTS, "extended")
            ]
            stages = [] if changed else _extended(config, before)
        except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
            raise WamkitError(f"{path} is damaged ({error}): move the folder away, or restore the file") from error
        if changed:
            found = "; ".join(f"{k} was {before.get(k)!r}, now {resolved.get(k)!r}" for k in changed)
            raise WamkitError(
                f"{config.out} was collected with another configuration: {found}. Use another folder for it"
            )
        resolved |= {"extended": stages} if stages else {}
        if (config.out / "meta/info.json").exists():
            store = Store.open(config.out)  # of the same environment, which need not be built, nor be able to render
            if {k: before.get(k) for k in COUNTS} != counts_of(config):
                checksums.write(config.out, {"collect.json": to_bytes(resolved)})
            return store, plan(config, stages)
    if not path.exists() and (config.out / "meta/info.json").exists() and (episodes := len(Store.open(config.out))):
        raise WamkitError(f"{config.out} holds {episodes} episodes but no collect.json: use another folder")
    env = config.env_spec.make(config.tasks[0])
    for run in runs.values():
        _check_policy(run, env, config.env)
    store = Store.open_or_create(
        config.out,
        cameras=tuple(env.cameras),
        image_shape=env.observation_space["images"].shape[1:],
        proprio_names=env.proprio_names,
        action_names=env.action_names,
        fps=env.fps,
        robot_type=env.robot_type,
        point_grid=env.point_grid,
        bodies=env.bodies,
    )
    env.close()
    if env.dataset_metadata is not None:
        save_metadata(config.out, dataclasses.replace(env.dataset_metadata, action_bounds=_bounds(env.action_space)))
    if not path.exists():
        checksums.write(config.out, {"collect.json": to_bytes(resolved)})
    return store, plan(config, stages)

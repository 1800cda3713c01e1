"""Imagined rollouts: a world model in the simulator's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float32, UInt8
from tqdm import tqdm

from wamkit.data.image_transform import ImageTransform
from wamkit.envs.base import observation_spaces
from wamkit.imagination.success_classifier import SuccessClassifier
from wamkit.inference.checks import fitted, row_seeds, unsupported
from wamkit.inference.model import Model
from wamkit.types import EvaluationError, Observation, Query, Spec, UnsupportedQuery


@dataclass(frozen=True)
class Imagined:
    """The present after N chunks of actions.

    frames: uint8 (N, V, 3, H, W).   proprio: float32 (N, s), read off the frames.   success: float32 (N,), its
        probability.
    """

    frames: UInt8[np.ndarray, "N V 3 H W"]
    proprio: Float32[np.ndarray, "N s"]
    success: Float32[np.ndarray, " N"]


class ImaginedEpisodes:
    """R episodes inside a world model that advance together, `jump` steps at a time.

    This is all that an imagined rollout keeps: the frames so far, at which steps, and the one query that makes more of
    them.

    starts: real observations.   classifier: reads success and proprioception off imagined frames.
    Raises UnsupportedQuery for a model without forward dynamics, and EvaluationError for one that predicts no frame
    `jump` steps ahead.
    """

    def __init__(self, world: Model, classifier: SuccessClassifier, starts: Sequence[Observation], jump: int):
        if Query.FORWARD not in world.queries:
            raise UnsupportedQuery(unsupported(world.name, Query.FORWARD))
        if jump not in world.spec.frame_offsets:
            offsets = world.spec.frame_offsets
            raise EvaluationError(
                f"the world model predicts frames {offsets} steps ahead, not {jump}: use one of these"
            )
        self.world, self.classifier, self.jump, self.step = world, classifier, jump, 0
        self._starts = starts = tuple(fitted(o, ImageTransform.of(world.spec)) for o in starts)
        self._seen: list[dict[int, Observation]] = [{0: replace(o, past=())} for o in starts]

    def observations(self, spec: Spec, copies: int = 1) -> list[Observation]:
        """The present observations, `copies` of each in a row, with the past frames that a model of `spec` looks at.

        A past moment between two imagined frames is None.
        """
        t = self.step
        now = [replace(own[t], past=tuple(own.get(t + o) for o in spec.past_offsets)) for own in self._seen]
        return [o for o in now for _ in range(copies)]

    def imagine(self, actions: Float32[np.ndarray, "N A a"], seeds: Sequence[int]) -> Imagined:
        """The frames `jump` steps later under each chunk; N is a multiple of R, with an episode's chunks in a row."""
        obs = self.observations(self.world.spec, len(actions) // len(self._seen))
        future = self.world.sample(obs, Query.FORWARD, seed=seeds, actions=actions).future
        assert future is not None  # forward dynamics always gives frames
        frames = future[:, self.world.spec.frame_offsets.index(self.jump)]
        success, proprio = self.classifier.read(frames)
        return Imagined(frames, proprio, success)

    def advance(self, imagined: Imagined, rows: np.ndarray) -> None:
        """Makes `rows` of `imagined`, int (R,), the present of each episode."""
        self.step += self.jump
        for own, start, row in zip(self._seen, self._starts, rows, strict=True):
            frame = replace(start, images=imagined.frames[row], proprio=imagined.proprio[row], past=())
            own[self.step] = frame


class ImaginedEnv:
    """A world model as an environment (`wamkit.rollout.loop.Env`), for anything that acts one step at a time.

    The model predicts a frame every `jump` steps. In between, observations hold the last proprioception and no images,
    so an actor has to query its model every `jump` steps or a multiple of that. Rollouts cannot record images of every
    step.

    starts: real observations; `reset(seed=k)` starts from the k-th, counted around.
    jump: steps between predicted frames; the model's farthest horizon if not given. A chunk of `world.spec.chunk`
        actions is needed to predict: where `jump` is shorter, the last action is repeated.
    max_steps: number of steps after which an episode is truncated.
    The reward is the probability of success at steps with a new frame, and 0 in between. Actions are unbounded.
    Raises as `ImaginedEpisodes`.
    """

    task = "imagined"
    point_grid = 0

    def __init__(
        self,
        world: Model,
        classifier: SuccessClassifier,
        starts: Sequence[Observation],
        *,
        jump: int | None = None,
        max_steps: int = 200,
    ):
        spec = world.spec
        self._world, self._classifier, self._starts, self._max_steps = world, classifier, tuple(starts), max_steps
        self._jump = spec.frame_offsets[-1] if jump is None else jump
        ImaginedEpisodes(world, classifier, starts, self._jump)  # refuses before the first reset
        self.cameras, self.fps, self.text = spec.cameras, spec.fps, starts[0].text
        bound = np.full(spec.proprio_dim, inf, np.float32)
        self.observation_space = observation_spaces(spec.views, spec.height, spec.width, -bound, bound)
        self.action_space = spaces.Box(-inf, inf, (spec.action_dim,), np.float32)

    def reset(self, *, seed: int, render: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts from the start number `seed`; all noise of the episode follows from `seed`."""
        start = self._starts[seed % len(self._starts)]
        self._episode = ImaginedEpisodes(self._world, self._classifier, [start], self._jump)
        self._seed, self._steps, self._actions = seed, 0, list[np.ndarray]()
        self.text = start.text
        return self._observe(render), {"success": False}

    def step(self, action: np.ndarray, render: bool = True) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One step; every `jump`-th one queries the world model."""
        self._actions.append(np.asarray(action, np.float32))
        self._steps += 1
        probability = 0.0
        if len(self._actions) == self._jump:
            last = np.minimum(np.arange(self._world.spec.chunk), self._jump - 1)
            chunk = np.stack(self._actions)[last]
            noise = row_seeds(self._seed + self._steps // self._jump - 1, 1)
            imagined = self._episode.imagine(chunk[None], noise)
            self._episode.advance(imagined, np.array([0]))
            self._actions, probability = [], float(imagined.success[0])
        success = probability >= self._classifier.threshold
        truncated = self._steps >= self._max_steps
        return self._observe(render), probability, False, truncated, {"success": success}

    def _observe(self, render: bool) -> dict[str, Any]:
        (now,) = self._episode.observations(self._world.spec)
        if render and self._actions:
            raise EvaluationError(
                f"the world model predicts a frame every {self._jump} steps, and none at step {self._steps}: let the "
                f"policy query every {self._jump} steps, and do not record images"
            )
        raw: dict[str, Any] = {"proprio": now.proprio, "text": now.text}
        return raw | ({"images": now.images} if render else {})


@dataclass(frozen=True)
class ImaginedRollout:
    """The outcome of R starts inside a world model, with Q queries each.

    success: bool (R,).   steps: int (R,), until success was seen, else `max_steps`.
    frames: uint8 (R, Q, V, 3, H, W), one imagined image every `replan_every` steps.
    actions: float32 (R, Q * replan_every, a), as executed.
    """

    success: Bool[np.ndarray, " R"]
    steps: np.ndarray
    frames: UInt8[np.ndarray, "R Q V 3 H W"]
    actions: Float32[np.ndarray, "R T a"]


def imagined_rollout(
    policy: Model,
    world: Model,
    classifier: SuccessClassifier,
    starts: Sequence[Observation],
    *,
    replan_every: int = 8,
    max_steps: int = 200,
    seed: int = 0,
    candidates: int = 1,
    spread: float = 0.0,
    progress: bool = True,
) -> ImaginedRollout:
    """Policy and world model in alternation: a chunk of actions, the frame `replan_every` steps later, and so on.

    candidates: number of chunks imagined at every query, of which the one with the most probable success is taken: a
        search that shows how far the world model can be exploited.
    spread: standard deviation of an offset, constant over a chunk, that is added to all candidates but the first, in
        units of the actions' own deviation.
    Models that look back see imagined frames, and nothing where a past moment falls between two of them.
    Raises UnsupportedQuery for a policy without actions or a world model without forward dynamics, and EvaluationError
    for one that predicts no frame `replan_every` steps ahead.

    It goes chunk by chunk and not through `wamkit.rollout.loop`, which goes step by step, for two reasons. All starts
    and candidates are answered in one batch. And the world model sees the whole planned chunk, of which `replan_every`
    actions are executed; a loop over steps only knows these. `ImaginedEnv` serves that loop from the same
    `ImaginedEpisodes`.
    """
    if Query.POLICY not in policy.queries:
        raise UnsupportedQuery(unsupported(policy.name, Query.POLICY))
    if candidates < 1 or spread < 0:
        raise EvaluationError(f"candidates = {candidates}, spread = {spread}: at least 1, and at least 0")
    episodes, R, N = ImaginedEpisodes(world, classifier, starts, replan_every), len(starts), candidates
    frames, executed, steps, success = [], [], np.full(R, max_steps), np.zeros(R, bool)
    for k in tqdm(range(max_steps // replan_every), desc="imagine", unit="query", leave=False, disable=not progress):
        noise = row_seeds(seed + k, R * N)
        actions = policy.sample(episodes.observations(policy.spec, N), Query.POLICY, seed=noise).actions
        assert actions is not None  # the policy query always gives actions
        if spread:
            offset = np.random.default_rng((seed, k)).normal(0, spread, (R, N, 1, actions.shape[-1]))
            offset[:, 0] = 0
            actions = actions + (offset * actions.std((0, 1))).reshape(R * N, 1, -1).astype(np.float32)
        imagined = episodes.imagine(actions, noise)
        best = np.arange(R) * N + imagined.success.reshape(R, N).argmax(1)
        episodes.advance(imagined, best)
        reached = imagined.success[best] >= classifier.threshold
        steps = np.where(reached & ~success, episodes.step, steps)
        success |= reached
        frames.append(imagined.frames[best])
        executed.append(actions[best, :replan_every])
    return ImaginedRollout(success, steps, np.stack(frames, 1), np.concatenate(executed, 1))

"""Clips of scenes with known states, and models of known rank of them, which a metric must order.

The scenes are those of the physics suite. A model answers with images, with the masks of the objects in them, and with
what a perfect probe would read of them; where a fault is of the image alone (another brightness, say) masks and states
are the true ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter

from wamkit.envs.base import Environment, make_env
from wamkit.envs.ground_truth import GroundTruth, read_ground_truth
from wamkit.eval.probes.object_state import States
from wamkit.eval.suites.physics_scenes import VISIBLE, true_states

TASKS = ("drop", "slide", "collide", "topple", "occlude", "push")

LEVELS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Noise levels, see `noisy`."""


@dataclass(frozen=True, eq=False)
class Imagined:
    """A model's version of a clip: images from the given one on, masks, and the states that are read off the images."""

    frames: UInt8[np.ndarray, "T 3 H W"]
    mask: Bool[np.ndarray, "T N H W"]
    states: States

    def at(self, order: Sequence[int]) -> Imagined:
        """The frames `order`, as if they came in that order."""
        order, s = np.asarray(order), self.states
        return Imagined(
            self.frames[order], self.mask[order], States(s.position[order], s.present[order], s.area[order])
        )


@dataclass(frozen=True, eq=False)
class Clip:
    """T images of one scene, `dt` seconds apart, of which the first is given to a model.

    real: the true clip.   truth: the simulator's state at the T instants.   wrong: the clip under opposite actions,
    which differs only where there is a pusher.   options: of `env`, which holds the scene at its beginning.
    """

    task: str
    seed: int
    dt: float
    real: Imagined
    truth: GroundTruth
    wrong: Imagined
    options: tuple[tuple[str, object], ...] = ()

    def env(self) -> Environment:
        """A new environment that holds the scene. The caller closes it."""
        env = make_env("physics", task=self.task, **dict(self.options))
        env.reset(seed=self.seed, render=False)
        return env


def clips(
    tasks: Sequence[str] = TASKS,
    seeds: Sequence[int] = (0, 1, 2, 3),
    *,
    frames: int = 24,
    every: int = 2,
    options: tuple[tuple[str, object], ...] = (),
) -> list[Clip]:
    """One clip of `frames` images, each `every` steps apart, for each task and seed. options: of the environment, such
    as its size.
    """
    out = []
    for task in tasks:
        env = make_env("physics", task=task, **dict(options))
        for seed in seeds:
            real, truth = _played(env, seed, frames, every, 1.0)
            wrong = _played(env, seed, frames, every, -1.0)[0] if np.isfinite(truth.pusher).all() else real
            out.append(Clip(task, seed, every / env.fps, real, truth, wrong, options))
        env.close()
    return out


def _played(env: Environment, seed: int, frames: int, every: int, sign: float) -> tuple[Imagined, GroundTruth]:
    raw, _ = env.reset(seed=seed)
    expert, rng = env.expert(), np.random.default_rng(seed)
    images, snapshots = [raw["images"][0]], [env.snapshot()]
    for step in range(1, (frames - 1) * every + 1):
        raw, *_ = env.step(sign * expert(rng), render=step % every == 0)
        snapshots.append(env.snapshot())
        if step % every == 0:
            images.append(raw["images"][0])
    truth = read_ground_truth(env, snapshots).at(range(0, len(snapshots), every))
    return Imagined(np.stack(images), truth.mask, true_states(truth)), truth


Model = Callable[[Sequence[Clip], int], Imagined]
"""A model's version of one of several clips."""


def oracle(all_clips: Sequence[Clip], index: int) -> Imagined:
    """The true clip."""
    return all_clips[index].real


def noisy(level: float) -> Model:
    """The true clip with noise, whose draws are the same at every level.

    Images: `level` grey levels. Positions: level / 4 millimetres. Logarithm of areas: level / 200. A share of
    level / 1000 of a mask's pixels and of the presence flags is inverted.
    """

    def imagine(all_clips: Sequence[Clip], index: int) -> Imagined:
        clip = all_clips[index]
        real, rng = clip.real, np.random.default_rng((clip.seed, TASKS.index(clip.task)))
        frames = np.clip(real.frames + level * rng.standard_normal(real.frames.shape), 0, 255).round().astype(np.uint8)
        there = clip.truth.exists
        shown = real.states.present ^ ((rng.random(real.states.present.shape) < level / 1000) & there)
        position = clip.truth.position + level / 4000 * rng.standard_normal(clip.truth.position.shape)
        area = np.maximum(clip.truth.area, VISIBLE) * np.exp(level / 200 * rng.standard_normal(clip.truth.area.shape))
        states = States(np.where(shown[..., None], position, np.nan), shown, np.where(shown, area, 0.0))
        mask = real.mask ^ ((rng.random(real.mask.shape) < level / 1000) & there[:, None, None])
        given = lambda x, y: np.concatenate([y[:1], x[1:]])  # noqa: E731
        s = real.states
        kept = States(given(states.position, s.position), given(states.present, s.present), given(states.area, s.area))
        return Imagined(given(frames, real.frames), given(mask, real.mask), kept)

    return imagine


def brighter(all_clips: Sequence[Clip], index: int) -> Imagined:
    """The true clip, 12 grey levels brighter after the given image."""
    real = all_clips[index].real
    frames = np.clip(real.frames.astype(int) + 12, 0, 255).astype(np.uint8)
    return Imagined(np.concatenate([real.frames[:1], frames[1:]]), real.mask, real.states)


def blurred(all_clips: Sequence[Clip], index: int) -> Imagined:
    """The true clip, blurred by 1.5 pixels after the given image; masks are a pixel larger all around."""
    real = all_clips[index].real
    frames = gaussian_filter(real.frames[1:].astype(float), (0, 0, 1.5, 1.5)).round().astype(np.uint8)
    mask = np.stack([[binary_dilation(m, np.ones((3, 3))) for m in row] for row in real.mask[1:]])
    mask = np.concatenate([real.mask[:1], mask])
    s = real.states
    return Imagined(
        np.concatenate([real.frames[:1], frames]), mask, States(s.position, s.present, s.present * mask.mean((2, 3)))
    )


def copy(all_clips: Sequence[Clip], index: int) -> Imagined:
    """The given image, repeated."""
    real = all_clips[index].real
    return real.at([0] * len(real.frames))


def backwards(all_clips: Sequence[Clip], index: int) -> Imagined:
    """The true clip in reverse."""
    real = all_clips[index].real
    return real.at(range(len(real.frames))[::-1])


def deleted(all_clips: Sequence[Clip], index: int) -> Imagined:
    """The true clip without the first object, which the given image shows."""
    real = all_clips[index].real
    grown = np.stack([[binary_dilation(m, np.ones((3, 3))) for m in row] for row in real.mask])
    anything = grown.any(1)
    behind = np.ma.median(np.ma.masked_array(real.frames, np.repeat(anything[:, None], 3, 1)), 0).filled(0)
    # What is hidden in all images looks like what is beside it in the row.
    near = distance_transform_edt(anything.all(0), sampling=(8, 1), return_distances=False, return_indices=True)
    gone = grown[:, 0] & ~real.mask[:, 1:].any(1)
    gone[0] = False
    frames = np.where(gone[:, None], behind[:, near[0], near[1]], real.frames).astype(np.uint8)
    mask, s = real.mask.copy(), real.states
    mask[1:, 0] = False
    present, position, area = s.present.copy(), s.position.copy(), s.area.copy()
    present[1:, 0], position[1:, 0], area[1:, 0] = False, np.nan, 0.0
    return Imagined(frames, mask, States(position, present, area))


def wrong_action(all_clips: Sequence[Clip], index: int) -> Imagined:
    """The clip under opposite actions."""
    return all_clips[index].wrong


def shuffled(all_clips: Sequence[Clip], index: int) -> Imagined:
    """The true clip of another scene of the task."""
    same = [i for i, c in enumerate(all_clips) if c.task == all_clips[index].task]
    return all_clips[same[(same.index(index) + 1) % len(same)]].real


CLIP_MODELS: dict[str, Model] = {
    "oracle": oracle,
    "slight noise": noisy(8.0),
    "noise": noisy(32.0),
    "brighter": brighter,
    "blurred": blurred,
    "wrong action": wrong_action,
    "copy": copy,
    "backwards": backwards,
    "deleted": deleted,
    "shuffled": shuffled,
}
"""The first is perfect, the others are not; their order depends on the metric."""

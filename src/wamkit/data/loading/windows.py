"""From recorded frames to training batches: windows around a current frame, drawn as a pure function of (seed, step).

Nothing is remembered between batches, so a run resumes exactly by continuing at its step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch

from wamkit.data.embodiment import Embodiment
from wamkit.data.loading.augment import Augment, augmented
from wamkit.types import Batch, Observation, SceneFlow, Spec, WamkitError

PLAIN = Augment()
COLLECT_POINTS = "collect them with `wamkit collect --options point_grid={}`"


class ImageArray(Protocol):
    """What an array of N pictures, uint8 (N, V, 3, H, W), is to those who draw from it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class Frames:
    """All frames of a data set, episodes one after the other: N rows, E episodes.

    images: uint8 (N, V, 3, H, W), memory-mapped, or decoded when they are drawn.   proprio: float32 (N, s).   action, action_expert: float32 (N, a).
    episode: int64 (N,), which episode a row belongs to.    text: E instructions.
    is_demonstration, has_action: bool (E,).   tracks: scene points of the N rows, or None.
    used: bool (E,), which episodes windows are drawn from; None for all.
    said, texts: where an episode has several texts, int64 (N,), which of `texts` holds at a row; None: its episode's `text`.
    robot: what makes one space of the numbers of several robots (`data.embodiment`); None where windows are in the robot's own.
    frame_stride: rows that go by in a step of the model; not 1 only for video without actions whose rate is another than the robots'.
    """

    images: ImageArray
    proprio: np.ndarray
    action: np.ndarray
    action_expert: np.ndarray
    episode: np.ndarray
    text: tuple[str, ...]
    is_demonstration: np.ndarray
    has_action: np.ndarray
    tracks: SceneFlow | None = None
    used: np.ndarray | None = None
    text_index: np.ndarray | None = None
    texts: tuple[str, ...] = ()
    embodiment: Embodiment | None = None
    frame_stride: float = 1.0

    def __len__(self) -> int:
        return len(self.episode)

    def windows(self, spec: Spec, **more: Any) -> Windows:
        """What a trainer draws batches from."""
        return Windows(self, spec, **more)

    def text_at(self, row: int) -> str:
        """The instruction at a row."""
        return self.text[self.episode[row]] if self.text_index is None else self.texts[self.text_index[row]]

    def ends(self) -> np.ndarray:
        """int64 (N,): one past the last row of each row's episode."""
        last = np.flatnonzero(np.diff(self.episode, append=-1))
        return last[np.searchsorted(last, np.arange(len(self)))] + 1

    def rows(self) -> np.ndarray:
        """int64: the rows of the episodes that are used."""
        return np.arange(len(self)) if self.used is None else np.flatnonzero(self.used[self.episode])

    def labelled(self, labelled: int, action_free: int) -> Frames:
        """Only the first `labelled` demonstrations, and the next `action_free` as video without actions.

        Raises WamkitError where there are not so many.
        """
        demos = np.flatnonzero(self.is_demonstration & self.has_action)
        if labelled < 1 or labelled + action_free > len(demos):
            raise WamkitError(
                f"{labelled} labelled and {action_free} action-free demonstrations were asked for, at least 1 labelled; there are {len(demos)}"
            )
        kept, has_action = demos[: labelled + action_free], self.has_action.copy()
        has_action[kept[labelled:]] = False
        used = np.isin(np.arange(len(self.text)), kept)
        return replace(self, used=used, has_action=has_action)


class Windows:
    """Batches of windows over `frames`.

    A window is the current frame t, the frames at t + spec.frame_offsets and t + spec.past_offsets, and the actions
    t .. t + spec.chunk - 1. Beyond the ends of an episode, frames and actions repeat the outermost one and are marked
    invalid.
    `features` are arrays with one row for each of the N windows, handed out with the batches.
    """

    def __init__(self, frames: Frames, spec: Spec, *, seed: int, batch_size: int, augment: Augment = PLAIN):
        self._rows = frames.rows()
        if not len(self._rows):
            raise WamkitError("the data set has no frames to train on")
        if spec.point_grid and (frames.tracks is None or frames.tracks.points.shape[1] != spec.point_grid**2):
            raise WamkitError(
                f"the frames have no grid of {spec.point_grid} x {spec.point_grid} scene points: {COLLECT_POINTS.format(spec.point_grid)}"
            )
        self.frames, self.spec, self.seed, self.batch_size, self.augment = frames, spec, seed, batch_size, augment
        self.features: dict[str, np.ndarray] = {}
        self._end = frames.ends()
        self._first = np.searchsorted(frames.episode, frames.episode)
        self._order = lru_cache(maxsize=2)(self._permutation)
        self._ago, self._ahead = (_rows(o, frames.frame_stride) for o in (spec.past_offsets, (0, *spec.frame_offsets)))

    names: tuple[str, ...] = ()
    """Of the data sets that `Batch.source` numbers; here there is one, which needs none."""

    @property
    def decodes(self) -> bool:
        """Whether drawing a batch means decoding videos."""
        return not isinstance(self.frames.images, np.ndarray)

    def __len__(self) -> int:
        """How many windows there are; the rows of `features`."""
        return len(self.frames)

    def _permutation(self, epoch: int) -> np.ndarray:
        return self._rows[np.random.default_rng((self.seed, 0, epoch)).permutation(len(self._rows))]

    def indices(self, step: int) -> np.ndarray:
        """The current frames (int64 (B,)) of batch `step`: every frame once an epoch, epochs shuffled independently."""
        return self.nth(step * self.batch_size + np.arange(self.batch_size))

    def nth(self, k: np.ndarray) -> np.ndarray:
        """The current frames of the draws number k, an int64 array."""
        epoch, place = np.divmod(k, len(self._rows))
        return np.array([self._order(int(e))[p] for e, p in zip(epoch, place, strict=True)])

    def batch(self, step: int) -> Batch:
        """Batch number `step`, always the same for one seed."""
        batch = self.gather(self.indices(step))
        return augmented(batch, self.augment, np.random.default_rng((self.seed, 1, step))) if self.augment else batch

    def gather(self, now: np.ndarray) -> Batch:
        """The windows whose current frames are `now` (int64 (B,)), as they are."""
        f, end = self.frames, self._end[now][:, None]
        first = self._first[now][:, None]
        ago, at = now[:, None] + self._ago, now[:, None] + self._ahead
        steps = now[:, None] + np.arange(self.spec.chunk)
        earlier, P = np.maximum(ago, first), len(self.spec.past_offsets)
        images = f.images[np.concatenate([earlier, np.minimum(at, end - 1)], 1)]
        clipped, episode = np.minimum(steps, end - 1), f.episode[now]
        tensor = torch.from_numpy
        numbers = [f.proprio[now], f.proprio[earlier], f.action[clipped], f.action_expert[clipped]]
        seen: dict[str, Any] = {}
        if (robot := f.embodiment) is not None:
            state, past, *actions = numbers
            numbers = [robot.encode_state(x) for x in (state, past)] + [robot.encode_action(x, state) for x in actions]
            images = robot.to_model_views(images)
            rows = (len(now), -1)
            seen = {
                "action_dim_valid": tensor(robot.has_action()).expand(*rows).clone(),
                "view_valid": tensor(robot.has_view()).expand(*rows).clone(),
            }
        proprio, past_proprio, action, expert = map(tensor, numbers)
        if self.spec.point_grid:
            then = np.minimum(at[:, 1:], end - 1)
            seen |= {"point_cloud": tensor(f.tracks.points[now]), "point_flow": tensor(f.tracks.flow(now, then))}
        return Batch(
            obs=tensor(images[:, P]),
            future=tensor(images[:, P + 1 :]),
            frame_valid=tensor(at[:, 1:] < end),
            proprio=proprio,
            action=action,
            action_expert=expert,
            action_valid=tensor(steps < end),
            past=tensor(images[:, :P]),
            past_proprio=past_proprio,
            past_valid=tensor(ago >= first),
            text=[f.text_at(row) for row in now],
            has_action=tensor(f.has_action[episode]),
            is_demonstration=tensor(f.is_demonstration[episode]),
            features={k: tensor(v[now]) for k, v in self.features.items()},
            **seen,
        )


def _rows(offsets: Sequence[int], frame_stride: float) -> np.ndarray:
    """Rows between frames that are `offsets` steps apart, int64; what lies ahead or behind stays so, however slow a video is."""
    steps = np.array(offsets, np.int64)
    return np.sign(steps) * np.maximum(np.abs(np.rint(steps * frame_stride)).astype(np.int64), steps != 0)


class Prefetcher:
    """Makes batches in background threads, `depth` ahead, and gives them in order; `waited_s` is the time that the consumer waited.

    An exception of `make` is raised where its batch would have come.
    """

    def __init__(self, make: Callable[[int], Batch], first: int, last: int, depth: int = 3, threads: int = 1):
        self.waited_s = 0.0
        self._make, self._steps = make, iter(range(first, last))
        self._pool = ThreadPoolExecutor(threads)
        self._ahead = deque(self._pool.submit(make, k) for k in islice(self._steps, max(depth, threads)))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._ahead:
            raise StopIteration
        start = time.perf_counter()
        batch = self._ahead.popleft().result()
        self.waited_s += time.perf_counter() - start
        self._ahead.extend(self._pool.submit(self._make, k) for k in islice(self._steps, 1))
        return batch

    def close(self) -> None:
        """Stops the threads; batches made ahead are dropped (they can be made again)."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def window_starts(frames: Frames, reach: int, stride: int) -> np.ndarray:
    """Current frames, every `stride` of each episode, whose window of `reach` steps lies inside the episode (int64)."""
    first = np.searchsorted(frames.episode, frames.episode)
    index = np.arange(len(frames))
    return index[(index + reach < frames.ends()) & ((index - first) % stride == 0)]


def shuffled_within(groups: Sequence[str], seed: int) -> np.ndarray:
    """A permutation that moves every row to another row of its own group (a group of one stays as it is)."""
    rng, out = np.random.default_rng(seed), np.arange(len(groups))
    names = np.array(groups)
    for group in sorted(set(groups)):
        rows = rng.permutation(np.flatnonzero(names == group))
        out[rows] = np.roll(rows, 1)
    return out


def observations(batch: Batch) -> list[Observation]:
    """What a batch's rows see, as observations."""
    numbers = (batch.obs, batch.proprio, batch.past, batch.past_proprio, batch.past_valid)
    points = [None] * len(batch) if batch.point_cloud is None else batch.point_cloud.numpy()
    return [
        Observation(o, p, t, tuple(Observation(*e, t) if v else None for *e, v in zip(*past, strict=True)), x)
        for t, x, o, p, *past in zip(batch.text, points, *(x.numpy() for x in numbers), strict=True)
    ]

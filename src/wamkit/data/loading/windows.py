"""Training batches: windows around a current frame, drawn as a pure function of (seed, step).

No state is kept between batches, so a run resumes exactly by continuing at its step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
ALL = slice(None)
COLLECT_POINTS = "collect them with `wamkit collect --options point_grid={}`"


class ImageArray(Protocol):
    """An array of N images, uint8 (N, V, 3, H, W), that is indexed with int64 arrays."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class Frames:
    """All frames of a data set, episode after episode: N rows, E episodes.

    images: uint8 (N, V, 3, H, W), memory-mapped, or decoded on access.
    proprio: float32 (N, s).
    action, action_expert: float32 (N, a).
    episode: int64 (N,), the episode of each row.
    text: E instructions.
    is_demonstration, has_action: bool (E,).
    scene_flow: scene points of the N rows, or None.
    used: bool (E,), the episodes from which windows are drawn; None for all.
    text_index: int64 (N,), index into `texts` of each row's text; None where a row has its episode's `text`.
    texts: all texts, for `text_index`.
    embodiment: converts windows into the model's space (`data.embodiment`); None for windows in the robot's own units.
    has_view: bool (E, V), the views that each episode has; images of the others are zeros. None where all have all.
    frame_stride: rows in one step of the model. It differs from 1 only in video without actions at another frame rate.
    """

    images: ImageArray
    proprio: np.ndarray
    action: np.ndarray
    action_expert: np.ndarray
    episode: np.ndarray
    text: tuple[str, ...]
    is_demonstration: np.ndarray
    has_action: np.ndarray
    scene_flow: SceneFlow | None = None
    used: np.ndarray | None = None
    text_index: np.ndarray | None = None
    texts: tuple[str, ...] = ()
    embodiment: Embodiment | None = None
    frame_stride: float = 1.0
    has_view: np.ndarray | None = None

    def __len__(self) -> int:
        """N, the number of rows."""
        return len(self.episode)

    def windows(self, spec: Spec, **more: Any) -> Windows:
        """The windows over these frames, from which a trainer draws batches. The arguments are those of `Windows`."""
        return Windows(self, spec, **more)

    def text_at(self, row: int) -> str:
        """The text at a row."""
        return self.text[self.episode[row]] if self.text_index is None else self.texts[self.text_index[row]]

    def ends(self) -> np.ndarray:
        """int64 (N,): one past the last row of each row's episode."""
        last = self.last_rows()
        return last[np.searchsorted(last, np.arange(len(self)))] + 1

    def last_rows(self) -> np.ndarray:
        """int64, ascending: the last row of each episode that has any."""
        return np.flatnonzero(np.diff(self.episode, append=-1))

    def views_seen(self) -> np.ndarray:
        """The views of the model that each episode shows, bool (E, V)."""
        every = np.ones((len(self.text), self.images.shape[1]), bool) if self.has_view is None else self.has_view
        return every if self.embodiment is None else self.embodiment.to_model_mask(every)

    def rows(self) -> np.ndarray:
        """The rows of the episodes in use, int64."""
        return np.arange(len(self)) if self.used is None else np.flatnonzero(self.used[self.episode])

    def chosen(self) -> np.ndarray:
        """The episodes in use, int64."""
        return np.arange(len(self.text)) if self.used is None else np.flatnonzero(self.used)

    def lengths(self) -> np.ndarray:
        """The rows of each episode in use, int64."""
        return np.bincount(self.episode, minlength=len(self.text))[self.chosen()]

    def only(self, episodes: Iterable[int]) -> Frames:
        """The same frames, of which those episodes that are in use and among `episodes` are in use."""
        number = np.arange(len(self.text))
        return replace(self, used=np.isin(number, self.chosen()) & np.isin(number, np.fromiter(episodes, np.int64)))

    def draw(self, count: int, seed: int, among: np.ndarray | None = None) -> np.ndarray:
        """`count` of the episodes in use, drawn without replacement, int64 ascending.

        among: those to draw from; all in use if not given.

        Raises WamkitError where none would be left.
        """
        chosen = self.chosen()
        if count >= len(chosen):
            raise WamkitError(f"held_out = {count}: there are {len(chosen)} episodes, so none is left to learn from")
        return np.sort(np.random.default_rng(seed).permutation(chosen if among is None else among)[:count])

    def labelled(self, labelled: int, action_free: int) -> Frames:
        """The same frames, of which only the first demonstrations are in use.

        labelled: demonstrations with actions, at least 1.
        action_free: the demonstrations after those, as video without actions.

        Raises WamkitError if there are too few.
        """
        demos = self.chosen()[(self.is_demonstration & self.has_action)[self.chosen()]]
        if labelled < 1 or labelled + action_free > len(demos):
            raise WamkitError(
                f"{labelled} labelled and {action_free} action-free demonstrations were requested, of which at least 1 "
                f"must be labelled; there are {len(demos)}"
            )
        chosen, has_action = demos[: labelled + action_free], self.has_action.copy()
        has_action[chosen[labelled:]] = False
        used = np.isin(np.arange(len(self.text)), chosen)
        return replace(self, used=used, has_action=has_action)


class Windows:
    """Batches of windows over `frames`.

    A window is the current frame t, the frames at t + spec.frame_offsets and t + spec.past_offsets, and the actions
    t to t + spec.chunk - 1. Beyond the ends of an episode, frames and actions repeat the outermost one and are marked
    invalid.

    seed: of the order of windows and of augmentation.
    augment: augmentation of the images; see `augment`.

    The attribute `features` may be set to arrays with one row for each of the N windows, which then come with batches.
    """

    def __init__(self, frames: Frames, spec: Spec, *, seed: int, batch_size: int, augment: Augment = PLAIN):
        self._rows = frames.rows()
        if not len(self._rows):
            raise WamkitError("the data set has no frames to train on")
        if spec.point_grid and (frames.scene_flow is None or frames.scene_flow.points.shape[1] != spec.point_grid**2):
            raise WamkitError(
                f"the frames have no grid of {spec.point_grid} x {spec.point_grid} scene points: "
                f"{COLLECT_POINTS.format(spec.point_grid)}"
            )
        self.frames, self.spec, self.seed, self.batch_size, self.augment = frames, spec, seed, batch_size, augment
        self.features: dict[str, np.ndarray] = {}
        self._seen = frames.views_seen()
        self._last = frames.last_rows()
        self._order = lru_cache(maxsize=2)(self._permutation)
        self._ago, self._ahead = (_rows(o, frames.frame_stride) for o in (spec.past_offsets, (0, *spec.frame_offsets)))

    names: tuple[str, ...] = ()
    """Names of the data sets by `Batch.source`; empty for a single one."""

    @property
    def decodes(self) -> bool:
        """True if drawing a batch decodes videos."""
        return not isinstance(self.frames.images, np.ndarray)

    def __len__(self) -> int:
        """The number of windows, which is the number of rows of `features`."""
        return len(self.frames)

    def _permutation(self, epoch: int) -> np.ndarray:
        return self._rows[np.random.default_rng((self.seed, 0, epoch)).permutation(len(self._rows))]

    def indices(self, step: int) -> np.ndarray:
        """The current frames of batch `step`, int64 (B,): every frame once an epoch, epochs shuffled independently."""
        return self.nth(step * self.batch_size + np.arange(self.batch_size))

    def nth(self, k: np.ndarray) -> np.ndarray:
        """The current frames of the draws number `k`, an int64 array."""
        epoch, place = np.divmod(k, len(self._rows))
        return np.array([self._order(int(e))[p] for e, p in zip(epoch, place, strict=True)])

    def batch(self, step: int, rows: slice = ALL) -> Batch:
        """Batch number `step`, always the same for the same seed; or some `rows` of it, as they are in the whole."""
        return drawn(self, step, rows)

    def gather(self, now: np.ndarray) -> Batch:
        """The windows with current frames `now`, int64 (B,), without augmentation."""
        f, end = self.frames, self._last[np.searchsorted(self._last, now)][:, None] + 1
        first = np.searchsorted(f.episode, f.episode[now])[:, None]
        ago, at = now[:, None] + self._ago, now[:, None] + self._ahead
        steps = now[:, None] + np.arange(self.spec.chunk)
        earlier, P = np.maximum(ago, first), len(self.spec.past_offsets)
        images = f.images[np.concatenate([earlier, np.minimum(at, end - 1)], 1)]
        clipped, episode = np.minimum(steps, end - 1), f.episode[now]
        tensor = torch.from_numpy
        vectors = [f.proprio[now], f.proprio[earlier], f.action[clipped], f.action_expert[clipped]]
        more: dict[str, Any] = {}
        if (embodiment := f.embodiment) is not None:
            state, past, *actions = vectors
            vectors = [embodiment.encode_state(x) for x in (state, past)]
            vectors += [embodiment.encode_action(x, state) for x in actions]
            images = embodiment.to_model_views(images)
            more["action_dim_valid"] = tensor(embodiment.has_action()).expand(len(now), -1).clone()
        if embodiment is not None or f.has_view is not None:
            more["view_valid"] = tensor(self._seen[episode])
        proprio, past_proprio, action, expert = map(tensor, vectors)
        if self.spec.point_grid:
            then = np.minimum(at[:, 1:], end - 1)
            more |= {
                "point_cloud": tensor(f.scene_flow.points[now]),
                "point_flow": tensor(f.scene_flow.flow(now, then)),
            }
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
            **more,
        )


def drawn(windows: Any, step: int, rows: slice) -> Batch:
    """Rows of batch number `step`, augmented, of windows or of a mixture of them."""
    batch = windows.gather(windows.indices(step)[rows])
    if not windows.augment:
        return batch
    return augmented(batch, windows.augment, np.random.default_rng((windows.seed, 1, step)), windows.batch_size, rows)


def _rows(offsets: Sequence[int], frame_stride: float) -> np.ndarray:
    """Rows between frames `offsets` steps apart, int64. However slow a video, a nonzero offset is at least one row."""
    steps = np.array(offsets, np.int64)
    return np.sign(steps) * np.maximum(np.abs(np.rint(steps * frame_stride)).astype(np.int64), steps != 0)


class Prefetcher:
    """An iterator over batches that background threads make ahead of time.

    make: makes batch number k, for k from `first` to `last` - 1.
    depth: batches made ahead.
    threads: number of threads.

    An exception in `make` is raised in place of its batch. The attribute `waited_s` is the time, in seconds, that the
    consumer has waited.
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
        """Stops the threads and drops the batches made ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def window_starts(frames: Frames, reach: int, stride: int) -> np.ndarray:
    """Every `stride`-th frame of each episode in use whose window of `reach` steps lies inside the episode, int64."""
    first = np.searchsorted(frames.episode, frames.episode)
    index = np.arange(len(frames))
    used = True if frames.used is None else frames.used[frames.episode]
    return index[used & (index + reach < frames.ends()) & ((index - first) % stride == 0)]


def shuffled_within(groups: Sequence[str], seed: int) -> np.ndarray:
    """A permutation, int64, that moves every row to another row of its group. A group of one stays in place."""
    rng, out = np.random.default_rng(seed), np.arange(len(groups))
    names = np.array(groups)
    for group in sorted(set(groups)):
        rows = rng.permutation(np.flatnonzero(names == group))
        out[rows] = np.roll(rows, 1)
    return out


def observations(batch: Batch) -> list[Observation]:
    """The rows of a batch as observations."""
    arrays = (batch.obs, batch.proprio, batch.past, batch.past_proprio, batch.past_valid)
    points, views = ([None] * len(batch) if x is None else x.numpy() for x in (batch.point_cloud, batch.view_valid))
    return [
        Observation(o, p, t, tuple(Observation(*e, t) if v else None for *e, v in zip(*past, strict=True)), x, s)
        for t, x, s, o, p, *past in zip(batch.text, points, views, *(x.numpy() for x in arrays), strict=True)
    ]

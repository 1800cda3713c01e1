"""Several data sets as one: `wamkit mix` writes which and how much of each, training draws from them all.

Which data set row k of training comes from, and which of its windows, is a pure function of (seed, k): the same after a resume, and for
any division of batches among workers. Shares are met almost exactly at every moment, not on average: the k-th draw lies at frac(u + k phi),
phi the golden ratio, whose points never leave a gap (Weyl); within a data set every window comes once an epoch.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from wamkit import config as cfg
from wamkit.data.embodiment import Embodiment, Normaliser, SourceData, fit
from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.format.store import Decoder, Store, StoreError
from wamkit.data.loading.augment import Augment, augmented
from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.lazy_frames import CACHE_GB
from wamkit.data.loading.windows import PLAIN, Frames, Windows
from wamkit.types import Batch, Spec, WamkitError

_PHI = (np.sqrt(5.0) - 1) / 2
_BLOCK = 1 << 16  # draws that are counted at once


@dataclass(frozen=True)
class Mix:
    """Writes which data sets are trained on together, and how much of each; shows what that comes to."""

    out: Path
    """The file to write, *.json."""
    by: Literal["sample", "episode", "hour"] = "sample"
    """What a weight is of: the data set's share of all samples, or what one of its episodes, or one of its hours, counts."""
    size: tuple[int, int] = (64, 64)
    """Height and width that all pictures are resized to."""
    views: tuple[str, ...] = ("scene",)
    """The model's views, by the roles of cameras: scene, wrist, ego; scene+ego is one view, of whichever a data set has."""
    relative: bool = True
    """Whether absolute end-effector poses become relative to where the robot was when a chunk began."""


@dataclass(frozen=True)
class SourceConfig:
    """One data set of a mixture."""

    data: str
    """Its folder, relative to the mixture's file."""
    weight: float = 1.0
    name: str = ""
    """What it is called in logs; the folder's name if empty."""
    demonstrations: tuple[int, int] | None = None
    """Only these of its demonstrations, from the first number up to, not including, the second; off-expert episodes are left out then."""
    actions: bool = True
    """Whether its actions are learned from; if not, it is video, and its actions are not looked at."""

    def __post_init__(self) -> None:
        cfg.check_bounds(self, weight=(1e-9, inf))
        if self.demonstrations is not None and not 0 <= self.demonstrations[0] < self.demonstrations[1]:
            raise cfg.ConfigError(
                f"{self.data}: demonstrations {self.demonstrations}: the first must be below the second"
            )

    @property
    def label(self) -> str:
        """Its name, or the folder's."""
        return self.name or Path(self.data).name + ("" if self.actions else "-video")


@dataclass(frozen=True)
class MixtureConfig:
    """Which data sets are trained on together, and how."""

    sources: tuple[SourceConfig, ...]
    by: Literal["sample", "episode", "hour"] = "sample"
    """What a weight is of: the data set's share of all samples, or what one of its episodes, or one of its hours, counts."""
    size: tuple[int, int] = (64, 64)
    """Height and width that all pictures are resized to."""
    views: tuple[str, ...] = ("scene",)
    """The model's views, by the roles of cameras: scene, wrist, ego; scene+ego is one view, of whichever a data set has."""
    relative: bool = True
    """Whether absolute end-effector poses become relative to where the robot was when a chunk began."""
    normalisers: Mapping[str, Normaliser] = field(default_factory=dict)
    """By a field's name or kind, where the defaults do not fit."""

    def __post_init__(self) -> None:
        names = self.names
        if not names or len(set(names)) < len(names):
            raise cfg.ConfigError(f"sources {names}: there must be some, each with a name of its own")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(s.label for s in self.sources)


@dataclass(frozen=True)
class Mixture:
    """The frames of several data sets, their robots known to each other. shares: (S,), of all samples; sum 1."""

    names: tuple[str, ...]
    frames: tuple[Frames, ...]
    shares: np.ndarray
    fps: float

    @property
    def embodiments(self) -> dict[str, Embodiment]:
        """By the data sets' names."""
        return {n: f.embodiment for n, f in zip(self.names, self.frames, strict=True) if f.embodiment is not None}

    def windows(self, spec: Spec, **more: Any) -> MixedWindows:
        """What a trainer draws batches from."""
        return MixedWindows(self, spec, **more)


def divided(frames: Frames, share: float, fps: float) -> Mixture:
    """One data set as two, so that its episodes with actions give `share` of all samples, however many there are without."""
    used = np.ones(len(frames.has_action), bool) if frames.used is None else frames.used
    parts = tuple(replace(frames, used=used & chosen) for chosen in (frames.has_action, ~frames.has_action))
    return Mixture(("labelled", "action_free"), parts, np.array([share, 1 - share]), fps)


class MixedWindows:
    """Batches of a mixture; see `Windows`, whose interface this is. Rows of `features` are the data sets' one after the other."""

    def __init__(self, mixture: Mixture, spec: Spec, *, seed: int, batch_size: int, augment: Augment = PLAIN):
        self.names, self.seed, self.batch_size, self.augment = mixture.names, seed, batch_size, augment
        self.parts = [
            Windows(f, spec, seed=_seed(seed, i), batch_size=batch_size) for i, f in enumerate(mixture.frames)
        ]
        self.features: dict[str, np.ndarray] = {}
        self._starts = np.cumsum([0, *(len(p) for p in self.parts)])
        self._edges = np.cumsum(mixture.shares)[:-1]
        self._offset = np.random.default_rng((seed, 2)).random()
        self._counts, self._counting = [np.zeros(len(self.parts), np.int64)], threading.Lock()

    @property
    def decodes(self) -> bool:
        """Whether drawing a batch means decoding videos."""
        return any(part.decodes for part in self.parts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def sources(self, k: np.ndarray) -> np.ndarray:
        """Which data set the draws number k come from, int64."""
        return np.searchsorted(self._edges, (self._offset + k * _PHI) % 1.0, side="right")

    def _before(self, block: int) -> np.ndarray:
        """How many of the draws before the block each data set had, int64 (S,); kept, since it is counted from the start."""
        with self._counting:  # batches are made in several threads
            while len(self._counts) <= block:
                drawn = self.sources((len(self._counts) - 1) * _BLOCK + np.arange(_BLOCK))
                self._counts.append(self._counts[-1] + np.bincount(drawn, minlength=len(self.parts)))
            return self._counts[block]

    def indices(self, step: int) -> np.ndarray:
        """The current frames (int64 (B,)) of batch `step`, numbered through all data sets."""
        first = step * self.batch_size
        block = first // _BLOCK
        drawn = self.sources(np.arange(block * _BLOCK, first + self.batch_size))
        out = np.empty(self.batch_size, np.int64)
        for i, part in enumerate(self.parts):
            mine = drawn == i
            number = self._before(block)[i] + np.cumsum(mine) - 1
            here = np.flatnonzero(mine[-self.batch_size :])
            out[here] = self._starts[i] + part.nth(number[-self.batch_size :][here])
        return out

    def batch(self, step: int) -> Batch:
        """Batch number `step`, always the same for one seed."""
        batch = self.gather(self.indices(step))
        return augmented(batch, self.augment, np.random.default_rng((self.seed, 1, step))) if self.augment else batch

    def gather(self, now: np.ndarray) -> Batch:
        """The windows whose current frames are `now`, numbered through all data sets."""
        owner = np.searchsorted(self._starts, now, side="right") - 1
        batches, order = [], []
        for i, part in enumerate(self.parts):
            here = np.flatnonzero(owner == i)
            if len(here):
                batch = part.gather(now[here] - self._starts[i])
                batch.source = torch.full((len(here),), i)
                batches.append(batch)
                order.append(here)
        out = Batch.cat(batches).rows(torch.from_numpy(np.argsort(np.concatenate(order))))
        out.features = {k: torch.from_numpy(v[now]) for k, v in self.features.items()}
        return out


def _seed(seed: int, source: int) -> int:
    return int(np.random.SeedSequence((seed, source)).generate_state(1, np.uint64)[0] >> 1)


# ------------------------------------------------------------------------------------------------------------------ files


def parse_sources(words: Sequence[str], out: Path) -> tuple[SourceConfig, ...]:
    """FOLDER:WEIGHT:FIRST-LAST:video, as `wamkit mix` is given them, all but the folder optional; folders are written relative to `out`.

    Raises ConfigError for other words.
    """
    sources = []
    for word in words:
        folder, *said = word.split(":")
        options: dict[str, Any] = {}
        for part in said:
            numbers = part.split("-")
            if part == "video":
                options["actions"] = False
            elif len(numbers) == 2 and all(n.isdecimal() for n in numbers):
                options["demonstrations"] = (int(numbers[0]), int(numbers[1]))
            else:
                try:
                    options["weight"] = float(part)
                except ValueError as error:
                    how = "as in data/umi:0.3, data/demos:0.5:0-10 or data/demos:0.5:10-60:video"
                    raise cfg.ConfigError(f"'{word}' is not FOLDER:WEIGHT:FIRST-LAST:video, {how}") from error
        sources.append(SourceConfig(os.path.relpath(folder, out.parent), **options))
    return tuple(sources)


def open_mixture(
    path: Path, chunk: int, cache_gb: float = CACHE_GB, decoder: Decoder = "pyav"
) -> tuple[Mixture, MixtureConfig]:
    """The mixture that a file describes, its data sets opened. chunk: steps of the action chunks that statistics are of.
    cache_gb: of decoded pictures, for all data sets together; each gets as much of it as it has of the samples.
    decoder: of their films.

    Raises ConfigError for a file that is damaged, StoreError naming the data set that cannot be used and why.
    """
    config = cfg.load_json(MixtureConfig, path)
    stores = [Store.open(path.parent / source.data, decoder) for source in config.sources]
    chosen = [_chosen(store, source) for store, source in zip(stores, config.sources, strict=True)]
    shares = _shares(config, stores, chosen)
    fps = stores[int(np.argmax(shares))].layout.fps
    frames, numbers = [], []
    for store, source, episodes, share in zip(stores, config.sources, chosen, shares, strict=True):
        metadata = load_metadata(store.root)
        if metadata is None:
            raise StoreError(
                f"{store.root} does not say what its numbers mean; a mixture needs meta/wamkit.json, which `wamkit import` and `wamkit collect` write"
            )
        f, _ = open_frames(store, config.size, cache_gb * share)
        f = replace(f, used=np.isin(np.arange(len(store)), episodes), has_action=f.has_action & source.actions)
        acts, rows = bool(f.has_action.any()), f.rows()
        # A robot's step is one of its own actions; of video without actions, as many pictures are a step as take its time.
        frames.append(f if acts else replace(f, frame_stride=store.layout.fps / fps))
        action = f.action[rows] if acts else f.action[rows, :0]
        numbers.append(SourceData(metadata, f.proprio[rows], action, f.episode[rows], store.cameras))
    embodiments = fit(numbers, config.views, relative=config.relative, chunk=chunk, normalisers=config.normalisers)
    robotic = tuple(replace(f, embodiment=r) for f, r in zip(frames, embodiments, strict=True))
    return Mixture(config.names, robotic, shares, fps), config


def _chosen(store: Store, source: SourceConfig) -> list[int]:
    """The episodes of a data set that its source names."""
    if source.demonstrations is None:
        return list(range(len(store)))
    (first, last), demos = source.demonstrations, [m.index for m in store.episodes if m.is_demonstration]
    if last > len(demos):
        raise StoreError(f"{store.root} holds {len(demos)} demonstrations; {first} to {last} were asked for")
    return demos[first:last]


def _shares(config: MixtureConfig, stores: Sequence[Store], chosen: Sequence[Sequence[int]]) -> np.ndarray:
    """What each data set gives of all samples, (S,)."""
    amounts = {
        "sample": [1.0] * len(stores),
        "episode": [len(c) for c in chosen],
        "hour": [
            sum(s.episodes[i].length for i in c) / s.layout.fps / 3600 for s, c in zip(stores, chosen, strict=True)
        ],
    }[config.by]
    weighted = np.array([s.weight for s in config.sources]) * amounts
    return weighted / weighted.sum()


def mixture_spec(
    mixture: Mixture, config: MixtureConfig, chunk: int, frame_offsets: tuple[int, ...], past_offsets: tuple[int, ...]
) -> Spec:
    """Shapes and clocks of the model that a mixture trains. Raises WamkitError where pictures cannot be cut into 16x16 cells."""
    if any(n % 16 for n in config.size):
        raise WamkitError(f"size {config.size}: height and width must be multiples of 16")
    robot = next(iter(mixture.embodiments.values()))
    return Spec(
        cameras=config.views,
        height=config.size[0],
        width=config.size[1],
        proprio_dim=robot.state_size,
        action_dim=robot.action_size,
        chunk=chunk,
        frame_offsets=frame_offsets,
        past_offsets=past_offsets,
        fps=mixture.fps,
    )

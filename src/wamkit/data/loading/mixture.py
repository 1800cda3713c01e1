"""Mixtures: training on several data sets, each with a share of the samples. `wamkit mix` writes them.

The data set and the window of row k of training are a pure function of (seed, k), so they are the same after a resume
and for any division of batches among workers. Shares hold at every moment, not only on average: draw k lies at
frac(u + k phi), with phi the golden ratio, a sequence without gaps (Weyl). Within a data set every window comes once an
epoch.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from wamkit import config as cfg
from wamkit.data.description import described, unknown
from wamkit.data.embodiment import Embodiment, SourceData, fit
from wamkit.data.format.hub import downloaded, pinned
from wamkit.data.format.store import Decoder, Store, StoreError
from wamkit.data.loading.augment import Augment
from wamkit.data.loading.dataset import check_size, open_frames
from wamkit.data.loading.lazy_frames import CACHE_GB
from wamkit.data.loading.mixture_config import MixtureConfig, SourceConfig
from wamkit.data.loading.windows import ALL, PLAIN, Frames, Windows, drawn
from wamkit.hub.names import remote_name
from wamkit.metadata import DatasetMetadata
from wamkit.nn.scaling import Normalisation
from wamkit.types import Batch, Spec

_PHI = (np.sqrt(5.0) - 1) / 2
_BLOCK = 1 << 16  # draws counted at a time


@dataclass(frozen=True)
class Mixture:
    """The frames of S data sets, whose embodiments share one vector space.

    names, frames: of the data sets.
    shares: float (S,), of all samples; their sum is 1.
    fps: control steps a second of the model, those of the data set with the largest share.
    """

    names: tuple[str, ...]
    frames: tuple[Frames, ...]
    shares: np.ndarray
    fps: float

    @property
    def embodiments(self) -> dict[str, Embodiment]:
        """The embodiments by data set name."""
        return {n: f.embodiment for n, f in zip(self.names, self.frames, strict=True) if f.embodiment is not None}

    def windows(self, spec: Spec, **more: Any) -> MixedWindows:
        """The windows over all data sets, from which a trainer draws batches. Arguments as in `MixedWindows`."""
        return MixedWindows(self, spec, **more)


def divided(frames: Frames, share: float, fps: float) -> Mixture:
    """A data set as a mixture of two, in which the episodes with actions have `share` of all samples."""
    used = np.ones(len(frames.has_action), bool) if frames.used is None else frames.used
    parts = tuple(replace(frames, used=used & chosen) for chosen in (frames.has_action, ~frames.has_action))
    return Mixture(("labelled", "action_free"), parts, np.array([share, 1 - share]), fps)


class MixedWindows:
    """Batches of windows over a mixture, with the interface of `Windows`.

    Windows are numbered through all data sets, one data set after the other, and so are the rows of `features`.
    """

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
        """True if drawing a batch decodes videos."""
        return any(part.decodes for part in self.parts)

    def __len__(self) -> int:
        """The number of windows of all data sets."""
        return int(self._starts[-1])

    def sources(self, k: np.ndarray) -> np.ndarray:
        """The data sets of the draws number `k`, int64."""
        return np.searchsorted(self._edges, (self._offset + k * _PHI) % 1.0, side="right")

    def _before(self, block: int) -> np.ndarray:
        """Draws that each data set had before a block, int64 (S,). Cached, because it is counted from the start."""
        with self._counting:  # batches are made in several threads
            while len(self._counts) <= block:
                drawn = self.sources((len(self._counts) - 1) * _BLOCK + np.arange(_BLOCK))
                self._counts.append(self._counts[-1] + np.bincount(drawn, minlength=len(self.parts)))
            return self._counts[block]

    def indices(self, step: int) -> np.ndarray:
        """The current frames of batch `step`, int64 (B,), numbered through all data sets."""
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

    def batch(self, step: int, rows: slice = ALL) -> Batch:
        """Batch number `step`, always the same for the same seed; or some `rows` of it, as they are in the whole."""
        return drawn(self, step, rows)

    def gather(self, now: np.ndarray) -> Batch:
        """The windows with current frames `now`, int64 (B,), numbered through all data sets."""
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


def read_mixture(path: Path) -> MixtureConfig:
    """The mixture that a file describes, with the commits that its data sets on the Hub are at now.

    Raises ConfigError for a damaged file.
    """
    config = cfg.load_json(MixtureConfig, path)
    return replace(config, sources=tuple(replace(s, data=pinned(s.data)) for s in config.sources))


def open_mixture(
    path: Path,
    chunk: int,
    cache_gb: float = CACHE_GB,
    decoder: Decoder = "pyav",
    normalisation: Normalisation = "mean_std",
    size: tuple[int, int] | None = None,
    episodes: Mapping[str, int | None] = MappingProxyType({}),
) -> tuple[Mixture, MixtureConfig]:
    """Opens the mixture described by a file, and its data sets.

    size: (H, W) to resize images to, in place of the size that the file names.

    The description that is returned names data sets on the Hub with the commits that they are at now.
    chunk: steps of the action chunks from which statistics are computed.
    cache_gb: budget of the frame caches of all data sets together. Each gets its share of the samples.
    decoder: decodes the videos.
    normalisation: of dimensions without a normaliser of their own.
    episodes: use only the first so many episodes of a data set, by its name; None for all.

    Raises ConfigError for a damaged file, and StoreError, with the reason, for a data set that cannot be used.
    """
    config = read_mixture(path)
    config = config if size is None else replace(config, size=size)
    return opened_mixture(config, path.parent, chunk, cache_gb, decoder, normalisation, episodes), config


def opened_mixture(
    config: MixtureConfig,
    folder: Path,
    chunk: int,
    cache_gb: float = CACHE_GB,
    decoder: Decoder = "pyav",
    normalisation: Normalisation = "mean_std",
    episodes: Mapping[str, int | None] = MappingProxyType({}),
) -> Mixture:
    """The mixture that `config` describes, with sources relative to `folder`. Other arguments as in `open_mixture`.

    Raises StoreError, with the reason, for a data set that cannot be used.
    """
    stores = open_sources(config, folder, decoder)
    chosen = [
        [e for e in chosen_episodes(store, source) if e < (episodes.get(source.label) or len(store))]
        for store, source in zip(stores, config.sources, strict=True)
    ]
    shares = _shares(config, stores, chosen)
    fps = stores[int(np.argmax(shares))].layout.fps
    frames, data = [], []
    for store, source, used, share in zip(stores, config.sources, chosen, shares, strict=True):
        store.require_vectors()
        metadata = described(store)
        _require_meaning(metadata, store)
        f, _ = open_frames(store, config.size, cache_gb * share, normalisation == "quantiles")
        f = replace(f, used=np.isin(np.arange(len(store)), used), has_action=f.has_action & source.actions)
        acts, rows = bool(f.has_action.any()), f.rows()
        # A step is one action of the robot. In video without actions it is as many frames as take the same time.
        frames.append(f if acts else replace(f, frame_stride=store.layout.fps / fps))
        action = f.action[rows] if acts else f.action[rows, :0]
        data.append(SourceData(metadata, f.proprio[rows], action, f.episode[rows], store.cameras))
    embodiments = fit(
        data,
        config.views,
        relative=config.relative,
        chunk=chunk,
        normalisers=config.normalisers,
        normalisation=normalisation,
    )
    parts = zip(stores, frames, embodiments, strict=True)
    converted = tuple(_with_views(store, replace(f, embodiment=e), config.views) for store, f, e in parts)
    return Mixture(config.names, converted, shares, fps)


def open_sources(config: MixtureConfig, folder: Path, decoder: Decoder = "pyav") -> list[Store]:
    """The data sets of a mixture. Of one that is downloaded, the demonstrations that its source selects, no others."""
    places = []
    for source in config.sources:
        name = remote_name(source.data)
        places.append(downloaded(name, source.demonstrations) if name else folder / source.data)
    return [Store.open(place, decoder) for place in places]


def _with_views(store: Store, frames: Frames, views: Sequence[str]) -> Frames:
    """The frames without episodes that show none of the model's views. Raises StoreError where none is left."""
    used = frames.views_seen().any(1) & (True if frames.used is None else frames.used)
    if not used.any():
        raise StoreError(f"{store.root}: no episode shows any of the views {', '.join(views)}; mix with other --views")
    return replace(frames, used=used)


def _require_meaning(metadata: DatasetMetadata, store: Store) -> None:
    """Raises StoreError where the robot or the role of a camera is not known: a mixture is arranged by these."""
    for entry, options in unknown(metadata, store).items():
        if entry == "embodiment" or entry.startswith("cameras."):
            command = f"wamkit describe {store.root} --set {entry}=... --write"
            raise StoreError(f"{store.root}: {entry} is not known ({options}); name it by `{command}`")


def chosen_episodes(store: Store, source: SourceConfig) -> list[int]:
    """The episodes of a data set that its source selects."""
    if source.demonstrations is None:
        return list(range(len(store)))
    (first, last), demos = source.demonstrations, [m.index for m in store.episodes if m.is_demonstration]
    if remote_name(source.data):  # no other was downloaded
        return demos
    if last > len(demos):
        raise StoreError(f"{store.root} holds {len(demos)} demonstrations; {first} to {last} were requested")
    return demos[first:last]


def _shares(config: MixtureConfig, stores: Sequence[Store], chosen: Sequence[Sequence[int]]) -> np.ndarray:
    """The share of each data set in all samples, (S,)."""
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
    """Shapes and clocks of the model that a mixture trains.

    Raises WamkitError when images are not a whole number of image tokens.
    """
    check_size(*config.size, "the mixture")
    embodiment = next(iter(mixture.embodiments.values()))
    return Spec(
        cameras=config.views,
        height=config.size[0],
        width=config.size[1],
        proprio_dim=embodiment.state_size,
        action_dim=embodiment.action_size,
        chunk=chunk,
        frame_offsets=frame_offsets,
        past_offsets=past_offsets,
        fps=mixture.fps,
    )

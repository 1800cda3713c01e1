"""From a recipe and a data folder to a trained run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wamkit.config import to_dict
from wamkit.data.format.frame_cache import videos_checksum
from wamkit.data.format.store import Decoder, Store
from wamkit.data.loading.dataset import open_frames, spec_of, statistics
from wamkit.data.loading.lazy_frames import CACHE_GB
from wamkit.data.loading.mixture import divided, mixture_spec, open_mixture
from wamkit.families.base import Family
from wamkit.runs.config import EpisodesConfig, RunConfig, family_class
from wamkit.runs.provenance import Provenance
from wamkit.runs.run import build, run_to_dict
from wamkit.training.trainer import FeatureCache, Trainer, Watch
from wamkit.types import WamkitError


def train_run(
    run: RunConfig,
    data: Path,
    out: Path,
    command: str = "",
    watch: Watch | None = None,
    cache_gb: float = CACHE_GB,
    feature_cache_gb: float = 0.0,
    decoder: Decoder = "pyav",
) -> Family:
    """Trains `run` on the store, or the mixture's file, `data` and writes the run folder `out`; continues it if it was begun.

    config.json there holds the resolved configuration, shapes, statistics, where the data came from, and the `command`
    that asked for it, if one did. `watch` is asked at every checkpoint (see `Trainer`). `cache_gb` bounds what is kept of decoded
    pictures, `feature_cache_gb` what is kept, beside the data, of what frozen encoders made of them, and films are decoded by `decoder`;
    none has an influence on what is learned.
    Raises StoreError for bad data, WamkitError if `out` belongs to another configuration, and as `Trainer.run`.
    """
    if Path(data).is_file():
        return _train_mixture(run, Path(data), out, command, watch, cache_gb, feature_cache_gb, decoder)
    frames, store = open_frames(Store.open(data, decoder), cache_gb=cache_gb)
    if run.episodes.labelled is not None:
        frames = frames.labelled(run.episodes.labelled, run.episodes.action_free)
    points = family_class(run.family).needs_point_cloud
    spec = spec_of(store, run.window.chunk, run.window.frame_offsets, run.window.past_offsets, points)
    numbers = statistics(frames, spec)
    config = run_to_dict(run, spec, numbers, Provenance.of(store))
    share = run.episodes.labelled_share
    drawn = frames if share is None else divided(frames, share, spec.fps)
    latents = _latents(store.root, [store], feature_cache_gb)
    return Trainer(build(run, spec, numbers), drawn, run.train, out, config, command, watch, latents).run()


def _latents(folder: Path, stores: Sequence[Store], gb: float, mixture: Any = None) -> FeatureCache | None:
    if not gb:
        return None
    data = [mixture, *((s.frames, s.layout.fps, videos_checksum(s, len(s))) for s in stores)]
    return FeatureCache(folder / ".cache/latents", hashlib.sha256(json.dumps(data).encode()).hexdigest(), int(gb * 1e9))


def _train_mixture(
    run: RunConfig,
    path: Path,
    out: Path,
    command: str,
    watch: Watch | None,
    cache_gb: float,
    feature_cache_gb: float,
    decoder: Decoder,
) -> Family:
    """The same for several data sets together; config.json also holds the mixture and its robots."""
    if run.episodes != EpisodesConfig():
        raise WamkitError("`episodes` chooses among one data set's; in a mixture leave out what is not wanted")
    if family_class(run.family).needs_point_cloud:
        raise WamkitError(
            f"'{run.family}' looks at scene points, which only data sets of one simulator have; train it on one"
        )
    window = run.window
    mixture, described = open_mixture(path, window.chunk, cache_gb, decoder)
    spec = mixture_spec(mixture, described, window.chunk, window.frame_offsets, window.past_offsets)
    # Each robot's numbers are brought to unit scale on their way into the mixture.
    sizes = {"proprio": spec.proprio_dim, "action": spec.action_dim}
    numbers = {k: {"mean": [0.0] * n, "std": [1.0] * n} for k, n in sizes.items()}
    stores = [Store.open(path.parent / s.data) for s in described.sources]
    made = dict(zip(mixture.names, map(Provenance.of, stores), strict=True))
    acting = next((n for n, provenance in made.items() if provenance.env.env), "")
    provenance = made.get(acting) or next(iter(made.values()))
    provenance = replace(provenance, env=replace(provenance.env, embodiment=acting))
    config = run_to_dict(run, spec, numbers, provenance) | {
        "mixture": to_dict(described),
        "embodiments": {n: to_dict(e) for n, e in mixture.embodiments.items()},
        "shares": dict(zip(mixture.names, mixture.shares.tolist(), strict=True)),
    }
    latents = _latents(path.parent, stores, feature_cache_gb, [config["mixture"], config["embodiments"]])
    return Trainer(build(run, spec, numbers), mixture, run.train, out, config, command, watch, latents).run()

"""From a recipe and data to a trained run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wamkit import old_names
from wamkit.config import Checked, Gigabytes, from_dict, to_dict
from wamkit.data.description import described
from wamkit.data.embodiment import Embodiment
from wamkit.data.format.frame_cache import videos_checksum
from wamkit.data.format.store import Decoder, Store
from wamkit.data.image_transform import stretch
from wamkit.data.loading.dataset import open_frames, spec_of, statistics
from wamkit.data.loading.lazy_frames import CACHE_GB
from wamkit.data.loading.mixture import (
    Mixture,
    divided,
    mixture_spec,
    open_mixture,
    open_sources,
    read_mixture,
)
from wamkit.data.loading.windows import Frames
from wamkit.families.base import Family
from wamkit.files import cache_folder, read_json
from wamkit.hub.names import hub_name, named, origin
from wamkit.nn.backbones.video_model import other_weights, video_model, weights_later
from wamkit.runs.base_model import base_of, video_backbone
from wamkit.runs.checkpoint import has_checkpoint, newest
from wamkit.runs.config import EpisodesConfig, RunConfig, family_class, held_out_episodes
from wamkit.runs.learned import learned_from, seen_by
from wamkit.runs.plugins import plugins
from wamkit.runs.provenance import Provenance
from wamkit.runs.run import Run, build, run_to_dict
from wamkit.runs.transfer import transfer, transfer_table
from wamkit.training.evidence import check_evidence, evidence_of
from wamkit.training.large_images import large_images
from wamkit.training.memory import check_memory
from wamkit.training.precompute import FeatureCache
from wamkit.training.run_folder import CONFIG, PROCESSES, RunFolder, check_run_folder
from wamkit.training.trackers.base import DEFAULT_TRACKERS, check_trackers
from wamkit.training.trainer import Trainer, Validate, Watch
from wamkit.training.world import World
from wamkit.types import Query, Spec, WamkitError


@dataclass(frozen=True)
class LoadingOptions(Checked):
    """Speed and disk use of data loading. No option changes what is learned.

    cache_gb: most GB of decoded frames kept beside the data.   feature_cache_gb: most GB of features of frozen encoders
    kept beside the data; 0 keeps none.   decoder: the library that decodes videos.
    """

    cache_gb: Gigabytes = CACHE_GB
    feature_cache_gb: Gigabytes = 0.0
    decoder: Decoder = "pyav"


@dataclass(frozen=True)
class Start:
    """The run whose weights a new run begins with.

    described: its label, the digest of its weights, and what it learned from, for the new run's configuration.
    run: the run; None where the new run was begun already, so that its weights are not needed.
    """

    described: Mapping[str, Any]
    run: Run | None

    @classmethod
    def of(cls, path: Path, out: Path) -> Start:
        """The run at `path`, for one in `out`. Raises WamkitError where there is none, unless `out` was begun."""
        begun = _begun(out).get("start", {})
        if has_checkpoint(out) and begun.get("run") == named(path):
            return cls(begun, None)
        run = Run.open(path)
        return cls({"run": run.label, "digest": run.digest, "learned_from": learned_from(run.described)}, run)


@dataclass(frozen=True)
class _TrainingData:
    """Data opened for a run.

    facts: further entries of the run's configuration that describe the data.
    held_out: frames of the episodes that are left out, None if there are none.
    """

    frames: Frames | Mixture
    spec: Spec
    statistics: dict[str, Any]
    provenance: Provenance
    cache: FeatureCache | None
    facts: dict[str, Any] = field(default_factory=dict)
    held_out: Frames | None = None


def train_run(
    run: RunConfig,
    data: Path,
    out: Path,
    *,
    command: str = "",
    watch: Watch | None = None,
    validate: Validate | None = None,
    start: Start | None = None,
    loading: LoadingOptions = LoadingOptions(),  # noqa: B008 (frozen)
    trackers: Sequence[str] = DEFAULT_TRACKERS,
    world: World = World(),  # noqa: B008 (frozen)
) -> Family:
    """Trains `run` on `data`, a data set's folder or a mixture's file, and writes the run folder `out`.

    A run that was begun continues. config.json there holds the resolved configuration, shapes, statistics, the origin
    of the data and the `command` that asked for the run. `watch`: see `Trainer.run`. `validate`: asked at every
    checkpoint in its place, about the episodes that `episodes.held_out` leaves out, if any. `start`: the run whose
    weights to begin with. `trackers`: names of trackers, which change nothing that is learned. `world`: the processes
    that train together.
    Raises StoreError for bad data, WamkitError if `out` belongs to another configuration, and as `Trainer.run`.
    """
    trainer = make_trainer(
        run, data, out, command=command, start=start, loading=loading, trackers=trackers, world=world
    )
    if watch is None and validate is not None and trainer.held_out is not None:
        watch = partial(validate, trainer.held_out)
    return trainer.run(watch)


def make_trainer(
    run: RunConfig,
    data: Path,
    out: Path,
    *,
    command: str = "",
    start: Start | None = None,
    loading: LoadingOptions = LoadingOptions(),  # noqa: B008 (frozen)
    trackers: Sequence[str] = DEFAULT_TRACKERS,
    world: World = World(),  # noqa: B008 (frozen)
) -> Trainer:
    """The trainer of `train_run`, before its first step. It has written nothing yet."""
    check_trackers(trackers)
    check_run_folder(Path(out))
    if world.size > 1:
        world.check_same({"newest checkpoint": newest(Path(out))})
    if (backbone := video_backbone(run.model)) is not None:
        video_model(backbone)  # a folder that is none is refused before images are decoded
    open_data = _open_mixture if Path(data).is_file() else partial(_open_store, start=start)
    opened = open_data(run, Path(data), loading, Path(out), world)
    config = run_to_dict(run, opened.spec, opened.statistics, opened.provenance) | opened.facts
    if optional := _optional_views(opened.frames, opened.spec, run.train.drop_view):
        config["optional_views"] = optional
    if needed := plugins(run, opened.provenance.env.env):
        config["plugins"] = needed
    if base := base_of(run.model):
        config["base"] = base
    if world.size > 1:
        config[PROCESSES] = world.size
    with _weights(start, has_checkpoint(Path(out)), world):
        model = build(run, opened.spec, opened.statistics)
    if start is not None:
        config["start"] = start.described
        if start.run is not None:
            embodiments = {n: from_dict(Embodiment, e) for n, e in opened.facts.get("embodiments", {}).items()}
            taken = transfer(model, start.run, embodiments)
            print(f"starts from {start.run.label}, step {start.run.step}: {transfer_table(taken)}", flush=True)
    folder = RunFolder(Path(out), config, command)
    trainer = Trainer(model, opened.frames, run.train, folder, opened.cache, trackers, opened.held_out, world)
    if world.size == 1 and (note := large_images(run, opened.spec, trainer)):
        print(note, flush=True)
    return trainer


def _weights(start: Start | None, begun: bool, world: World) -> AbstractContextManager[None]:
    """The block in which a model is built: released weights are not read where those of another run, or of this one's
    checkpoint, come in their place, and several processes read each its part."""
    later = world.size > 1 and (start is None or start.run is None)
    if start is not None or begun:
        return other_weights(later)
    return weights_later() if later else nullcontext()


def _optional_views(frames: Frames | Mixture, spec: Spec, drop_view: float) -> list[str]:
    """The views that a batch may lack: those that episodes or robots lack, or all where training drops them."""
    parts = frames.frames if isinstance(frames, Mixture) else (frames,)
    always = np.all([part.views_seen()[part.episode[part.rows()]].all(0) for part in parts], 0)
    return [c for c, has in zip(spec.cameras, always, strict=True) if not has or drop_view and spec.views > 1]


def _begun(out: Path) -> Mapping[str, Any]:
    """The configuration of the run in `out`, under present names; empty where none was begun."""
    return old_names.run_config(read_json(out / CONFIG)) if has_checkpoint(out) else {}


def _own_episodes(origin: Mapping[str, Any], store: Store, out: Path) -> int | None:
    """The number of first episodes that the run in `out` was begun on, where the data set has grown since, with a note.

    origin: of the run's data, as its configuration has it.
    """
    number, metas = origin.get("episodes"), store.episodes
    if not isinstance(number, int) or not 0 < number < len(metas):
        return None
    if origin.get("frames") != sum(m.length for m in metas[:number]):
        return None
    print(
        f"note: {out} was begun on the first {number} of now {len(metas)} episodes of {store.root}, and goes on with "
        "those; train a run with another --out to learn from all",
        flush=True,
    )
    return number


def _check_commit(begun: Mapping[str, Any], store: Store, out: Path) -> None:
    """Raises WamkitError if the data on the Hub are at another commit than when the run in `out` was begun.

    begun: origin of the run's data, as its configuration has it.
    """
    now, before = origin(store.root), hub_name(str(begun.get("hub", "")))
    if now is not None and before is not None and before.repo == now.repo and before.revision != now.revision:
        raise WamkitError(
            f"{out} was begun on {before}, and {now.repo} is at {now.revision} by now: continue it with --data "
            f"{before}, or choose another --out"
        )


def _open_store(
    run: RunConfig,
    path: Path,
    loading: LoadingOptions,
    out: Path,
    world: World = World(),  # noqa: B008 (frozen)
    start: Start | None = None,
) -> _TrainingData:
    store, size = Store.open(path, loading.decoder), run.window.size
    begun = _begun(out).get("provenance", {})
    _check_commit(begun, store, out)
    own, shown = _own_episodes(begun, store, out), named(store.root)
    needs_point_cloud = family_class(run.family).needs_point_cloud
    spec = spec_of(store, run.window.chunk, run.window.frame_offsets, run.window.past_offsets, needs_point_cloud, size)
    check_memory(run, spec, world.size)
    store.require_vectors()
    if store.unused():
        print(f"note: training does not use the columns {', '.join(store.unused())}", flush=True)
    if (factor := stretch(store.layout.image_shape[1:], (spec.height, spec.width))) > 1.05:
        print(f"note: images of {shown} are stretched by {factor - 1:.0%} to {spec.height}x{spec.width}", flush=True)
    if len(store):
        lengths, shows = np.array([(m.length, m.is_demonstration) for m in store.episodes]).T
        found = evidence_of(lengths, np.ones(len(store), bool), shows > 0, spec)
        _say_untaught(check_evidence(run, spec, found, path), shown)
    frames, _ = open_frames(store, size, loading.cache_gb, run.train.normalisation == "quantiles")
    if own is not None:
        frames = replace(frames, used=np.arange(len(store)) < own)
    facts: dict[str, Any] = {"metadata": {"": to_dict(described(store))}}
    held_out = None
    if run.episodes.held_out:
        left_out = _left_out(run, frames, spec, out, start and seen_by({"start": start.described}, store))
        facts["held_out"] = left_out.tolist()
        held_out, frames = frames.only(left_out), frames.only(np.setdiff1d(frames.chosen(), left_out))
    if run.episodes.labelled is not None:
        frames = frames.labelled(run.episodes.labelled, run.episodes.action_free)
    share = run.episodes.labelled_share
    return _TrainingData(
        frames=frames if share is None else divided(frames, share, spec.fps),
        spec=spec,
        statistics=statistics(frames, spec, run.train.normalisation),
        provenance=Provenance.of(store, own),
        cache=_feature_cache(store.root, [store], loading.feature_cache_gb, size),
        facts=facts,
        held_out=held_out,
    )


def _left_out(run: RunConfig, frames: Frames, spec: Spec, out: Path, known: np.ndarray | None) -> np.ndarray:
    """The episodes that `run` leaves out, int64: those of the run in `out` where one was begun.

    Else they are drawn among those that can be evaluated: demonstrations, where there are any, that are as long as a
    window. known: those of which the weights to start from know already, bool (E,).
    """
    if begun := _begun(out):
        return np.array(held_out_episodes(begun), np.int64)
    count, steps = run.episodes.held_out, max(*spec.frame_offsets, spec.chunk)
    shows = frames.is_demonstration & frames.has_action
    fit = frames.only(np.flatnonzero(shows) if shows[frames.chosen()].any() else frames.chosen())
    fit = fit.only(fit.chosen()[fit.lengths() > steps])
    fit = fit if known is None else fit.only(np.flatnonzero(~known))
    if count < len(frames.chosen()) and count > (most := len(fit.chosen())):
        new = "" if known is None else ", of which the run to start from learned nothing"
        raise WamkitError(
            f"held_out = {count}: {most} of {len(frames.chosen())} episodes can be held out: demonstrations of more "
            f"than {steps} steps{new}; leave out fewer, or evaluate on other data"
        )
    return frames.draw(count, run.episodes.held_out_seed, fit.chosen())


def _open_mixture(
    run: RunConfig,
    path: Path,
    loading: LoadingOptions,
    out: Path,
    world: World = World(),  # noqa: B008 (frozen)
) -> _TrainingData:
    if run.episodes != EpisodesConfig():
        raise WamkitError("`episodes` chooses among one data set's; in a mixture leave out what is not wanted")
    if family_class(run.family).needs_point_cloud:
        raise WamkitError(
            f"'{run.family}' needs scene points, which only data sets of one simulator have; train it on one of them"
        )
    window, begun, config = run.window, _begun(out), read_mixture(path)
    stores = dict(zip(config.names, open_sources(config, path.parent), strict=True))
    known = begun.get("origins", {})
    own = {n: _own_episodes(known.get(n, {}), store, out) for n, store in stores.items()}
    mixture, config = open_mixture(
        path, window.chunk, loading.cache_gb, loading.decoder, run.train.normalisation, window.size, own
    )
    mixture = _as_begun(mixture, begun.get("embodiments", {}))
    spec = mixture_spec(mixture, config, window.chunk, window.frame_offsets, window.past_offsets)
    check_memory(run, spec, world.size)
    found = [
        evidence_of(f.lengths() / f.frame_stride, f.has_action[f.chosen()], f.is_demonstration[f.chosen()], spec)
        for f in mixture.frames
    ]
    _say_untaught(check_evidence(run, spec, frozenset().union(*found), path), path)
    # The mixture already brings each embodiment's values to unit scale.
    sizes = {"proprio": spec.proprio_dim, "action": spec.action_dim}
    origins = {name: Provenance.of(store, own[name]) for name, store in stores.items()}
    acting = next((name for name, origin in origins.items() if origin.env.env), "")
    provenance = origins.get(acting) or next(iter(origins.values()))
    facts = {
        "mixture": to_dict(config),
        "embodiments": {n: to_dict(e) for n, e in mixture.embodiments.items()},
        "shares": dict(zip(mixture.names, mixture.shares.tolist(), strict=True)),
        "origins": {n: to_dict(o) for n, o in origins.items()},
        "metadata": {n: to_dict(described(store)) for n, store in stores.items()},
    }
    more = [facts["mixture"], facts["embodiments"]]
    return _TrainingData(
        frames=mixture,
        spec=spec,
        statistics={k: {"mean": [0.0] * n, "std": [1.0] * n} for k, n in sizes.items()},
        provenance=replace(provenance, env=replace(provenance.env, embodiment=acting)),
        cache=_feature_cache(path.parent, list(stores.values()), loading.feature_cache_gb, more),
        facts=facts,
    )


def _as_begun(mixture: Mixture, begun: Mapping[str, Any]) -> Mixture:
    """The mixture with the embodiments of a run that an earlier version began, which measured them otherwise."""
    kept = {n: from_dict(Embodiment, e) for n, e in begun.items() if old_names.is_measured_otherwise(e)}
    own = {n: replace(kept[n], locked=e.locked) for n, e in mixture.embodiments.items() if n in kept}
    parts = zip(mixture.names, mixture.frames, strict=True)
    return replace(mixture, frames=tuple(replace(f, embodiment=own.get(n, f.embodiment)) for n, f in parts))


def _say_untaught(queries: Sequence[Query], data: str | Path) -> None:
    if queries:
        print(f"note: {data} teaches nothing about the queries {', '.join(queries)}", flush=True)


def _feature_cache(folder: Path, stores: Sequence[Store], gb: float, shown: Any = None) -> FeatureCache | None:
    """The cache in `folder`, for windows over `stores` as `shown` says, by size or mixture; None for 0 GB."""
    if not gb:
        return None
    data = [shown, *((s.frames, s.layout.fps, videos_checksum(s, len(s))) for s in stores)]
    return FeatureCache(
        cache_folder(folder) / "latents", hashlib.sha256(json.dumps(data).encode()).hexdigest(), int(gb * 1e9)
    )

"""Labels for video: actions that a run reads off the images of a data set, and the state where it has none.

Every window of an episode is asked its inverse query. A step's label is the mean over all windows that hold it, and
their deviation says how far they agree. No window holds the last step, which no later frame shows: it repeats the label
before it and is marked by 0 windows. The first and last steps are held by few.

The labelled data set is another folder: the same videos, byte for byte where they are files of one episode, texts and
episodes. Its metadata name the run (`wamkit.metadata.Labels`), and its columns SPREAD and WINDOWS go step by step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64
from tqdm import tqdm

from wamkit import config as cfg
from wamkit.data.description import described
from wamkit.data.embodiment import views_of
from wamkit.data.format import checksums
from wamkit.data.format.metadata_io import save_metadata
from wamkit.data.format.remedy import IMPORTED, LABELLED
from wamkit.data.format.schema import Layout
from wamkit.data.format.store import Store
from wamkit.data.importers.run import require_same, save_state
from wamkit.data.labelled import SPREAD, WINDOWS
from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.windows import Windows, observations
from wamkit.data.rewriting import files_of_one_episode, images_as_stored
from wamkit.data.rotations import from_matrix, to_matrix
from wamkit.errors import nearest
from wamkit.files import StoreError, check_place
from wamkit.inference.checks import unsupported
from wamkit.inference.model import UNREAD, Model, load
from wamkit.metadata import DatasetMetadata, Field, Labels
from wamkit.runs.run import Run
from wamkit.types import Batch, Episode, NotFinite, ObservationError, Query, UnsupportedQuery, WamkitError


@dataclass(frozen=True)
class LabelOptions(cfg.Checked):
    """Options of `label`.

    embodiment: of a run on a mixture, the data set whose robot the videos show.   steps: denoising steps; None for the
    run's own.   batch: windows at a time.   replace: label data that have actions already, too.
    """

    embodiment: str = ""
    steps: cfg.Count | None = None
    batch: cfg.Count = 64
    replace: bool = False


@dataclass(frozen=True)
class StepLabels:
    """The values that a run reads off an episode of T steps.

    state: float32 (T, s), read or recorded.   action, spread: float32 (T, a).   windows: int64 (T,).
    """

    state: Float32[np.ndarray, "T s"]
    action: Float32[np.ndarray, "T a"]
    spread: Float32[np.ndarray, "T a"]
    windows: Int64[np.ndarray, " T"]


def by_step(chunks: Float[np.ndarray, "n K a"], steps: int) -> Float[np.ndarray, "T K a"]:
    """Chunks of the windows at steps 0 to n - 1, by the step that they are about: all that was said of it, else NaN."""
    starts, length, size = chunks.shape
    out = np.full((steps, length, size), np.nan)
    for k in range(length):
        out[k : k + starts, k] = chunks[:, k]
    return out


def averaged(
    said: Float[np.ndarray, "T K a"], fields: Sequence[Field] = ()
) -> tuple[Float32[np.ndarray, "T a"], Float32[np.ndarray, "T a"], Int64[np.ndarray, " T"]]:
    """Mean and deviation over what was said of each step (`by_step`), and the count. Steps after the last one of which
    anything was said repeat it, with a count of 0.

    fields: of the action. Rotations are averaged as rotations: the mean of 179 and -179 degrees is 180.

    Examples:
        >>> chunks = np.array([[[1.0], [2.0]], [[4.0], [6.0]]])
        >>> mean, spread, count = averaged(by_step(chunks, 4))
        >>> mean[:, 0].tolist(), spread[:, 0].tolist(), count.tolist()
        ([1.0, 3.0, 6.0, 6.0], [0.0, 1.0, 0.0, 0.0], [1, 2, 1, 0])
    """
    held = ~np.isnan(said[..., 0])
    windows = held.sum(1)
    last = int(np.flatnonzero(windows)[-1])
    mean, spread = np.nanmean(said[: last + 1], 1), np.nanstd(said[: last + 1], 1)
    for f in fields:
        if f.rotation and f.representation in ("absolute", "relative"):
            turns = to_matrix(np.nan_to_num(said[: last + 1, :, f.start : f.stop]), f.rotation)
            total = (turns * held[: last + 1, :, None, None]).sum(1)
            near = to_matrix(from_matrix(total, "rot6d"), "rot6d")  # the nearest rotation but for rounding
            mean[:, f.start : f.stop] = from_matrix(near, f.rotation)
    filled = np.minimum(np.arange(len(said)), last)
    return mean[filled].astype(np.float32), spread[filled].astype(np.float32), windows


class Reader:
    """A run that answers the inverse query, and a data set whose videos it can read.

    Raises WamkitError, naming what does not fit, where it cannot.
    """

    def __init__(self, run: Run, store: Store, options: LabelOptions):
        self.run, self.store, self.options = run, store, options
        name = self._embodiment()
        self.robot, self.has = _robot(run, name), described(store)
        self._check()
        model = load(run, embodiment=name)
        if Query.INVERSE not in model.queries:
            raise UnsupportedQuery(unsupported(model.name, Query.INVERSE))
        acting, self._views = model.embodiment, list(range(len(store.cameras)))
        if acting is None:
            self._views = self._cameras()
        else:
            acting = replace(acting, views=views_of(self.has, store.cameras, run.spec.cameras))
            bounds, image = model.action_bounds, model.image
            model = Model(model.family, acting, model.optional_views, action_bounds=bounds, image=image)
        self.model, spec = model, run.spec
        self.state_size = spec.proprio_dim if acting is None else acting.own_state_size
        self.action_size = spec.action_dim if acting is None else acting.own_action_size
        self._check_state()

    def _embodiment(self) -> str:
        """The data set of a mixture whose robot the videos show; "" for a run on one data set."""
        run, name = self.run, self.options.embodiment or self.run.provenance.env.embodiment
        acts = {n: (e.name, e.control_mode) for n, e in run.embodiments.items() if e.own_action_size}
        if not name and len(set(acts.values())) > 1:
            raise WamkitError(
                f"{run.label} knows several robots: name that of the videos, --embodiment {'|'.join(acts)}"
            )
        return name or next(iter(acts), "")

    def _check(self) -> None:
        """Raises WamkitError for data at another rate or of another robot, and for data that have actions."""
        root, label, layout, spec = self.store.root, self.run.label, self.store.layout, self.run.spec
        if not len(self.store):
            raise StoreError(f"{root} holds no episodes")
        if layout.action_names and not self.options.replace:
            raise WamkitError(
                f"{root} has actions: --replace puts labels in their place, and says how far off they are"
            )
        if abs(layout.fps / spec.fps - 1) > 0.01:
            again = f"import the videos with --options.fps {spec.fps:g}, or train on data at their rate"
            raise WamkitError(f"{root} has {layout.fps:g} frames a second, {label} reads {spec.fps:g}: {again}")
        mine = "" if self.has.embodiment == "none" else self.has.embodiment
        if mine and self.robot.embodiment and mine != self.robot.embodiment:
            raise WamkitError(f"{root} shows the robot '{mine}', {label} reads '{self.robot.embodiment}'")

    def _cameras(self) -> list[int]:
        """The cameras of the data set that the run sees, by name, or else by role."""
        found: list[int] = []
        for camera in self.run.spec.cameras:
            known = self.robot.cameras.get(camera)
            same = [i for i, c in enumerate(self.store.cameras) if c == camera]
            alike = [i for i, c in enumerate(self.store.cameras) if known and self._role(c) == known.role]
            if not (free := [i for i in same + alike if i not in found]):
                has = ", ".join(f"{c} ({self._role(c) or 'role not known'})" for c in self.store.cameras) or "none"
                wants = f"camera '{camera}'" + (f" ({known.role})" if known else "")
                near = nearest(camera, self.store.cameras)
                raise WamkitError(
                    f"{self.store.root} has no {wants}, which {self.run.label} sees{near}; it has {has}; state a "
                    f"camera's role by `wamkit describe {self.store.root} --set cameras.NAME.role=... --write`"
                )
            found.append(free[0])
        return found

    def _role(self, camera: str) -> str:
        known = self.has.cameras.get(camera)
        return known.role if known else ""

    def _check_state(self) -> None:
        """Raises WamkitError where the data have other states or actions than the run, no state, or no texts."""
        root, size, alone = self.store.root, len(self.store.layout.proprio_names), self.model.family.images_alone
        reads = "train --recipe metaworld-inverse gives a run that reads images alone"
        if size not in (0, self.state_size):
            raise WamkitError(f"{root} has {size} state dimensions, {self.run.label} takes {self.state_size}")
        if self.state_size and not size and not alone:
            raise WamkitError(f"{root} has no state, which the '{self.model.name}' {self.run.label} is given: {reads}")
        acts = len(self.store.layout.action_names)
        if acts not in (0, self.action_size):
            raise WamkitError(f"{root} has {acts} action dimensions, {self.run.label} gives {self.action_size}")
        silent = next((m.index for m in self.store.episodes if not m.text.strip()), None)
        if silent is not None and not alone:
            raise WamkitError(f"{root}: episode {silent} has no text, which {self.run.label} is given: {reads}")

    @property
    def reads_state(self) -> bool:
        """True if the state is read off the images, too."""
        return bool(self.state_size) and not self.store.layout.proprio_names

    @property
    def ahead(self) -> int:
        """Steps from the present frame of a window to its last one, which shows so many actions."""
        return self.run.spec.frame_offsets[-1]

    @property
    def action_fields(self) -> tuple[Field, ...]:
        """The fields of the action."""
        return self.robot.action or self.has.action

    @cached_property
    def _windows(self) -> Windows:
        frames, _ = open_frames(self.store, self.run.image_size)
        N, a = len(frames), self.run.spec.action_dim
        state = np.zeros((N, self.state_size), np.float32) if self.reads_state else frames.proprio
        action = np.zeros((N, a), np.float32)
        frames = replace(frames, proprio=state, action=action, action_expert=action)
        return Windows(frames, self.run.spec, seed=0, batch_size=1)

    def _gathered(self, rows: np.ndarray) -> Iterator[Batch]:
        """Windows at `rows`, with the cameras that the model sees, a batch at a time."""
        for low in range(0, len(rows), self.options.batch):
            batch, views = self._windows.gather(rows[low : low + self.options.batch]), self._views
            seen = None if batch.view_valid is None else batch.view_valid[:, views]
            text = [t if t.strip() else UNREAD for t in batch.text]
            obs, future, past = batch.obs[:, views], batch.future[:, :, views], batch.past[:, :, views]
            yield replace(batch, obs=obs, future=future, past=past, view_valid=seen, text=text)

    def read(self, episode: int) -> StepLabels:
        """The labels of an episode of more than `ahead` steps. Raises WamkitError naming it, for images or answers that
        are not sane."""
        meta, model = self.store.episodes[episode], self.model
        rows, frames = meta.from_index + np.arange(meta.length), self._windows.frames
        try:
            if self.reads_state:
                parts = []
                for batch in self._gathered(rows):
                    seen = None if batch.view_valid is None else batch.view_valid.numpy()
                    parts.append(model.read_state(batch.obs.numpy(), seen))
                frames.proprio[rows] = np.concatenate(parts)
            chunks, seed = [], count()  # one noise a window, whatever the batch
            for batch in self._gathered(rows[: meta.length - self.ahead]):
                seeds, future = [next(seed) for _ in range(len(batch))], batch.future.numpy()
                answer = model.sample(
                    observations(batch), Query.INVERSE, seed=seeds, future=future, steps=self.options.steps
                )
                chunks.append(np.asarray(answer.actions)[:, : self.ahead])
        except (ObservationError, NotFinite) as error:
            raise WamkitError(f"{self.store.root}: episode {episode}: {error}") from error
        said = by_step(np.concatenate(chunks), meta.length)
        return StepLabels(frames.proprio[rows], *averaged(said, self.action_fields))


def _robot(run: Run, name: str) -> DatasetMetadata:
    """The robot `name` as far as the run knows it; nothing, of a run of an earlier version."""
    if name in run.metadata:
        return run.metadata[name]
    if (known := run.embodiments.get(name)) is None:
        return DatasetMetadata("", "")
    state, action = (tuple(slot.field for slot in part) for part in (known.state, known.action))
    return DatasetMetadata("", known.name, known.control_mode, state=state, action=action)


def _names(fields: Sequence[Field], size: int, vector: str) -> tuple[str, ...]:
    """A name for each of `size` dimensions: that of its field, with a number where the field has several."""
    out = [f"{vector}_{i}" for i in range(size)]
    for f in fields:
        out[f.start : f.stop] = (
            [f.name] if f.stop - f.start == 1 else [f"{f.name}_{i}" for i in range(f.stop - f.start)]
        )
    return tuple(out)


def _described(reader: Reader) -> tuple[Layout, DatasetMetadata]:
    """The layout and the metadata of the labelled data set."""
    have, robot, run, store = reader.has, reader.robot, reader.run, reader.store
    layout, extras = store.layout, [e for e in store.layout.extras if e[0] not in (SPREAD, WINDOWS)]
    size = reader.action_size
    layout = replace(
        layout,
        proprio_names=layout.proprio_names or _names(robot.state, reader.state_size, "state"),
        action_names=layout.action_names or _names(robot.action, size, "action"),
        robot_type=robot.embodiment or layout.robot_type,
        expert=False,
        extras=(*extras, (SPREAD, "float32", size), (WINDOWS, "int64", 1)),
    )
    metadata = replace(
        have,
        embodiment=robot.embodiment or have.embodiment,
        control_mode=robot.control_mode or have.control_mode,
        rate=layout.fps,
        offset=0,
        state=robot.state if reader.reads_state else have.state,
        action=reader.action_fields,
        action_bounds=tuple(reader.model.action_bounds),
        columns={},
        inferred=tuple(i for i in have.inferred if i.startswith("cameras.")),
        labels=Labels(run.label, run.digest, reader.model.name, reader.reads_state),
    )
    metadata.check(len(layout.proprio_names), len(layout.action_names))
    return layout, metadata


def label(run: Run, data: Path, out: Path, options: LabelOptions = LabelOptions()) -> Store:  # noqa: B008 (frozen)
    """Writes the data set `out`: that in `data`, with the actions that `run` reads off its images.

    The same call continues where it was cut off, with the same result. Episodes too short for a window are left out,
    and import.json says so.

    Raises WamkitError, before anything is written, where the run cannot read these videos, and StoreError where `out`
    holds something else.
    """
    check_place(out / IMPORTED)
    store = Store.open(data)
    reader = Reader(run, store, options)
    layout, metadata = _described(reader)
    long = [m.index for m in store.episodes if m.length > reader.ahead]
    if not long:
        raise WamkitError(
            f"{data}: no episode is longer than {reader.ahead} steps, which a window of {run.label} spans"
        )
    skipped = {
        str(m.index): f"{m.length} steps, where a window spans {reader.ahead + 1}"
        for m in store.episodes
        if m.length <= reader.ahead
    }
    facts: dict[str, Any] = {
        "format": LABELLED,
        "source": str(data),
        "run": run.label,
        "options": {"weights": run.digest, "embodiment": options.embodiment, "steps": options.steps},
        "episodes": len(store),
        "notes": {},
        "metadata": cfg.to_dict(metadata),
    }
    if not (out / IMPORTED).exists() and (out / "meta/info.json").exists():
        raise StoreError(f"{out} holds a data set that `wamkit label` did not make: name another folder")
    require_same(out, facts)
    done = Store.open_or_create(out, **vars(layout))
    save_metadata(out, metadata)
    save_state(out, facts, False, skipped)
    if (data / "collect.json").exists():  # by which evaluation knows the environment
        checksums.write(out, {"collect.json": (data / "collect.json").read_bytes()})
    alone = files_of_one_episode(store)
    for index in tqdm(long[len(done) :], unit="episode", desc="labelling", leave=False):
        done.append(_labelled(store, index, reader.read(index)), images_as_stored(store, index, layout, alone))
    done.finalize()
    save_state(out, facts, True, skipped)
    return done


def _labelled(store: Store, index: int, found: StepLabels) -> Episode:
    episode = store.episode(index, images=False)
    return replace(
        episode,
        proprio=found.state,
        action=found.action,
        action_expert=found.action,
        extras={**episode.extras, SPREAD: found.spread, WINDOWS: found.windows[:, None]},
        depth={camera: store.decode_depth(index, camera) for camera in store.depth_cameras},
    )


@dataclass(frozen=True)
class LabelError:
    """The distance of labels from recorded actions, of one dimension, over all steps that a window holds.

    error: root mean square, in units of the action.   guess: that of guessing the mean, which is the deviation.
    noise: that of the executed actions from the expert's clean ones; None where those were not recorded.
    share: the squared error as a share of the variance: 0 is exact, 1 a guess; None where the action never moves.
    clean: the same share, against the expert's clean actions; None likewise.
    """

    name: str
    error: float
    guess: float
    noise: float | None
    share: float | None
    clean: float | None


def label_errors(store: Store, labelled: Store, ahead: int) -> tuple[LabelError, ...]:
    """The distance of the labels of `labelled` from the actions of `store`, by dimension; () where it has none.

    ahead: episodes of at most so many steps are not labelled.
    """
    if not store.layout.action_names:
        return ()
    before, now = store.numeric(), labelled.numeric()
    long = np.concatenate([np.full(m.length, m.length > ahead) for m in store.episodes])
    held = now[WINDOWS].reshape(-1) > 0
    true, clean = (before[k][long][: len(held)][held].astype(np.float64) for k in ("action", "action.expert"))
    read = now["action"][held].astype(np.float64)
    out = []
    for i, name in enumerate(store.layout.action_names):
        square = lambda a, b, i=i: float(np.square(a[:, i] - b[:, i]).mean())  # noqa: E731
        error, variance = square(read, true), float(true[:, i].var())
        share = error / variance if variance > 1e-12 else None
        noise = square(true, clean) if store.layout.expert else None
        of_clean = square(read, clean) / variance if store.layout.expert and share is not None else None
        out.append(LabelError(name, error**0.5, variance**0.5, None if noise is None else noise**0.5, share, of_clean))
    return tuple(out)

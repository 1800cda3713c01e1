"""Checks of a data set, for `wamkit validate`.

`Store.open` already refuses damage. The checks here find faults that open without an error and still harm training:
frozen cameras, actions recorded at another step, constant or jumping values, duplicate episodes, steps without a text.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from wamkit.config import ConfigError
from wamkit.data.claims import Values, misfits
from wamkit.data.format import checksums
from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.format.rows import clock_fault
from wamkit.data.format.schema import describe
from wamkit.data.format.store import Store
from wamkit.data.format.video import Video
from wamkit.data.importers.run import left_out, noted, require_whole
from wamkit.data.labelled import in_words
from wamkit.data.sanity import faults
from wamkit.files import StoreError, exclusive, inside, read_json
from wamkit.metadata import DatasetMetadata

SAMPLE = 16
"""Consecutive frames that are checked of each episode and camera, unless all are."""
JUMP = 30.0
"""Size of a jump, in usual steps (the 0.9 quantile of those that move) of the same dimension."""
STILL = 1e-3
"""Largest step, in ranges of the dimension, that is no movement: the noise of a gripper that mostly rests."""
MOVES = 10
"""Movements of a dimension from which the usual one is known."""
FEW_EPISODES, FEW_ROWS, FEW_STEPS = 5, 10, 6
"""Least episodes, rows and consecutive frames on which something unusual is reported: among fewer, all is unusual."""
LAGS = range(-3, 4)
"""Steps between action and motion that are compared."""
ROWS_A_DIMENSION = 10
"""Least rows for each dimension of the actions: a regression on fewer explains much by chance."""
LESS = 0.7
"""Largest fraction of the variance unexplained at lag 0 that another lag may leave unexplained to be reported."""


@dataclass(frozen=True)
class Finding:
    """A result of a check.

    level: "error" if training would fail or be misled, "warning" if someone should look, "note" for information.
    episode: None for the whole data set.
    kind: findings of one kind differ in details alone; see `grouped`.
    others: further episodes with a finding of this kind.
    """

    level: Literal["error", "warning", "note"]
    episode: int | None
    message: str
    kind: str = ""
    others: tuple[int, ...] = ()

    def __str__(self) -> str:
        where = "" if self.episode is None else f"episode {self.episode}: "
        return f"{self.level}: {where}{self.message}{self.more}"

    @property
    def more(self) -> str:
        """The other episodes of its kind, as text."""
        if not self.others:
            return ""
        listed = ", ".join(map(str, self.others[:5]))
        rest = f" and {len(self.others) - 5} more" if len(self.others) > 5 else ""
        return f" (the first of {len(self.others) + 1} episodes; also {listed}{rest})"


def grouped(findings: Iterable[Finding]) -> list[Finding]:
    """The findings with all of one kind in one, that of the first episode."""
    groups: dict[object, list[Finding]] = {}
    for number, f in enumerate(findings):
        groups.setdefault((f.level, f.kind or number), []).append(f)
    others = lambda group: tuple(f.episode for f in group[1:] if f.episode is not None)  # noqa: E731
    return [replace(group[0], others=others(group)) for group in groups.values()]


def validate(root: Path, *, every_frame: bool = False, progress: bool = True) -> list[Finding]:
    """All findings, errors first. Nothing is written.

    every_frame: check all frames of all videos instead of a few of each.
    progress: show a progress bar.

    Raises StoreError for a data set that cannot be opened.
    """
    store = Store.open(root, mend=False)
    if not len(store):
        raise StoreError(f"{root} holds no episodes")
    metadata = load_metadata(root)
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: _whole(root),
        lambda: _metadata(store, metadata),
        lambda: _texts(store),
        lambda: _views(store),
        lambda: _spare(store),
        lambda: _lengths(store),
        lambda: _duplicates(store),
        lambda: (Finding("error", f.episode, f"step {f.step}: {f.message}") for f in faults(store)),
        lambda: _values(store),
        lambda: _times(store),
        lambda: _statistics(store),
        lambda: _offset(store, metadata),
        lambda: _claims(store, metadata),
        lambda: _images(store, every_frame, progress),
    )
    order = ("error", "warning", "note")
    found = sorted((f for check in checks for f in check()), key=lambda f: (order.index(f.level), f.episode or -1))
    return found


def accept(root: Path) -> list[str]:
    """Records all files of a data set as they are now, and returns descriptions of those that had changed.

    It is for data that LeRobot's tools or an editor changed after wamkit wrote it, and for data without checksums.
    Writes nothing where nothing had changed. Raises StoreError, with the checksums as they were, where the data set or
    a changed file cannot be read.
    """
    store = Store.open(root, compare=False)
    with exclusive(root, wait=True):
        files, changes = checksums.survey(root, {k: v for m in store.episodes for k, v in store.files(m.index).items()})
        for name in (n for n in checksums.SMALL if n.endswith(".json") and (root / n).exists()):
            read_json(inside(root, name), finite=False)
        load_metadata(root)
        changed = {root / name for name in changes}
        for m in store.episodes:
            if changed & (paths := store.files(m.index)).keys():
                store.episode(m.index, images=False, snapshots=any(p.suffix == ".npz" for p in paths))
                for camera in store.cameras:
                    deque(store.decode_blocks(m.index, camera), maxlen=0)
                for camera in store.depth_cameras:
                    store.decode_depth(m.index, camera)
        if changes:
            checksums.accept(root, files)
    return changes


def _whole(root: Path) -> Iterator[Finding]:
    try:
        require_whole(root)
    except StoreError as error:
        yield Finding("error", None, str(error))
    if skipped := left_out(root):
        yield Finding(
            "note", None, f"{len(skipped)} episodes of the source were left out; import.json lists them with reasons"
        )


def _metadata(store: Store, metadata: DatasetMetadata | None) -> Iterator[Finding]:
    sizes = len(store.layout.proprio_names), len(store.layout.action_names)
    try:
        store.require_vectors()
    except StoreError as error:
        yield Finding("error", None, str(error))
    if metadata is None:
        yield Finding("note", None, "it has no metadata (meta/wamkit.json); `wamkit describe` shows what names tell")
        return
    try:
        metadata.check(*sizes)
    except ConfigError as error:
        yield Finding("error", None, str(error))
    for name, fields, size in zip(("state", "action"), (metadata.state, metadata.action), sizes, strict=True):
        if (described := sum(f.stop - f.start for f in fields)) < size:
            yield Finding("warning", None, f"{size - described} of {size} dimensions of the {name} have no metadata")
    if missing := set(store.cameras) - set(metadata.cameras):
        yield Finding("warning", None, f"the role of camera {min(missing)} is not known")
    if not metadata.licence:
        yield Finding("note", None, "its licence is not known")


def _texts(store: Store) -> Iterator[Finding]:
    silent = np.array([not t.strip() for t in store.texts])[store.numeric()["task_index"]]
    if silent.any():
        yield Finding("note", None, f"{silent.mean():.0%} of its steps have no text")


def _views(store: Store) -> Iterator[Finding]:
    lacking = Counter(camera for m in store.episodes for camera in m.absent)
    for camera, count in sorted(lacking.items()):
        yield Finding("note", None, f"camera {camera} saw nothing of {count} of {len(store)} episodes")


def _spare(store: Store) -> Iterator[Finding]:
    """Videos with more frames than rows. The others are not used."""
    rows: Counter[Path] = Counter()
    first, metas = {}, store.episodes
    for episode, camera, path, _ in store.videos():
        rows[path] += metas[episode].length
        first.setdefault(path, (episode, camera))
    for path, (episode, camera) in first.items():
        with contextlib.suppress(StoreError), store.open_video(episode, camera) as video:  # `_images` names its damage
            if isinstance(video, Video) and video.count > rows[path]:
                message = f"{path.name} of camera {camera} has {video.count} frames for {rows[path]} rows"
                yield Finding("note", episode, f"{message}; those without a row are left alone")


def _lengths(store: Store) -> Iterator[Finding]:
    for m in store.episodes:
        if m.length < 2:
            yield Finding("warning", m.index, f"{m.length} step", "short")
    lengths = np.array([m.length for m in store.episodes if m.length >= 2])
    usual = np.median(lengths) if len(lengths) >= FEW_EPISODES else np.inf
    for m in store.episodes:
        if m.length > 10 * usual:
            message = f"{m.length} steps, where {usual:.0f} are usual: is it several episodes in one?"
            yield Finding("warning", m.index, message, "long")


def _duplicates(store: Store) -> Iterator[Finding]:
    """Episodes with equal numbers or, where the numbers of an episode never change, with equal videos as well."""
    columns, first = store.numeric(), {}
    for m in store.episodes:
        here = slice(m.from_index, m.from_index + m.length)
        content = np.concatenate([columns[key][here] for key in ("observation.state", "action")], 1)
        videos = tuple(store.checksum(m.index, c) for c in store.cameras)
        changes = bool((content != content[:1]).any())
        if not changes and None in videos:
            continue
        key = (m.length, hashlib.sha256(content.tobytes()).digest(), () if changes else videos)
        if key in first:
            yield Finding("error", m.index, f"identical to episode {first[key]}", "identical")
        first.setdefault(key, m.index)


def _values(store: Store) -> Iterator[Finding]:
    columns, layout = store.numeric(), store.layout
    first = np.zeros(store.frames, bool)
    first[[m.from_index for m in store.episodes]] = True
    for key, names in (("observation.state", layout.proprio_names), ("action", layout.action_names)):
        x = columns[key].astype(np.float64)
        same = [f"{name}: always {x[0, i]:g}" for i, name in enumerate(names) if np.ptp(x[:, i]) == 0]
        if same and len(x) >= FEW_ROWS:
            more = f" and {len(same) - 8} more" if len(same) > 8 else ""
            yield Finding("warning", None, f"{key}, {', '.join(same[:8])}{more}")
        if key == "observation.state" and len(x) > 2:  # commands may jump
            steps, where = np.abs(np.diff(x, axis=0))[~first[1:]], np.flatnonzero(~first[1:]) + 1
            worst: dict[int, tuple[float, int, str]] = {}
            for i, name in enumerate(names):
                for row, size in _jumps(x[:, i], steps[:, i]):
                    e, step = (int(columns[k][where[row]]) for k in ("episode_index", "frame_index"))
                    worst[e] = max(worst.get(e, (0.0, 0, "")), (size, step, name))
            for e, (size, step, name) in worst.items():
                message = f"{key}, {name}: jumps at step {step}, by {size:.0f} usual steps"
                yield Finding("warning", e, message, f"{name} jumps")


def _jumps(x: np.ndarray, steps: np.ndarray) -> Iterator[tuple[int, float]]:
    """Rows of `steps` that are jumps of the dimension `x`, and their sizes in usual steps."""
    low, high = np.quantile(x, (0.01, 0.99))
    moving = steps > STILL * (high - low or np.ptp(x))
    if moving.sum() < MOVES:
        return
    usual = np.quantile(steps[moving], 0.9)
    for row in np.flatnonzero(steps > JUMP * usual):
        yield int(row), float(steps[row] / usual)


def _times(store: Store) -> Iterator[Finding]:
    """Times of steps that are not those of `fps`. Subtasks are placed by them."""
    clock = store.numeric()["timestamp"]
    for m in store.episodes:
        if fault := clock_fault(clock[m.from_index : m.from_index + m.length], store.layout.fps):
            yield Finding("warning", m.index, fault, "times")
    notes = noted(store.root)
    for m in store.episodes:
        for note in notes.get(m.source, ()):
            yield Finding("warning", m.index, note, "times")


def _statistics(store: Store) -> Iterator[Finding]:
    """Statistics in meta/stats.json that are not those of the values. Other programs normalise by them."""
    path, columns = store.root / "meta/stats.json", store.numeric()
    if not path.exists():
        return
    stats = read_json(path, finite=False)
    for key in ("observation.state", "action"):
        if not columns[key].shape[1]:
            continue
        right, (column, *more) = describe(columns[key]), store.vectors[key]
        if more:  # each part has statistics of its own
            continue
        tolerance = 0.01 * (np.array(right["max"]) - right["min"]) + 1e-6
        for name in ("min", "max", "mean", "std"):
            try:
                told = np.array(stats[column][name], np.float64).reshape(len(tolerance))
                if (np.abs(told - right[name]) <= tolerance).all():
                    continue
                reason = f"{name} is {told.tolist()}, the values have {right[name]}"
            except (LookupError, TypeError, ValueError):
                reason = f"{name} is missing or not {len(tolerance)} numbers"
            yield Finding("warning", None, f"meta/stats.json, {key}: {reason}; other programs normalise by it")
            break


def _offset(store: Store, metadata: DatasetMetadata | None) -> Iterator[Finding]:
    """Compares how well actions explain the motion of their own step and that of other steps.

    Motion is the change of the state from row t to row t + 1. It is explained by action t through linear regression. A
    robot may respond later than its command, but not earlier. If actions explain an earlier step's motion best, then
    observations were recorded after each action, or the columns are shifted. Blind where commands move nothing.
    """
    state, action = store.numeric()["observation.state"].astype(float), store.numeric()["action"].astype(float)
    motions = sum(max(0, m.length - 1 - LAGS[-1]) for m in store.episodes)
    if not state.shape[1] or not action.shape[1] or motions < max(40, ROWS_A_DIMENSION * action.shape[1]):
        return
    if metadata is not None and any(
        f.representation == "absolute" and f.kind in ("joint", "position") for f in metadata.action
    ):
        # An absolute command is a target: the robot moves by its distance from the state of the same row.
        size = min(state.shape[1], action.shape[1])
        action = np.concatenate([action[:, :size] - state[:, :size], action[:, size:]], 1)
    explained = {lag: _explained(store, state, action, lag) for lag in LAGS}
    best = max(explained, key=lambda k: explained[k])
    if explained[best] < 0.1 or (1 - explained[best]) > LESS * (1 - explained[0]):
        return
    shares = f"({explained[best]:.0%} of its variance, against {explained[0]:.0%})"
    steps = f"{abs(best)} step{'s' * (abs(best) > 1)}"
    if best < 0:
        yield Finding(
            "error",
            None,
            f"actions best explain the motion {steps} before them {shares}: were observations recorded after each "
            "action, or are columns shifted?",
        )
    else:
        yield Finding("note", None, f"the robot responds {steps} after its command {shares}")


def _claims(store: Store, metadata: DatasetMetadata | None) -> Iterator[Finding]:
    """Labels of the metadata that the values contradict, see `wamkit.data.claims`."""
    columns = store.numeric()
    try:
        if metadata is None or metadata.check(len(store.layout.proprio_names), len(store.layout.action_names)):
            return
    except ConfigError:
        return  # `_metadata` says so
    for m in misfits(metadata, Values(columns["observation.state"], columns["action"], columns["episode_index"])):
        advice = f"'{m.fits}' fits: wamkit describe {store.root} --set {m.entry}={m.fits} --write"
        advice = advice if m.fits else "correct it in meta/wamkit.json"
        yield Finding("warning", None, f"{m.entry} is '{m.label}', but {m.reason}; {advice}")


def _explained(store: Store, state: np.ndarray, action: np.ndarray, lag: int) -> float:
    """The fraction of the variance of motion, from row t + lag to the next, that action t explains."""
    X, Y = [], []
    for m in store.episodes:
        s, a = (x[m.from_index : m.from_index + m.length] for x in (state, action))
        motion, low, high = np.diff(s, axis=0), max(0, -lag), min(m.length - 1, m.length - 1 - lag)
        if high > low:
            X.append(a[low:high])
            Y.append(motion[low + lag : high + lag])
    x, y = np.concatenate(X), np.concatenate(Y)
    x, y = np.c_[x - x.mean(0)], y - y.mean(0)
    y = y[:, y.std(0) > 1e-9]
    if not y.size:
        return 0.0
    y = y / y.std(0)
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(1 - rest.var() / y.var())


def _images(store: Store, every_frame: bool, progress: bool) -> Iterator[Finding]:
    columns = store.numeric()
    for m in tqdm(store.episodes, unit="episode", desc="decoding", leave=False, disable=not progress):
        try:
            store.verify(m.index)
        except StoreError as error:
            yield Finding("error", m.index, str(error), "changed")
            continue
        for camera in (c for c in store.cameras if c not in m.absent):
            try:
                middle = max(0, (m.length - SAMPLE) // 2)
                rows = range(m.length) if every_frame else range(middle, min(m.length, middle + SAMPLE))
                blocks = (
                    store.decode_blocks(m.index, camera) if every_frame else [store.decode_steps(m.index, camera, rows)]
                )
                still, deviation = _stillness(blocks)
            except StoreError as error:
                yield Finding("error", m.index, str(error), f"{camera} unreadable")
                continue
            here = m.from_index + np.array(rows)
            moves = np.abs(np.diff(columns["observation.state"][here], axis=0)).sum(1) > 1e-6
            stuck = still & moves if columns["observation.state"].shape[1] else still
            if len(rows) >= FEW_STEPS and stuck.mean() > 0.5:
                yield Finding(
                    "warning",
                    m.index,
                    f"camera {camera} shows the same image while the robot moves, in {stuck.mean():.0%} of steps",
                    f"{camera} still",
                )
            if deviation < 2:
                yield Finding("warning", m.index, f"camera {camera} shows one even colour", f"{camera} even")


def _stillness(blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, float]:
    """True for each frame but the first that equals the one before, and the standard deviation of all pixels.

    blocks: consecutive frames, uint8 (n, 3, H, W), of which one block at a time is in memory.
    """
    still, counts, last = [], np.zeros(256, np.int64), None
    for frame in (frame for block in blocks for frame in block):
        if last is not None:
            still.append(np.array_equal(frame, last))
        counts += np.bincount(frame.ravel(), minlength=256)
        last = frame
    grey = np.arange(256)
    mean = counts @ grey / counts.sum()
    return np.array(still, bool), float(np.sqrt(counts @ (grey - mean) ** 2 / counts.sum()))


def summary(store: Store, metadata: DatasetMetadata | None) -> list[tuple[str, str]]:
    """The content of a data set as (name, value) pairs of text."""
    layout, hours = store.layout, store.frames / store.layout.fps / 3600
    cameras = [f"{c} {layout.size(c)[0]}x{layout.size(c)[1]}" for c in layout.cameras]
    texts = Counter(m.text or "(none)" for m in store.episodes)
    rows = [
        ("episodes", f"{len(store):,}"),
        ("frames", f"{store.frames:,}, {hours:.2f} h at {layout.fps:g} a second"),
        ("cameras", ", ".join(cameras) or "none"),
        *([("not used", ", ".join(store.unused()))] if store.unused() else []),
        *([("depth", ", ".join(f"{c} {h}x{w}" for c, h, w in layout.depth))] if layout.depth else []),
        ("state", f"{len(layout.proprio_names)} dimensions" if layout.proprio_names else "none"),
        ("actions", f"{len(layout.action_names)} dimensions" if layout.action_names else "none: video without actions"),
        ("texts", f"{len(store.texts)}; most often '{texts.most_common(1)[0][0]}'"),
    ]
    if metadata is not None and metadata.labels is not None:
        rows.append(("labels", in_words(store, metadata.labels)))
    if metadata is not None:
        rows.append(("robot", f"{metadata.embodiment or 'none'}, {metadata.control_mode or 'control mode not known'}"))
        rows.append(("source", f"{metadata.source}, licence {metadata.licence or 'not known'}"))
    return rows

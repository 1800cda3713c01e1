"""What is in a data set and what is wrong with it, on one page: `wamkit validate`.

`Store.open` already refuses what is damaged. Here is what opens without an error and still spoils training: films that stand
still, actions that belong to another step, numbers that never move or that jump, doubles, steps that nobody said anything about.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from wamkit.config import ConfigError
from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.format.store import Store
from wamkit.data.importers.run import left_out, require_whole
from wamkit.files import StoreError
from wamkit.metadata import DatasetMetadata

SAMPLE = 16  # consecutive pictures an episode and camera that are looked at, unless all are
JUMP = 30.0  # deviations of a usual step beyond which one is a jump
LAGS = range(-3, 4)
LESS = 0.7  # of the unexplained variance that another lag may leave, to be reported


@dataclass(frozen=True)
class Finding:
    """error: training on it would fail or mislead; warning: look at it; note: good to know. episode: None for the whole set."""

    level: Literal["error", "warning", "note"]
    episode: int | None
    message: str

    def __str__(self) -> str:
        where = "" if self.episode is None else f"episode {self.episode}: "
        return f"{self.level}: {where}{self.message}"


def validate(root: Path, *, every_picture: bool = False, progress: bool = True) -> list[Finding]:
    """All findings, errors first.

    every_picture: decode all pictures of all films instead of a few of each. Raises StoreError for what cannot be opened at all.
    """
    store = Store.open(root)
    if not len(store):
        raise StoreError(f"{root} holds no episodes")
    metadata = load_metadata(root)
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: _whole(root),
        lambda: _metadata(store, metadata),
        lambda: _texts(store),
        lambda: _lengths(store),
        lambda: _doubles(store),
        lambda: _numbers(store),
        lambda: _offset(store, metadata),
        lambda: _images(store, every_picture, progress),
    )
    order = ("error", "warning", "note")
    found = sorted((f for check in checks for f in check()), key=lambda f: (order.index(f.level), f.episode or -1))
    return found


# ----------------------------------------------------------------------------------------------------------------- checks


def _whole(root: Path) -> Iterator[Finding]:
    try:
        require_whole(root)
    except StoreError as error:
        yield Finding("error", None, str(error))
    if skipped := left_out(root):
        yield Finding(
            "note", None, f"{len(skipped)} episodes of the source were left out; import.json says which and why"
        )


def _metadata(store: Store, metadata: DatasetMetadata | None) -> Iterator[Finding]:
    sizes = len(store.layout.proprio_names), len(store.layout.action_names)
    if metadata is None:
        yield Finding(
            "note", None, "nobody said what its numbers mean (meta/wamkit.json): it cannot be mixed with other data"
        )
        return
    try:
        metadata.check(*sizes)
    except ConfigError as error:
        yield Finding("error", None, str(error))
    for name, fields, size in zip(("state", "action"), (metadata.state, metadata.action), sizes, strict=True):
        if (said := sum(f.stop - f.start for f in fields)) < size:
            yield Finding("warning", None, f"{size - said} of {size} numbers of the {name} have no meaning")
    if missing := set(store.cameras) - set(metadata.cameras):
        yield Finding("warning", None, f"what camera {min(missing)} looks at nobody said")
    if not metadata.licence:
        yield Finding("note", None, "its licence is not known")


def _texts(store: Store) -> Iterator[Finding]:
    said = np.array([not t.strip() for t in store.texts])[store.numeric()["task_index"]]
    if said.any():
        yield Finding("note", None, f"{said.mean():.0%} of its steps have no text: nobody said what is done there")


def _lengths(store: Store) -> Iterator[Finding]:
    for m in store.episodes:
        if m.length < 2:
            yield Finding("warning", m.index, f"{m.length} step")
    lengths = np.array([m.length for m in store.episodes])
    usual = np.median(lengths)
    for m in store.episodes:
        if m.length > 10 * usual:
            yield Finding("warning", m.index, f"{m.length} steps, where {usual:.0f} are usual: is it several in one?")


def _doubles(store: Store) -> Iterator[Finding]:
    numbers, first = store.numeric(), {}
    for m in store.episodes:
        here = slice(m.from_index, m.from_index + m.length)
        content = numbers["observation.state"][here].tobytes() + numbers["action"][here].tobytes()
        films = tuple(store.checksum(m.index, c) for c in store.cameras)
        if not content and None in films:
            continue
        key = (m.length, hashlib.sha256(content).digest(), films if not content else ())
        if key in first:
            yield Finding("error", m.index, f"the same as episode {first[key]}, number for number")
        first.setdefault(key, m.index)


def _numbers(store: Store) -> Iterator[Finding]:
    numbers, layout = store.numeric(), store.layout
    first = np.zeros(store.frames, bool)
    first[[m.from_index for m in store.episodes]] = True
    for key, names in (("observation.state", layout.proprio_names), ("action", layout.action_names)):
        x = numbers[key].astype(np.float64)
        for i, name in enumerate(names):
            if np.ptp(x[:, i]) == 0:
                yield Finding("warning", None, f"{key}, {name}: always {x[0, i]:g}")
        if key == "action" or len(x) < 3:
            continue  # commands may jump
        steps = np.abs(np.diff(x, axis=0))[~first[1:]]
        usual = np.maximum(np.quantile(steps, 0.9, axis=0), 1e-9) if len(steps) else np.ones(x.shape[1])
        where = np.flatnonzero(~first[1:]) + 1
        worst: dict[int, tuple[float, int, str]] = {}
        for row, i in zip(*np.nonzero(steps > JUMP * usual), strict=True):
            e = int(numbers["episode_index"][where[row]])
            size = steps[row, i] / usual[i]
            if size > worst.get(e, (0.0, 0, ""))[0]:
                worst[e] = (size, int(numbers["frame_index"][where[row]]), names[i])
        for e, (size, step, name) in worst.items():
            yield Finding("warning", e, f"{key}, {name}: jumps at step {step}, {size:.0f} times as far as usual")


def _offset(store: Store, metadata: DatasetMetadata | None) -> Iterator[Finding]:
    """Whether actions explain the motion of the step that they are recorded with, better than that of an earlier one.

    Motion is the state's change from row t to row t + 1, explained by action t through linear regression. A robot may follow
    later than it is told to, which is its nature; it cannot follow earlier. Where actions explain an earlier step's motion
    best, what was seen was recorded after each action, or the columns are shifted. Blind where nothing moves by command.
    """
    state, action = store.numeric()["observation.state"].astype(float), store.numeric()["action"].astype(float)
    if not state.shape[1] or not action.shape[1] or len(state) < 50:
        return
    if metadata is not None and any(
        f.representation == "absolute" and f.kind in ("joint", "position") for f in metadata.action
    ):
        # An absolute command asks for a place: what moves the robot is how far that is from where it was at the same row.
        size = min(state.shape[1], action.shape[1])
        action = np.concatenate([action[:, :size] - state[:, :size], action[:, size:]], 1)
    explained = {lag: _explained(store, state, action, lag) for lag in LAGS}
    best = max(explained, key=lambda k: explained[k])
    if explained[best] < 0.1 or (1 - explained[best]) > LESS * (1 - explained[0]):
        return
    shares = f"({explained[best]:.0%} of it, against {explained[0]:.0%})"
    steps = f"{abs(best)} step{'s' * (abs(best) > 1)}"
    if best < 0:
        yield Finding(
            "error",
            None,
            f"actions explain best what moved {steps} before them {shares}: was what is seen recorded after each action, or are columns shifted?",
        )
    else:
        yield Finding("note", None, f"the robot follows {steps} after it is told to {shares}")


def _explained(store: Store, state: np.ndarray, action: np.ndarray, lag: int) -> float:
    """The share of the variance of motion that action t explains of the motion from row t + lag to the next."""
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


def _images(store: Store, every_picture: bool, progress: bool) -> Iterator[Finding]:
    numbers = store.numeric()
    for m in tqdm(store.episodes, unit="episode", desc="looking", leave=False, disable=not progress):
        for camera in store.cameras:
            try:
                middle = max(0, (m.length - SAMPLE) // 2)
                rows = range(m.length) if every_picture else range(middle, min(m.length, middle + SAMPLE))
                film = store.decode_steps(m.index, camera, rows)
            except StoreError as error:
                yield Finding("error", m.index, str(error))
                continue
            still = (film[1:] == film[:-1]).reshape(len(film) - 1, -1).all(1)
            here = m.from_index + np.array(rows)
            moves = np.abs(np.diff(numbers["observation.state"][here], axis=0)).sum(1) > 1e-6
            stuck = still & moves if numbers["observation.state"].shape[1] else still
            if len(still) and stuck.mean() > 0.5:
                yield Finding(
                    "warning",
                    m.index,
                    f"camera {camera} shows the same picture while the robot moves, in {stuck.mean():.0%} of steps",
                )
            if film.std() < 2:
                yield Finding("warning", m.index, f"camera {camera} shows one even colour")


# ------------------------------------------------------------------------------------------------------------------- page


def summary(store: Store, metadata: DatasetMetadata | None) -> list[tuple[str, str]]:
    """What is in it: (what, how much)."""
    layout, hours = store.layout, store.frames / store.layout.fps / 3600
    cameras = [f"{c} {layout.size(c)[0]}x{layout.size(c)[1]}" for c in layout.cameras]
    texts = Counter(m.text or "(none)" for m in store.episodes)
    rows = [
        ("episodes", f"{len(store):,}"),
        ("frames", f"{store.frames:,}, {hours:.2f} h at {layout.fps:g} a second"),
        ("cameras", ", ".join(cameras) or "none"),
        *([("depth", ", ".join(f"{c} {h}x{w}" for c, h, w in layout.depth))] if layout.depth else []),
        ("state", f"{len(layout.proprio_names)} numbers" if layout.proprio_names else "none"),
        ("actions", f"{len(layout.action_names)} numbers" if layout.action_names else "none: video alone"),
        ("texts", f"{len(store.texts)}; most often '{texts.most_common(1)[0][0]}'"),
    ]
    if metadata is not None:
        rows.append(("robot", f"{metadata.embodiment or 'none'}, {metadata.control_mode or 'control mode not said'}"))
        rows.append(("source", f"{metadata.source}, licence {metadata.licence or 'not known'}"))
    return rows

"""A first mapping file for recordings in any layout, from the names, types and lengths of their arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from wamkit.data.importers.base import SourceError
from wamkit.data.importers.table_files import (
    FORMATS,
    UNITS,
    Declared,
    TableFile,
    by_number,
    is_table,
    short_names,
    table_file,
)
from wamkit.data.importers.video_files import ENDINGS
from wamkit.files import visible

GUESSES: Mapping[str, tuple[str, ...]] = {
    "action": ("action", "actions", "control", "command", "cmd"),
    "state": ("qpos", "state", "proprio", "joint", "pos", "pose", "gripper"),
    "texts": ("language", "instruction", "text", "task", "prompt", "goal"),
    "timestamps": ("timestamp", "time", "stamp", "clock"),
    "success": ("success", "is_success"),
    "reward": ("reward",),
}
"""Words in the names of arrays, by the key of the mapping that they suggest; the first key that fits is taken."""


_OTHER = "[^A-Za-z0-9_-]"
"""Letters that names of cameras do not have."""


def suggest_map(source: Path) -> str:
    """A first mapping file for `source`, as TOML with comments. Raises SourceError where it holds no table.

    The arrays are sorted by their names, types and lengths; what is not recognised stands in comments.
    """
    folder = source.is_dir() and not is_table(source)
    files = [p for p in visible(source, "**/*") if is_table(p)] if folder else [source]
    if not files:
        raise SourceError(f"{source}: there is no table in it; tables are {', '.join(FORMATS)}")
    file = table_file(files[0])
    arrays = dict(file.arrays())
    lines = [f"# A first mapping of {source.name}: look through it, then wamkit import table {source.name} --out DATA"]
    group = ""
    if folder:
        patterns = {p.suffix: f"{'**/' if p.parent != source else ''}*{p.suffix}" for p in files}
        lines.append(f'episodes = "{patterns[files[0].suffix]}"  # {len(files)} files')
    else:
        groups, pattern = _episode_groups(list(arrays))
        if groups:
            group = groups[0]
            lines.append(f'episodes = "{pattern}"  # {len(groups)} groups, the first is {group}')
            arrays = {n.removeprefix(f"{group}/"): a for n, a in arrays.items() if n.startswith(f"{group}/")}
    guessed = _guess(arrays, file.grouped)
    for key in ("episode_ends", "episode_index"):
        if key in guessed:
            lines.append(f'{key} = "{guessed[key][0]}"')
    if "timestamps" in guessed:
        key = guessed["timestamps"][0]
        lines += [f'timestamps = "{key}"', f'time_unit = "{_unit(file, f"{group}/{key}" if group else key)}"']
    else:
        lines.append("fps = 10  # steps a second: say which")
    lines += [f"{key} = {_toml_list(guessed.get(key, []))}" for key in ("state", "action")]
    texts = guessed.get("texts", []) + [f"@{n}" for n in file.attributes(group) if _names_a_text(n)]
    lines.append(f'texts = "{texts[0]}"' if texts else 'text = ""  # the instruction')
    lines += [f'{key} = "{guessed[key][0]}"' for key in ("success", "reward") if key in guessed]
    rest = [n for n in arrays if not any(n in names for names in guessed.values())]
    lines += [f"# not used: {n}, {arrays[n]}" for n in rest[:40]]
    cameras = guessed.get("cameras", [])
    videos = [p for p in visible(source if folder else source.parent, "**/*") if p.suffix.lower() in ENDINGS]
    short = dict(zip(cameras, short_names(cameras), strict=True))
    lines += ["", "[cameras]"] + [f'{re.sub(_OTHER, "_", short[n])} = "{n}"  # {arrays[n]}' for n in cameras]
    lines += [
        f'# camera = "{p.relative_to(source if folder else source.parent)}"  # {{stem}} for the episode\'s file'
        for p in videos[:4]
    ]
    return "\n".join(lines) + "\n"


def _unit(file: TableFile, key: str) -> str:
    """The unit in which times make from 1 to 1000 steps a second; "s" if none does."""
    times = file.numbers(key, 0, 1000).reshape(-1).astype(np.float64)
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return next((unit for unit, seconds in UNITS.items() if 1e-3 <= step * seconds <= 1), "s")


def _episode_groups(names: Sequence[str]) -> tuple[list[str], str]:
    """Groups whose names differ in their numbers and that hold the same arrays, and a pattern for all of them."""
    for depth in (1, 2, 3):
        inner: dict[str, set[str]] = {}
        for name in names:
            parts = name.split("/")
            if len(parts) > depth:
                inner.setdefault("/".join(parts[:depth]), set()).add("/".join(parts[depth:]))
        alike = by_number([g for g, held in inner.items() if any(c.isdigit() for c in g.rpartition("/")[2])])
        alike = [g for g in alike if inner[g] & inner[alike[0]]]
        if len(alike) > 1:
            *above, last = alike[0].split("/")
            pattern = "/".join([*above, re.sub(r"\d+", "*", last)])
            return alike, pattern if all(fnmatchcase(g, pattern) for g in alike) else "/".join("*" * depth)
    return [], ""


def _guess(arrays: Mapping[str, Declared], grouped: bool) -> dict[str, list[str]]:
    """Names of arrays by the key of the mapping that they are taken for."""
    out: dict[str, list[str]] = {}
    for name in by_number(list(arrays)):
        a, last = arrays[name], (name.rpartition("/")[2] if grouped else name).lower()
        if a.is_images:
            out.setdefault("cameras", []).append(name)
        elif a.kind == "texts":
            if _names_a_text(last):
                out.setdefault("texts", []).append(name)
        elif last in ("episode_ends", "episode_index"):
            out.setdefault(last, []).append(name)
        elif a.shape and a.dtype is not None and a.dtype.kind in "biuf" and len(a.shape) <= 3:
            key = next((k for k, words in GUESSES.items() if k != "texts" and any(w in last for w in words)), "")
            if key in ("timestamps", "success", "reward") and (len(a.shape) > 1 and a.shape[1] != 1 or key in out):
                continue
            if key and not (key in ("state", "action") and a.dtype.kind in "iu" and "index" in last):
                out.setdefault(key, []).append(name)
    if "state" in out:
        out["state"].sort(key=lambda name: "grip" in name)  # as most robots have it
    return out


def _names_a_text(name: str) -> bool:
    return any(w in name.lower() for w in GUESSES["texts"])


def _toml_list(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{n}"' for n in names) + "]"

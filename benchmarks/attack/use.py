"""What a data set, a run and an evaluation mean to their users, as digests: entries that a case calls in its child.

Each prints `use: DIGEST` and returns 0, or prints the error of wamkit and returns 1.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


def entry(function: Callable[..., Any]) -> Callable[..., int]:
    """An entry of the table below: refusals are printed as the command line prints them."""

    def call(*words: str) -> int:
        from wamkit.errors import WamkitError

        try:
            function(*words)
        except WamkitError as error:
            print(f"wamkit: {error}", file=sys.stderr)
            return 1
        return 0

    return call


def data(root: str) -> None:
    """Everything that training and people get from a data set."""
    print(f"use: {digest(dict(facts(Path(root), images=True)))}")


def data_and_validate(root: str) -> None:
    """The same, and whether `validate` finds an error."""
    from wamkit.data.validate import validate
    from wamkit.errors import WamkitError

    errors = [f for f in validate(Path(root), every_frame=True) if f.level == "error"]
    print(f"validate: {bool(errors)}")
    try:
        data(root)
    except WamkitError as error:
        if not errors:
            print(f"validate says nothing; {error}", file=sys.stderr)
        raise


def facts(root: Path, images: bool = False) -> Iterator[tuple[str, Any]]:
    """Everything that training and people get from a data set, by name; images and snapshots only if asked for."""
    from wamkit.data.format.metadata_io import load_metadata
    from wamkit.data.format.store import Store
    from wamkit.runs.provenance import Provenance

    store = Store.open(root)
    yield "layout", dataclasses.asdict(store.layout)
    yield "texts", store.texts
    yield from store.numeric().items()
    for i, meta in enumerate(store.episodes):
        yield f"facts {i}", dataclasses.asdict(meta)
        yield f"spans {i}", [dataclasses.astuple(s) for s in store.episode(i, images=False).spans]
        for camera in store.cameras if images else ():
            yield f"{camera} {i}", store.decode(i, camera)
        for camera in store.depth_cameras if images else ():
            yield f"{camera} {i}", store.decode_depth(i, camera)
        for t, snapshot in enumerate(store.snapshots(i) if images and (root / "snapshots").is_dir() else ()):
            yield f"snapshot {i} {t}", dataclasses.asdict(snapshot)
    yield "metadata", dataclasses.asdict(load_metadata(root))
    yield "provenance", dataclasses.asdict(Provenance.of(store))


def run(folder: str) -> None:
    """A run's configuration and weights, and one answer of its model."""
    import torch

    import wamkit
    from wamkit.runs.run import Run
    from wamkit.types import Observation

    torch.set_num_threads(1)
    opened = Run.open(folder)
    spec = opened.spec
    rng = np.random.default_rng(0)
    shape = (len(spec.cameras), 3, spec.height, spec.width)
    seen = Observation(rng.integers(0, 256, shape, np.uint8), rng.normal(size=spec.proprio_dim).astype(np.float32), "x")
    model = wamkit.load(opened)
    answer = model.sample(seen, "policy", seed=0).actions
    weights = {k: v.numpy() for k, v in opened.weights().items()}
    print(f"use: {digest([opened.described, opened.step, weights, np.asarray(answer)])}")


def report(page: str, *runs: str) -> None:
    """The figures that `wamkit report` shows."""
    from wamkit.eval.report.overview import overview

    overview([Path(r) for r in runs], Path(page))
    shown = json.loads(Path(page).with_suffix(".json").read_bytes())
    shown.pop("made_by")
    print(f"use: {digest(shown)}")


def content(path: Path) -> bytes | None:
    """The content of a file; None for anything else, and for nothing."""
    return path.read_bytes() if path.is_file() else None


def evaluation(folder: str, part: str, *options: str) -> None:
    """The figures of `wamkit eval`, and whether the `part` was read or made again (then times may differ)."""
    from wamkit.cli.main import main

    before = content(Path(folder, part))
    if main(["eval", folder, *options]):
        raise SystemExit(1)
    read = before is not None and content(Path(folder, part)) == before
    rows = json.loads(Path(folder, "eval/summary.json").read_bytes())["rows"]
    timed = {r["key"]: r["value"] for r in rows if "latency" in r["key"]}
    plain = {r["key"]: [r["value"], r.get("low"), r.get("high"), r.get("note")] for r in rows if r["key"] not in timed}
    print(f"use: {digest(plain)}\ntime: {digest(timed) if read else 'measured again'}")


def job(data: str, out: str, name: str) -> None:
    """The files of finished jobs of a comparison, one a row, as `wamkit compare` writes them."""
    from wamkit.config import save_json
    from wamkit.experiments.comparisons import COMPARISONS
    from wamkit.experiments.page import Result
    from wamkit.experiments.run import Setup, plan
    from wamkit.runs.config import config_to_dict

    jobs = plan(COMPARISONS.get(name)(), Setup(Path(data), Path(out), Path("work")))
    for planned in jobs[: len({j.entry.name for j in jobs})]:
        result = Result(
            planned.key, planned.entry.recipe, planned.seed, config_to_dict(planned.config), "leaf", ("policy",),
            {"trunk": 1, "all": 1}, {"main": 1}, {"cpu_s": 1.0, "wall_s": 1.0},
            {"reach": {"first_seed": 0, "outcomes": "1100", "steps": [3, 4, 5, 5]}}, {}, {},
            {"step": (1.0,), "held_out_action_error": (1.0,)}, {"wamkit": "", "commit": "", "machine": ""},
        )  # fmt: skip
        save_json(planned.result, result)


def digest(x: Any) -> str:
    """SHA-256 of nested containers of arrays, numbers and text."""
    found = hashlib.sha256()
    _feed(x, found.update)
    return found.hexdigest()[:16]


def _feed(x: Any, update: Callable[[bytes], None]) -> None:
    if isinstance(x, np.ndarray):
        update(f"{x.dtype}{x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    elif isinstance(x, dict):
        for key in sorted(x, key=str):
            update(repr(key).encode())
            _feed(x[key], update)
    elif isinstance(x, (list, tuple)):
        update(f"[{len(x)}".encode())
        for value in x:
            _feed(value, update)
    else:
        update(repr(x).encode())


ENTRIES = {
    "data": entry(data),
    "data+validate": entry(data_and_validate),
    "run": entry(run),
    "report": entry(report),
    "evaluation": entry(evaluation),
    "job": entry(job),
}

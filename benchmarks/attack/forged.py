"""Forged runs: a small real run whose configuration, manifest or weights were rewritten, with right checksums."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.attack.fixtures import copy
from benchmarks.attack.sandbox import Case

Edit = Callable[[Path, np.random.Generator], None]
"""Rewrites files of a checkpoint's folder."""

DEEP = 100_000


def forged_cases(made: Path, seed: int) -> Iterator[Case]:
    """Every forgery, asked by `wamkit show`, which builds the model; those of weights also by a query."""
    folder = sorted((made / "run/checkpoints").glob("step-*"))[0].relative_to(made)
    copied = copy(made, "run")
    for name, (edit, expect) in FORGERIES.items():
        commands = (("@run", "run"), ("show", "run")) if name.startswith(("weights", "state")) else (("@run", "run"),)
        for command in commands:

            def prepare(into: Path, rng: np.random.Generator, edit: Edit = edit, name: str = name) -> str:
                copied(into)
                edit(into / folder, rng)
                if not name.startswith("raw"):
                    seal(into / folder)
                return name

            built_alone = command[0] == "show" and name in ("weights-nan", "weights-inf")
            yield Case(
                f"forged/{name}/{command[0]}",
                command,
                prepare,
                names=("run/", folder.name),
                expect="any" if built_alone else expect,
            )


def seal(checkpoint: Path) -> None:
    """Recomputes the checksums of the files that the manifest lists, and its own."""
    path = checkpoint / "manifest.json"
    head = json.loads(path.read_bytes())
    if not isinstance(head, dict):
        return
    head.pop("sha256", None)
    for name in list(head["files"]) if isinstance(head.get("files"), dict) else ():
        file = checkpoint / name
        if file.is_file() and isinstance(head["files"][name], dict) and name in KNOWN:
            data = file.read_bytes()
            head["files"][name] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    body = json.dumps(head, sort_keys=True).encode()
    path.write_text(json.dumps(head | {"sha256": hashlib.sha256(body).hexdigest()}))


KNOWN = ("state.json", "weights.safetensors", "training.safetensors")


def state(place: str, value: Any) -> Edit:
    """Sets one value of state.json; `place` is its keys, joined by dots. DELETE leaves it out."""

    def edit(checkpoint: Path, rng: np.random.Generator) -> None:
        path = checkpoint / "state.json"
        data = json.loads(path.read_bytes())
        put(data, place, value)
        path.write_text(json.dumps(data))

    return edit


def manifest(place: str, value: Any) -> Edit:
    """Sets one value of manifest.json."""

    def edit(checkpoint: Path, rng: np.random.Generator) -> None:
        path = checkpoint / "manifest.json"
        data = json.loads(path.read_bytes())
        put(data, place, value)
        path.write_text(json.dumps(data))

    return edit


def put(data: Any, place: str, value: Any) -> None:
    *way, last = place.split("/")
    for key in way:
        data = data[key]
    if value is DELETE:
        del data[last]
    else:
        data[last] = value


def state_text(old: str, new: str) -> Edit:
    """Replaces text of state.json, for what json.dumps would not write."""

    def edit(checkpoint: Path, rng: np.random.Generator) -> None:
        path = checkpoint / "state.json"
        text = path.read_text()
        assert old in text, old
        path.write_text(text.replace(old, new, 1))

    return edit


def header(change: Callable[[dict[str, Any], str], None]) -> Edit:
    """Changes the JSON header of weights.safetensors; the second argument is the name of a tensor of it."""

    def edit(checkpoint: Path, rng: np.random.Generator) -> None:
        path = checkpoint / "weights.safetensors"
        raw = path.read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        head = json.loads(raw[8 : 8 + size])
        change(head, max((k for k in head if k != "__metadata__"), key=lambda k: head[k]["data_offsets"][1]))
        text = json.dumps(head).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])

    return edit


def raw_weights(change: Callable[[bytes], bytes]) -> Edit:
    def edit(checkpoint: Path, rng: np.random.Generator) -> None:
        path = checkpoint / "weights.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return edit


def nan_weights(value: float) -> Edit:
    def edit(checkpoint: Path, rng: np.random.Generator) -> None:
        path = checkpoint / "weights.safetensors"
        raw = path.read_bytes()
        start = 8 + struct.unpack("<Q", raw[:8])[0]
        path.write_bytes(raw[:start] + np.full((len(raw) - start) // 4, value, "<f4").tobytes())

    return edit


def place(name: str, make: Callable[[Path], None]) -> Edit:
    """Puts something else in place of a file of the run's folder."""

    def edit(checkpoint: Path, rng: np.random.Generator) -> None:
        path = checkpoint / name
        path.unlink(missing_ok=True)
        make(path)

    return edit


def deep(n: int = DEEP) -> str:
    return "[" * n + "]" * n


DELETE = object()
MODEL, SPEC = "config/model/", "config/spec/"

STATES: tuple[tuple[str, str, Any], ...] = (
    ("depth", MODEL + "depth", 100_000),
    ("depth-negative", MODEL + "depth", -1),
    ("depth-text", MODEL + "depth", "4"),
    ("width", MODEL + "width", 2_000_000),
    ("heads", MODEL + "heads", 3),
    ("buckets", MODEL + "text", {"buckets": 10**11}),
    ("channels", MODEL + "codec_channels", 10**9),
    ("codec", MODEL + "codec", "x"),
    ("text-kind", MODEL + "text", []),
    ("offsets", "config/window/frame_offsets", list(range(1, 20_000))),
    ("height", SPEC + "height", 10**9),
    ("height-0", SPEC + "height", 0),
    ("height-65536", SPEC + "height", 65536),
    ("cameras", SPEC + "cameras", [f"c{i}" for i in range(10_000)]),
    ("cameras-none", SPEC + "cameras", []),
    ("proprio", SPEC + "proprio_dim", 10**9),
    ("action", SPEC + "action_dim", 10**9),
    ("action-0", SPEC + "action_dim", 0),
    ("spec-chunk", SPEC + "chunk", 10**8),
    ("spec-offsets", SPEC + "frame_offsets", [1] * 50_000),
    ("spec-gone", "config/spec", DELETE),
    ("spec-list", "config/spec", []),
    ("model-gone", "config/model", DELETE),
    ("family-gone", "config/family", DELETE),
    ("family", "config/family", "bc"),
    ("family-number", "config/family", 7),
    ("family-unknown", "config/family", "x" * 5000),
    ("config-gone", "config", DELETE),
    ("config-list", "config", []),
    ("step-gone", "step", DELETE),
    ("step-text", "step", "x"),
    ("weights-gone", "weights", DELETE),
    ("weights-list", "weights", []),
    ("weights-number", "weights", 3),
    ("extra-gone", "extra", DELETE),
    ("statistics-gone", "config/statistics", DELETE),
    ("statistics-list", "config/statistics", []),
    ("statistics-mean", "config/statistics/action/mean", [0.0]),
    ("statistics-std-gone", "config/statistics/action/std", DELETE),
    ("statistics-text", "config/statistics/action/std", "xx"),
    ("statistics-deep", "config/statistics/action", [[[1]]]),
    ("provenance-list", "config/provenance", [1]),
    ("provenance-seeds", "config/provenance/seeds", "x"),
    ("tensor-name", "weights", {"a": {"__tensor__": "missing"}}),
    ("tensor-list", "weights", {"a": {"__tensor__": []}}),
    ("stride", "weights", {"a": {"__tensor__": "a", "stride": [10**12]}}),
    ("tuple", "weights", {"__tuple__": 3}),
    ("items", "weights", {"__items__": [[1]]}),
    ("items-key", "weights", {"__items__": [[[], 1]]}),
    ("train-steps", "config/train", {"steps": "x"}),
    ("embodiments", "config/embodiments", {"a": []}),
)
"""(name, place in state.json, value) of configurations and indices that cannot be right."""


def newer_unnamed(checkpoint: Path, rng: np.random.Generator) -> None:
    """A newer format that does not say which wamkit wrote it."""
    manifest("format_version", 99)(checkpoint, rng)
    manifest("wamkit_version", DELETE)(checkpoint, rng)


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


FORGERIES: dict[str, tuple[Edit, Any]] = {
    **{f"state-{name}": (state(at, value), "refused") for name, at, value in STATES},
    "state-fps": (state(SPEC + "fps", -1), "any"),
    "state-steps": (state(MODEL + "denoising_steps", 10**9), "any"),
    "state-policy-steps": (state(MODEL + "policy_steps", 10**9), "any"),
    "state-std-0": (state("config/statistics/action/std", [0.0, 0.0]), "any"),
    "state-chunk": (state("config/window/chunk", 10**9), "any"),
    "state-nan": (state_text('"std": [', '"std": [NaN, '), "refused"),
    "state-huge": (state_text('"step": 2', '"step": 1' + "0" * 400), "any"),
    "state-nested": (state_text('"step": 2', f'"step": 2, "x": {deep()}'), "refused"),
    "state-list": (place("state.json", lambda p: p.write_text("[1]")), "refused"),
    "state-long": (state_text('"step": 2', '"step": 2, "x": "' + "x" * 100_000_000 + '"'), "any"),
    "manifest-no-files": (manifest("files", {}), "refused"),
    "manifest-files-list": (manifest("files", []), "refused"),
    "manifest-files-null": (manifest("files", None), "refused"),
    "manifest-without-weights": (manifest("files/weights.safetensors", DELETE), "refused"),
    "manifest-without-state": (manifest("files/state.json", DELETE), "refused"),
    "manifest-entry-list": (manifest("files/state.json", [1]), "refused"),
    "manifest-entry-null": (manifest("files/weights.safetensors", None), "refused"),
    "manifest-version": (manifest("format_version", 10**6), "refused"),
    "manifest-version-true": (manifest("format_version", True), "any"),
    "manifest-version-negative": (manifest("format_version", -1), "any"),
    "manifest-newer-unnamed": (newer_unnamed, "refused"),
    "manifest-more-files": (manifest("files/x", {"size": 1, "sha256": "x"}), "any"),
    "raw-manifest-nested": (place("manifest.json", lambda p: p.write_text(deep())), "refused"),
    "raw-manifest-fifo": (place("manifest.json", os.mkfifo), "refused"),
    "raw-weights-fifo": (place("weights.safetensors", os.mkfifo), "refused"),
    "raw-state-device": (place("state.json", link_to_zeros), "refused"),
    "raw-latest-fifo": (place("../latest", os.mkfifo), "any"),
    "raw-latest-device": (place("../latest", link_to_zeros), "any"),
    "raw-latest-up": (place("../latest", lambda p: p.write_text("../../other\n")), "refused"),
    "raw-latest-long": (place("../latest", lambda p: p.write_text("step-" + "0" * 10**6)), "refused"),
    "raw-latest-bytes": (place("../latest", lambda p: p.write_bytes(b"\xff\xfe\x00")), "refused"),
    "weights-nan": (nan_weights(float("nan")), "refused"),
    "weights-inf": (nan_weights(float("inf")), "refused"),
    "weights-header-long": (raw_weights(lambda b: struct.pack("<Q", 2**63) + b[8:]), "refused"),
    "weights-header-100mb": (raw_weights(lambda b: struct.pack("<Q", 99_000_000) + b[8:]), "refused"),
    "weights-header-deep": (raw_weights(lambda b: struct.pack("<Q", 2 * DEEP) + deep().encode()), "refused"),
    "weights-cut": (raw_weights(lambda b: b[: len(b) // 2]), "refused"),
    "weights-empty": (raw_weights(lambda b: b""), "refused"),
    "weights-shape": (header(lambda h, k: h[k].update(shape=[2**40])), "refused"),
    "weights-shape-product": (header(lambda h, k: h[k].update(shape=[2**33, 2**31, 0])), "refused"),
    "weights-dtype": (header(lambda h, k: h[k].update(dtype="X99")), "refused"),
    "weights-integers": (header(lambda h, k: h[k].update(dtype="I32")), "refused"),
    "weights-offsets": (header(lambda h, k: h[k].update(data_offsets=[0, 2**62])), "refused"),
    "weights-one-gone": (header(lambda h, k: h.pop(k)), "refused"),
    "weights-renamed": (header(lambda h, k: h.update(other=h.pop(k))), "refused"),
}
"""Name -> (forgery, expected outcome). Names that begin with "raw" keep the checksums as they are."""

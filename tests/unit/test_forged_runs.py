"""Run folders made by hand, with right checksums: refused in one line, quickly, and with little memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from conftest import untrained_run
from wamkit.config import ConfigError
from wamkit.inference.model import load
from wamkit.runs.checkpoint import MANIFEST, STATE, TRAINING, WEIGHTS, load_checkpoint
from wamkit.types import WamkitError

TASK, OPTIONS = "drawer-open-v3", {"max_steps": 3, "height": 32, "width": 32}
HUGE = 10**9


class Forge:
    """One checkpoint folder. Every change ends with a manifest whose checksums are right."""

    def __init__(self, folder: Path):
        self.folder = next((folder / "checkpoints").glob("step-*"))

    def seal(self, **head: Any) -> None:
        files = {
            name: {"size": (self.folder / name).stat().st_size, "sha256": self.hash(name)}
            for name in (STATE, WEIGHTS, TRAINING)
        }
        head = {"format_version": 1, "wamkit_version": "0", "files": files} | head
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()
        (self.folder / MANIFEST).write_text(json.dumps(head | {"sha256": digest}))

    def hash(self, name: str) -> str:
        return hashlib.sha256((self.folder / name).read_bytes()).hexdigest()

    def state(self, change: Callable[[dict], Any]) -> None:
        state = json.loads((self.folder / STATE).read_text())
        state = change(state) or state
        (self.folder / STATE).write_text(state if isinstance(state, str) else json.dumps(state))
        self.seal()

    def config(self, *path: str, value: Any) -> None:
        def change(state: dict) -> None:
            at = state["config"]
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value

        self.state(change)

    def header(self, change: Callable[[dict], None], size: int | None = None) -> None:
        data = (self.folder / WEIGHTS).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        change(header)
        text = json.dumps(header).encode()
        content = (len(text) if size is None else size).to_bytes(8, "little") + text + data[end:]
        (self.folder / WEIGHTS).write_bytes(content)
        self.seal()


def first(header: dict) -> dict:
    return next(v for k, v in header.items() if k != "__metadata__")


def lacks(part: str) -> Callable[[Forge], None]:
    return lambda f: f.state(lambda s: s["config"].pop(part) and None)


def config(*path: str, value: Any) -> Callable[[Forge], None]:
    return lambda f: f.config(*path, value=value)


def stride(value: Any) -> Callable[[Forge], None]:
    def change(state: dict) -> None:
        next(iter(state["weights"].values()))["stride"] = value

    return lambda f: f.state(change)


def replaced(name: str, kind: str) -> Callable[[Forge], None]:
    def change(forge: Forge) -> None:
        (forge.folder / name).unlink()
        os.mkfifo(forge.folder / name) if kind == "pipe" else (forge.folder / name).symlink_to("/dev/zero")

    return change


def sparse(forge: Forge) -> None:
    """A state of 100 GB on a disk that has none."""
    with open(forge.folder / STATE, "ab") as file:
        file.truncate(10**11)
    files = json.loads((forge.folder / MANIFEST).read_text())["files"]
    forge.hash = lambda name: files[name]["sha256"]
    forge.seal()


embodiment = {"name": "x", "control_mode": "", "views": [0], "state_size": 4, "action_size": 4, "state": []}
slot = {"field": {"name": "a", "start": 0, "stop": HUGE, "kind": "joint"}, "at": 0, "size": 4}


def spoiled(f: Forge) -> None:
    """Weights of which one is NaN."""
    tensors = load_file(f.folder / WEIGHTS)
    next(x for x in tensors.values() if x.is_floating_point()).view(-1)[0] = float("nan")
    save_file(tensors, f.folder / WEIGHTS)
    f.seal()


FORGED = {
    "weights NaN": (spoiled, "holds NaN or infinity; use an earlier one, or train again"),
    "family absurdly long": (config("family", value="x" * 5000), r"unknown family .* \[\.\.\.\] .*known: "),
    "offsets absurdly many": (
        config("spec", "frame_offsets", value=[*range(1, 30_000)]),
        r"frame_offsets.* \[\.\.\.\] ",
    ),
    "no files": (lambda f: f.seal(files={}), "does not list state.json with its size and SHA-256"),
    "files no dict": (lambda f: f.seal(files=[1]), "does not list state.json"),
    "a file without hash": (lambda f: f.seal(files={STATE: {"size": 3}}), "does not list state.json"),
    "version text": (lambda f: f.seal(format_version="1"), "format_version is '1', not a number"),
    "version of the future": (lambda f: f.seal(format_version=10**6), "upgrade wamkit"),
    "manifest deep": (lambda f: (f.folder / MANIFEST).write_text("[" * 200_000), "manifest.json is damaged"),
    "manifest a pipe": (replaced(MANIFEST, "pipe"), "manifest.json is a pipe, not a file"),
    "manifest endless": (replaced(MANIFEST, "zero"), "manifest.json is a device, not a file"),
    "state a pipe": (replaced(STATE, "pipe"), "state.json is missing"),
    "weights endless": (replaced(WEIGHTS, "zero"), "weights.safetensors is missing"),
    "state of 100 GB": (sparse, "state.json has 100000000000 bytes, and at most 67108864 are read"),
    "state deep": (lambda f: f.state(lambda s: "[" * 200_000), "nested more than 64 deep"),
    "state a list": (lambda f: f.state(lambda s: "[]"), "'step' is missing, or no int"),
    "step text": (lambda f: f.state(lambda s: s | {"step": "1"}), "'step' is missing, or no int"),
    "no extra": (lambda f: f.state(lambda s: s.pop("extra") and None), "'extra' is missing, or no dict"),
    "weights unknown": (lambda f: f.state(lambda s: s | {"weights": {"a": {"__tensor__": "b"}}}), "names tensors that"),
    "weights numbers": (lambda f: f.state(lambda s: s | {"weights": {"a": 3}}), "names tensors that"),
    "stride huge": (stride([HUGE, HUGE]), "'weights' is not as wamkit writes it"),
    "stride negative": (stride([-1]), "'weights' is not as wamkit writes it"),
    "stride text": (stride("ab"), "'weights' is not as wamkit writes it"),
    "items": (lambda f: f.state(lambda s: s | {"extra": {"__items__": [1]}}), "'extra' is not as wamkit writes it"),
    "NaN": (lambda f: f.state(lambda s: json.dumps(s).replace('"step": 1', '"step": NaN')), "NaN is no number"),
    "no family": (lacks("family"), "the configuration lacks 'family'"),
    "no model": (lacks("model"), "the configuration lacks 'model'"),
    "no spec": (lacks("spec"), "the configuration lacks 'spec'"),
    "no statistics": (lacks("statistics"), "the configuration lacks 'statistics'"),
    "family a list": (config("family", value=["bc"]), "family is no name"),
    "family unknown": (config("family", value="../bc"), "unknown"),
    "model a list": (config("model", value=[]), "model is no group of values"),
    "depth": (config("model", "depth", value=10**5), "depth|describes more tensors"),
    "width": (config("model", "width", value=65536), "width|of its tensors do not fit"),
    "width huge": (config("model", "width", value=2 * 10**30), "width|can be built"),
    "heads zero": (config("model", "heads", value=0), "heads"),
    "spec height": (config("spec", "height", value=HUGE), "height = 1000000000: must be between 1 and 8192"),
    "spec cameras": (config("spec", "cameras", value=["a"] * 1000), "1 to 64 cameras"),
    "spec chunk": (config("spec", "chunk", value=HUGE), "chunk = 1000000000"),
    "spec offsets": (config("spec", "frame_offsets", value=[HUGE]), "frame_offsets"),
    "spec text": (config("spec", "height", value="32"), "spec|height: expected int"),
    "statistics short": (
        config("statistics", "action", value={"mean": [0], "std": [1]}),
        "statistics.action: expected",
    ),
    "statistics text": (config("statistics", "action", value={"mean": "0000", "std": "1111"}), "statistics.action"),
    "statistics huge": (config("statistics", "action", "std", value=[1e39] * 4), "statistics.action: expected"),
    "provenance": (config("provenance", value={"seeds": "all"}), "seeds"),
    "embodiments": (config("embodiments", value={"x": embodiment | {"action": [slot]}}), "embodiments.x does not fit"),
    "origins": (config("origins", value={"a": {"seeds": [0.5]}}), "seeds"),
    "header huge": (lambda f: f.header(lambda h: None, size=2**62), "declares a header of"),
    "header of sizes": (lambda f: f.header(lambda h: first(h).update(shape=[HUGE] * 9)), "do not fit"),
    "header of types": (lambda f: f.header(lambda h: first(h).update(dtype="I64")), "do not fit"),
    "header of text": (lambda f: f.header(lambda h: first(h).update(shape="abc")), "header that describes no tensors"),
    "header lacks": (lambda f: f.header(lambda h: h.pop(next(iter(h)))), "names tensors that|do not fit"),
    "header offsets": (lambda f: f.header(lambda h: first(h).update(data_offsets=[0, HUGE])), "cannot be read"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("made") / "run", [TASK], OPTIONS)


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_run_is_refused_in_one_line_at_once(made, tmp_path, kind):
    forge, message = FORGED[kind]
    folder = shutil.copytree(made, tmp_path / "run")
    load(folder)
    forge(Forge(folder))
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(WamkitError, match=message) as refused:
        load(folder)
    took, (_, most) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    text = str(refused.value)
    assert "\n" not in text and len(text) < 1000 and str(folder) in text, text
    assert took < 2 and most < 100e6, (took, most)


def test_a_training_state_that_is_not_listed_is_found_when_training_resumes(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "run")
    forge = Forge(folder)
    forge.seal(
        files={k: {"size": (forge.folder / k).stat().st_size, "sha256": forge.hash(k)} for k in (STATE, WEIGHTS)}
    )
    assert load(folder).name == "bc"
    with pytest.raises(WamkitError, match=f"does not list {TRAINING} with its size and SHA-256"):
        load_checkpoint(folder, training=True)
    assert issubclass(ConfigError, WamkitError)

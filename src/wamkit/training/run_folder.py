"""A run folder as training writes it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from wamkit import old_names
from wamkit.config import save_json, sealed
from wamkit.files import StoreError, WriteError, check_place, exclusive, read_json, write_error
from wamkit.runs.checkpoint import (
    Checkpoint,
    CheckpointError,
    Manifest,
    Place,
    State,
    has_checkpoint,
    load_checkpoint,
    read_manifest,
    save_checkpoint,
    verify,
)
from wamkit.training.metrics import METRICS
from wamkit.training.world import World
from wamkit.types import WamkitError

CONFIG = "config.json"
DIVISION = ("replicas", "checkpoint_activations")
"""Options of training that may change from one start of a run to the next."""
PROCESSES = "processes"
"""Entry of a run's configuration: the number of processes that train it, where there are several."""


def check_run_folder(path: Path) -> None:
    """Raises WriteError, before any work, unless a run can be written to the folder `path`.

    It may be new, that of a run, or hold other files with names that a run does not use.
    """
    check_place(path / CONFIG)
    if has_checkpoint(path) or _describes_run(path / CONFIG):
        return
    for name in (CONFIG, METRICS, "tensorboard", "csv", "checkpoints"):
        if os.path.lexists(path / name):
            raise WriteError(f"{path / name} is no part of a run of wamkit: move it away, or choose another --out")


def _describes_run(path: Path) -> bool:
    try:
        return {"family", "train"} <= set(read_json(path))
    except (StoreError, TypeError):
        return False


@dataclass(frozen=True)
class RunFolder:
    """A folder with config.json, metrics.jsonl, checkpoints/ and what trackers write.

    config: the resolved configuration of the run, JSON-able. Every checkpoint holds it, and a run resumes only under
    the same one.   command: the command that asked for the run, kept in config.json.
    """

    path: Path
    config: dict[str, Any]
    command: str = ""

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Makes the folder and holds it against other processes.

        Raises WriteError where it cannot be written, StoreError if another process trains there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with exclusive(self.path):
                yield
        except OSError as e:
            raise e if isinstance(e, WamkitError) else write_error(self.path, e) from e

    def check_shared(self, world: World) -> None:
        """Raises WamkitError in all processes unless all see this folder, which the first has made."""
        if world.size == 1:
            return
        mark = self.path / world.by_first(self._mark)
        seen = world.all(mark.exists())
        if world.first:
            mark.unlink()
        if not all(seen):
            raise WamkitError(
                f"the process of rank {seen.index(False)} does not see {self.path} of rank 0: give all of them one "
                "--out in a file system that they share"
            )

    def _mark(self) -> str:
        mark = self.path / f".seen-{secrets.token_hex(8)}"
        mark.touch()
        return mark.name

    def save_config(self) -> None:
        """Writes config.json."""
        save_json(self.path / CONFIG, sealed({"command": self.command} | self.config))

    def save(self, world: World = World(), **state: Any) -> None:  # noqa: B008 (frozen)
        """Adds a checkpoint; `state` are further arguments of `save_checkpoint`.

        world: the processes that call this, each with its part of the state.
        """
        folder = self.path / "checkpoints"
        if world.size == 1:
            save_checkpoint(folder, config=self.config, **state)
        else:
            from wamkit.training.sharded_checkpoint import save_sharded

            save_sharded(folder, world, config=self.config, **state)

    def load(self, world: World = World(), place: Place | None = None) -> Checkpoint | None:  # noqa: B008 (frozen)
        """The newest checkpoint with its training state, or None.

        world: the processes that call this.   place: makes tensors that each of them reads its part into.
        Raises WamkitError if it belongs to another configuration. More steps are none, once the earlier ones are done:
        the run is then trained further.
        """
        if not has_checkpoint(self.path):
            return None
        manifest = read_manifest(self.path)
        self._check(manifest.state())
        if world.size > 1:
            _verify(manifest, world)
        return load_checkpoint(manifest.path, training=True, place=place)

    def _check(self, saved: State) -> None:
        """Raises WamkitError unless the run goes on from a checkpoint of this configuration."""
        before, now = map(old_names.without_added, (old_names.run_config(saved.config), self.config))
        if (then := before.pop(PROCESSES, 1)) != (count := now.pop(PROCESSES, 1)):
            print(
                f"note: {self.path} was trained by {then} processes so far, and is by {count} from here: the weights "
                "are the same, sums are in another order",
                flush=True,
            )
        for config in (before, now):  # how a training is divided changes nothing that is learned
            config["train"] = {k: v for k, v in config["train"].items() if k not in DIVISION}
        (was, steps), given = (c["train"]["steps"] for c in (before, now)), before
        if was != steps:
            before = {**before, "train": {**before["train"], "steps": steps}}
            if before == now and (saved.step < was or steps < was):
                raise WamkitError(
                    f"{self.path} is at step {saved.step} of {was}, so {steps} steps are no further training: "
                    f"--train.steps {was} finishes it, and a number above {was} then trains it further"
                )
        if before != now:
            found = sorted(_differences(given, now))
            named = [f"{at} was {was}, now {now}" for at, was, now in found[:4]] + ["..."] * (len(found) > 4)
            raise WamkitError(
                f"{self.path} was trained with another configuration ({'; '.join(named)}): "
                "choose another --out, or the same options"
            )


def _verify(manifest: Manifest, world: World) -> None:
    """Raises CheckpointError in all processes if a file of a checkpoint is damaged. Each looks at some."""
    problem = ""
    try:
        verify(manifest, world.rank, world.size)
    except CheckpointError as error:
        problem = str(error)
    if problem := world.agreed(problem):
        raise CheckpointError(problem)


def digest(config: Mapping[str, Any]) -> str:
    """The first digits of the SHA-256 of a configuration."""
    return hashlib.sha256(json.dumps(sealed(config), sort_keys=True).encode()).hexdigest()[:12]


def _differences(a: object, b: object, path: str = "") -> Iterator[tuple[str, str, str]]:
    """(place, value in `a`, value in `b`) wherever two configurations differ, values shortened."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {*a, *b}:
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif a != b:
        yield path, shorten(str(a), 40), shorten(str(b), 40)

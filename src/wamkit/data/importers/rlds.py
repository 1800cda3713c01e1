"""RLDS, the format of Open X-Embodiment: a TFDS folder of TFRecord files, read without TensorFlow.

    features.json                            shapes, types and nesting of the content of a step
    <name>-<split>.tfrecord-00000-of-00005   one record an episode, a tf.train.Example with flattened names:
        steps/action                         T * a floats;   steps/observation/state   T * s floats
        steps/observation/image              T encoded images (PNG or JPEG)
        steps/language_instruction           T texts;   steps/is_first, is_last, is_terminal, reward, discount

The meaning of action dimensions differs between data sets and is not in the files, but for names such as
`gripper_position`. The rest is open, unless `--options.metadata` names a JSON file with it, in the form of
meta/wamkit.json, or `wamkit import --set` states it. Observations come before their actions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.config import Checked, Rate, load_json
from wamkit.data.description import field_by_name
from wamkit.data.format.camera_roles import camera_by_name
from wamkit.data.format.schema import Layout
from wamkit.data.importers.base import (
    IMPORTERS,
    WIDTH,
    ImageStream,
    Importer,
    Recording,
    SourceError,
    camera_layout,
    checked,
    entry,
    inside,
    reading,
    text_spans,
    whole,
)
from wamkit.data.importers.encoded_images import decode_image
from wamkit.data.importers.tfrecord import example, offsets, record
from wamkit.errors import nearest
from wamkit.files import read_json, visible
from wamkit.metadata import DatasetMetadata

TEXTS = ("language_instruction", "observation/natural_language_instruction", "observation/language_instruction")


@dataclass(frozen=True)
class RLDSOptions(Checked):
    """Options of the importer `rlds`."""

    rate: Rate = 10.0
    """Steps a second, which only the card of a data set states: RT-1 has 3, Bridge 5, DROID 15."""
    split: str = "train"
    """Split of the data set."""
    state: tuple[str, ...] = ()
    """Vectors of `observation` that form the state, in this order; if empty, "state" or "proprio", else all."""
    action: tuple[str, ...] = ("action",)
    """Vectors of a step that form the action, in this order: "action/world_vector action/rotation_delta" for RT-1."""
    metadata: Path | None = None
    """JSON file with the metadata, in the form of meta/wamkit.json."""


@IMPORTERS.register("rlds")
class RLDS(Importer):
    """Open X-Embodiment's RLDS: TFRecord files, without TensorFlow."""

    Options = RLDSOptions
    options: RLDSOptions

    @cached_property
    def _step(self) -> dict[str, dict[str, Any]]:
        """The leaves of a step by flattened name: {"shape": ..., "kind": "tensor" | "image" | "text"}."""
        path = inside(self.root, "features.json")
        with reading(path):
            if not path.exists():
                raise SourceError("there is no such file; name the folder of one version, as in bridge/1.0.0")
            steps = read_json(path)
            for key in ("featuresDict", "features", "steps", "sequence", "feature"):
                steps = entry(steps, key, dict)
            return dict(_leaves(steps, ""))

    def _vectors(self, prefix: str) -> list[str]:
        names = (
            k for k, f in self._step.items() if k.startswith(prefix) and f["kind"] == "tensor" and len(f["shape"]) == 1
        )
        return sorted(names)

    @cached_property
    def _state(self) -> list[str]:
        if self.options.state:
            return self._known([f"observation/{k}" for k in self.options.state])
        every = self._vectors("observation/")
        return next(([f"observation/{k}"] for k in ("state", "proprio") if f"observation/{k}" in every), every)

    def _known(self, names: Sequence[str]) -> list[str]:
        for name in names:
            if name not in self._step or self._step[name]["kind"] != "tensor":
                known = self._vectors("")
                near = nearest(name, known)
                raise SourceError(f"{self.root}: its steps have no vector '{name}'{near}; they have {', '.join(known)}")
        return list(names)

    @cached_property
    def _cameras(self) -> dict[str, str]:
        return {
            k.split("/")[-1]: k for k, f in sorted(self._step.items()) if f["kind"] == "image" and f["shape"][2:] == [3]
        }

    @cached_property
    def _sizes(self) -> dict[str, tuple[int, int]]:
        """(H, W) of each camera, of the first episode that it saw."""
        found: dict[str, tuple[int, int]] = {}
        for name in self._records:
            path, data = self._example(name)
            with reading(path, name):
                found = {c: _image(data, key, 0).shape[:2] for c, key in self._seen(data).items()} | found
            if len(found) == len(self._cameras):
                break
        return {c: found[c] for c in self._cameras if c in found}

    def _seen(self, data: Mapping[str, Any]) -> dict[str, str]:
        """The cameras that saw an episode: their images are there, and are not all empty."""
        stored = {c: (key, data.get(f"steps/{key}", ())) for c, key in self._cameras.items()}
        return {c: key for c, (key, images) in stored.items() if not isinstance(images, Sequence) or any(images)}

    @cached_property
    def _records(self) -> dict[str, tuple[Path, int]]:
        """The file and byte offset of each episode, by name: number of the file, number of the record in it."""
        pattern = re.compile(rf".*-{re.escape(self.options.split)}\.tfrecord-(\d+)-of-(\d+)$")
        files = {
            int(m[1]): (inside(self.root, p.name), int(m[2]))
            for p in visible(self.root, "*")
            if (m := pattern.match(p.name))
        }
        if not files:
            splits = {m[1] for p in visible(self.root, "*") if (m := re.match(r".*-(.+)\.tfrecord-", p.name))}
            near, known = nearest(self.options.split, splits), ", ".join(sorted(splits)) or "none"
            raise SourceError(f"{self.root}: there are no files of the split '{self.options.split}'{near}; has {known}")
        total = next(iter(files.values()))[1]
        missing = next(i for i in range(len(files) + 1) if i not in files)
        if missing < total:
            raise SourceError(
                f"{self.root}: file {missing} of {total} of the split '{self.options.split}' is missing; fetch it again"
            )
        return {f"{n:05d}/{i}": (p, at) for n, (p, _) in sorted(files.items()) for i, at in enumerate(offsets(p))}

    def layout(self) -> Layout:
        action = self._known(self.options.action)
        if not self._records:
            raise SourceError(f"{self.root}: its files have no records; fetch them again")
        return Layout(
            **camera_layout(self._sizes),
            proprio_names=self._names(self._state),
            action_names=self._names(action),
            fps=self.options.rate,
            robot_type=self.root.parent.name,
            expert=False,
            rewards="reward" in self._step,
        )

    def _names(self, leaves: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            f"{leaf.removeprefix('observation/').replace('/', '.')}_{i}"
            for leaf in leaves
            for i in range(self._size(leaf))
        )

    def _size(self, leaf: str) -> int:
        return whole(math.prod(self._step[leaf]["shape"]), f"the size of '{leaf}' in features.json", 1, WIDTH)

    def metadata(self) -> DatasetMetadata:
        found = {c: camera_by_name(c, len(self._sizes)) for c in self._sizes}
        cameras = {c: facts for c, facts in found.items() if facts}
        parts = {}
        for name, leaves in (("state", self._state), ("action", list(self.options.action))):
            ends = np.cumsum([0, *(self._size(leaf) for leaf in leaves)]).tolist()
            parts[name] = tuple(field_by_name(*leaf, name) for leaf in zip(leaves, ends, ends[1:], strict=False))
        inferred = [f"{k}.{f.name}" for k, fields in parts.items() for f in fields if f.kind != "other"]
        plain = DatasetMetadata(
            f"RLDS, {self.root.parent.name} {self.root.name}",
            self.root.parent.name,
            rate=self.options.rate,
            cameras=cameras,
            inferred=(*inferred, *(f"cameras.{c}" for c in cameras)),
            **parts,
        )
        if self.options.metadata is None:
            return plain
        given = load_json(DatasetMetadata, self.options.metadata)
        return replace(given, cameras=cameras | dict(given.cameras))

    def episodes(self) -> Sequence[str]:
        return list(self._records)

    def _example(self, name: str) -> tuple[Path, dict[str, Any]]:
        path, at = self._records[name]
        with reading(path, name):
            return path, example(record(path, at, name))

    def read(self, name: str) -> Recording:
        path, data = self._example(name)
        with reading(path, name):
            action = [data[f"steps/{leaf}"] for leaf in self.options.action]
            T = len(action[0]) // self._size(self.options.action[0])

            def rows(leaf: str) -> np.ndarray:
                values, size = np.asarray(data[f"steps/{leaf}"]), self._size(leaf)
                if len(values) != T * size:
                    raise SourceError(f"'{leaf}' has {len(values)} values instead of {T} times {size}")
                return checked(values.reshape(T, size), (T, size), leaf)

            texts = next((data[f"steps/{k}"] for k in TEXTS if f"steps/{k}" in data), [b""] * T)
            texts = [t.decode("utf-8", "replace").strip() for t in texts]
            reward = checked(np.asarray(data["steps/reward"]), (T,), "reward") if "steps/reward" in data else None
            seen = self._seen(data)
            for key in seen.values():
                if len(data[f"steps/{key}"]) != T:
                    raise SourceError(f"{key} has {len(data[f'steps/{key}'])} images for {T} steps")
            empty = np.zeros((T, 0), np.float32)
            return Recording(
                name=name,
                text=texts[0] if len(texts) == T else "",
                state=np.concatenate([rows(leaf) for leaf in self._state], 1) if self._state else empty,
                action=np.concatenate([rows(leaf) for leaf in self.options.action], 1),
                images={c: self._images(path, name, key) for c, key in seen.items()},
                spans=text_spans(texts),
                success=None if reward is None else reward > 0,
                reward=reward,
            )

    def _images(self, path: Path, name: str, key: str) -> ImageStream:
        def images() -> Iterator[np.ndarray]:
            with reading(path, name):
                data = self._example(name)[1]
                for step in range(len(data[f"steps/{key}"])):
                    yield _image(data, key, step)

        return images


def _leaves(feature: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if "featuresDict" in feature:
        for key, inner in entry(entry(feature, "featuresDict", dict), "features", dict).items():
            yield from _leaves(inner, f"{name}/{key}" if name else key)
        return
    for kind in ("tensor", "image", "text"):
        if kind in feature:
            shape = entry(entry(feature, kind, dict), "shape", dict, {})
            dimensions = [int(n) for n in entry(shape, "dimensions", list, [])]
            yield name, {"kind": kind, "shape": dimensions}


def _image(data: dict[str, Any], key: str, step: int) -> np.ndarray:
    """Decodes the image of a step."""
    images = data[f"steps/{key}"]
    if not isinstance(images, list) or not images:
        raise SourceError(f"'{key}' holds {'no' if isinstance(images, list) else 'numbers instead of'} images")
    return decode_image(images[step], f"{key}, step {step}")

"""CALVIN: play data, one npz file a step (arXiv:2112.03227).

    episode_0000000.npz                  rgb_static uint8 (200, 200, 3), rgb_gripper (84, 84, 3), robot_obs float (15,),
                                         actions (7,): absolute xyz, Euler xyz, gripper; rel_actions (7,): the same as steps in [-1, 1]
    ep_start_end_ids.npy                 int (E, 2): first and last step of each stretch of play, both included
    lang_annotations/auto_lang_ann.npy   a pickled dictionary: language.ann texts, info.indx their (first, last) steps, both included

`source` is one split, as in `task_D_D/training`. Most of play is said nothing about: a stretch is an episode, annotations are its
spans, its other steps have no text. rel_actions are metres times 50 and radians times 20, cut at -1 and 1. What is seen comes before each
action. The annotations are a pickle: only plain containers, numbers, texts and NumPy arrays are let through.
"""

from __future__ import annotations

import pickle  # house: only `_Plain` below, which lets plain containers, numbers, texts and arrays through
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from wamkit.data.format.metadata_io import CameraFacts, DatasetMetadata, Field
from wamkit.data.format.schema import Layout
from wamkit.data.importers.base import IMPORTERS, LIMIT, ImageStream, Importer, Recording, SourceError, checked, reading
from wamkit.types import Span

CAMERAS = {"rgb_static": "scene", "rgb_gripper": "wrist"}
STATE = (
    Field("eef_position", 0, 3, "position", frame="world", unit="m"),
    Field("eef_rotation", 3, 6, "rotation", rotation="euler_xyz", frame="world"),
    Field("width", 6, 7, "gripper", unit="m"),
    Field("joints", 7, 14, "joint", unit="rad"),
    Field("gripper", 14, 15, "gripper", unit="1"),
)
ACTIONS = {
    "rel_actions": (
        Field("eef_position", 0, 3, "position", "delta", frame="world", unit="2 cm"),
        Field("eef_rotation", 3, 6, "rotation", "delta", "euler_xyz", frame="world", unit="0.05 rad"),
        Field("gripper", 6, 7, "gripper", unit="1"),
    ),
    "actions": (
        Field("eef_position", 0, 3, "position", frame="world", unit="m"),
        Field("eef_rotation", 3, 6, "rotation", rotation="euler_xyz", frame="world"),
        Field("gripper", 6, 7, "gripper", unit="1"),
    ),
}


@dataclass(frozen=True)
class CalvinOptions:
    """Of the importer `calvin`."""

    action: Literal["rel_actions", "actions"] = "rel_actions"
    """Steps of the hand, or where it should be."""
    only_annotated: bool = False
    """Only what somebody said something about: each annotation becomes an episode."""


@IMPORTERS.register("calvin")
class Calvin(Importer):
    """CALVIN's play data: one npz a step, language of some stretches."""

    Options = CalvinOptions
    options: CalvinOptions

    def layout(self) -> Layout:
        first = self._stretches[next(iter(self._stretches), "")][0] if self._stretches else 0
        sizes = [self._step(first)[c].shape[:2] for c in CAMERAS]
        names = lambda fields: tuple(f"{f.name}_{i}" for f in fields for i in range(f.stop - f.start))  # noqa: E731
        return Layout(
            tuple(CAMERAS), (3, *sizes[0]), names(STATE), names(ACTIONS[self.options.action]), 30.0, "panda",
            sizes=tuple(sizes) if len(set(sizes)) > 1 else (), expert=False, rewards=False,
        )  # fmt: skip

    def metadata(self) -> DatasetMetadata:
        control = "end-effector delta" if self.options.action == "rel_actions" else "absolute end-effector"
        cameras = {c: CameraFacts(role) for c, role in CAMERAS.items()}
        return DatasetMetadata(
            "CALVIN", "panda", control, 30.0, "MIT", state=STATE, action=ACTIONS[self.options.action], cameras=cameras
        )

    @cached_property
    def _annotations(self) -> list[tuple[int, int, str]]:
        """(first, last, text) of all that is said, in order; last is included."""
        path = self.root / "lang_annotations/auto_lang_ann.npy"
        if not path.exists():
            return []
        with reading(path):
            said = _plain(path)
            rows = zip(said["info"]["indx"], said["language"]["ann"], strict=True)
            return sorted((int(a), int(b), str(text)) for (a, b), text in rows)

    @cached_property
    def _stretches(self) -> dict[str, tuple[int, int]]:
        """The episodes by name: their first and last steps."""
        if self.options.only_annotated:
            return {f"{a}-{b}": (a, b) for a, b, _ in self._annotations}
        path = self.root / "ep_start_end_ids.npy"
        with reading(path):
            ids = np.load(path, allow_pickle=False)
            if ids.ndim != 2 or ids.shape[1] != 2 or (ids[:, 1] < ids[:, 0]).any():
                raise SourceError("it is no list of first and last steps")
        return {f"{a}-{b}": (a, b) for a, b in ids.tolist()}

    def episodes(self) -> Sequence[str]:
        return list(self._stretches)

    def _step(self, number: int, episode: str = "") -> dict[str, np.ndarray]:
        path = self.root / f"episode_{number:07d}.npz"
        with reading(path, episode):
            if not path.exists():
                raise SourceError("it is missing")
            with zipfile.ZipFile(path) as file:
                if any(m.file_size > LIMIT for m in file.infolist()):
                    raise SourceError("it claims to be larger than any step is; refused")
            with np.load(path, allow_pickle=False) as file:
                return {k: file[k] for k in (*CAMERAS, "robot_obs", self.options.action)}

    def read(self, name: str) -> Recording:
        first, last = self._stretches[name]
        T = last - first + 1
        state, action = np.empty((T, 15), np.float32), np.empty((T, 7), np.float32)
        for t in range(T):
            step = self._step(first + t, name)
            with reading(self.root / f"episode_{first + t:07d}.npz", name):
                state[t] = checked(step["robot_obs"][None], (1, 15), "robot_obs")
                action[t] = checked(step[self.options.action][None], (1, 7), self.options.action)
        inside = [(max(a, first), min(b, last), text) for a, b, text in self._annotations if a <= last and b >= first]
        spans = tuple(Span(a - first, b - first + 1, text) for a, b, text in inside)
        text = spans[0].text if self.options.only_annotated and spans else ""
        return Recording(name, text, state, action, {c: self._frames(c, first, last, name) for c in CAMERAS}, spans)

    def _frames(self, camera: str, first: int, last: int, name: str) -> ImageStream:
        def images() -> Iterator[np.ndarray]:
            for number in range(first, last + 1):
                yield self._step(number, name)[camera]

        return images


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"), ("_codecs", "encode"),
}  # fmt: skip


class _Plain(pickle.Unpickler):
    """Containers, numbers, texts and arrays; nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise SourceError(f"it wants to run {module}.{name}; refused")
        return super().find_class(module, name)


def _plain(path: Any) -> dict[str, Any]:
    """The dictionary in a npy file of one pickled object."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if shape != () or dtype.hasobject is False:
            raise SourceError("it holds an array instead of a dictionary")
        return _Plain(file).load().item()

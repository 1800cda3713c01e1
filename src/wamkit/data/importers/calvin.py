"""CALVIN: play data, one npz file a step (arXiv:2112.03227).

    episode_0000000.npz                  rgb_static uint8 (200, 200, 3), rgb_gripper (84, 84, 3), robot_obs float (15,),
                                         actions (7,): absolute xyz, Euler xyz, gripper
                                         rel_actions (7,): the same as deltas in [-1, 1]
    ep_start_end_ids.npy                 int (E, 2): first and last step, inclusive, of each stretch of play
    lang_annotations/auto_lang_ann.npy   a pickled dictionary: language.ann texts, info.indx their (first, last) steps,
                                         inclusive

`source` is one split, such as `task_D_D/training`. A stretch of play is an episode, and annotations are its spans. Most
steps have none, and so no text. rel_actions are metres times 50 and radians times 20, clipped to [-1, 1]. Observations
come before their actions. The annotations are a pickle: only plain containers, numbers, texts and NumPy arrays are
accepted.
"""

from __future__ import annotations

import pickle  # house: only `_Plain` below, which accepts plain containers, numbers, texts and arrays
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from wamkit.data.format.schema import Layout
from wamkit.data.importers.base import (
    IMPORTERS,
    LIMIT,
    ImageStream,
    Importer,
    Recording,
    SourceError,
    camera_layout,
    checked,
    dimension_names,
    reading,
)
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
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
    """Options of the importer `calvin`."""

    action: Literal["rel_actions", "actions"] = "rel_actions"
    """Deltas of the hand's pose, or absolute target poses."""
    only_annotated: bool = False
    """Import only annotated steps: each annotation becomes an episode."""


@IMPORTERS.register("calvin")
class Calvin(Importer):
    """CALVIN's play data: one npz a step, language annotations of some."""

    Options = CalvinOptions
    options: CalvinOptions

    def layout(self) -> Layout:
        first = self._stretches[next(iter(self._stretches), "")][0] if self._stretches else 0
        step = self._step(first)
        return Layout(
            **camera_layout({c: step[c].shape[:2] for c in CAMERAS}),
            proprio_names=dimension_names(STATE),
            action_names=dimension_names(ACTIONS[self.options.action]),
            fps=30.0,
            robot_type="panda",
            expert=False,
            rewards=False,
        )

    def metadata(self) -> DatasetMetadata:
        control = "end-effector delta" if self.options.action == "rel_actions" else "absolute end-effector"
        cameras = {c: CameraFacts(role) for c, role in CAMERAS.items()}
        action = ACTIONS[self.options.action]
        return DatasetMetadata("CALVIN", "panda", control, 30.0, "MIT", state=STATE, action=action, cameras=cameras)

    @cached_property
    def _annotations(self) -> list[tuple[int, int, str]]:
        """(first step, last step, text) of all annotations, in order; both steps are inclusive."""
        path = self.root / "lang_annotations/auto_lang_ann.npy"
        if not path.exists():
            return []
        with reading(path):
            content = _plain(path)
            rows = zip(content["info"]["indx"], content["language"]["ann"], strict=True)
            return sorted((int(a), int(b), str(text)) for (a, b), text in rows)

    @cached_property
    def _stretches(self) -> dict[str, tuple[int, int]]:
        """First and last step of each episode, by name."""
        if self.options.only_annotated:
            return {f"{a}-{b}": (a, b) for a, b, _ in self._annotations}
        path = self.root / "ep_start_end_ids.npy"
        with reading(path):
            ids = np.load(path, allow_pickle=False)
            if ids.ndim != 2 or ids.shape[1] != 2 or (ids[:, 1] < ids[:, 0]).any():
                raise SourceError("it is not a list of first and last steps")
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
                    raise SourceError("it declares more bytes than a step ever has; refused")
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
        return Recording(name, text, state, action, {c: self._images(c, first, last, name) for c in CAMERAS}, spans)

    def _images(self, camera: str, first: int, last: int, name: str) -> ImageStream:
        def images() -> Iterator[np.ndarray]:
            for number in range(first, last + 1):
                yield self._step(number, name)[camera]

        return images


ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
}
"""(module, name) of everything that a pickle may refer to."""


class _Plain(pickle.Unpickler):
    """An unpickler of containers, numbers, texts and arrays, without anything that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise SourceError(f"it tries to run {module}.{name}; refused")
        return super().find_class(module, name)


def _plain(path: Any) -> dict[str, Any]:
    """The dictionary in an npy file of one pickled object."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if shape != () or dtype.hasobject is False:
            raise SourceError("it holds an array instead of a dictionary")
        return _Plain(file).load().item()

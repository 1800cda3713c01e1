"""CALVIN: play data, one npz file a step (arXiv:2112.03227).

    episode_0000000.npz                  rgb_static uint8 (200, 200, 3), rgb_gripper (84, 84, 3), robot_obs float (15,),
                                         actions (7,): absolute xyz, Euler xyz, gripper
                                         rel_actions (7,): the same as deltas in [-1, 1]
    ep_start_end_ids.npy                 int (E, 2): first and last step, inclusive, of each stretch of play
    lang_annotations/auto_lang_ann.npy   a pickled dictionary: language.ann texts, info.indx their (first, last) steps,
                                         inclusive

`source` is one split, such as `task_D_D/training`. A stretch of play is an episode, and annotations are its spans. Most
steps have none, and so no text. rel_actions are the distance of the target from the measured
pose, metres times 50 and radians times 20, clipped to [-1, 1]. Observations
come before their actions. The annotations are a pickle, read by `wamkit.data.importers.plain_pickle`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
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
    image_size,
    inside,
    reading,
    words,
)
from wamkit.data.importers.npy import header, read_npy, read_npz
from wamkit.data.importers.plain_pickle import Array, plain_object
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.types import Span

STEPS = 10**9  # file names have seven digits; no step has a greater number
CAMERAS = {"rgb_static": "scene", "rgb_gripper": "wrist"}
STATE = (
    Field("eef_position", 0, 3, "position", frame="world", unit="m"),
    Field("eef_rotation", 3, 6, "rotation", rotation="euler_xyz", frame="world"),
    Field("width", 6, 7, "gripper", unit="m", larger="opens"),
    Field("joints", 7, 14, "joint", unit="rad"),
    Field("gripper", 14, 15, "gripper", unit="1", larger="opens"),
)
ACTIONS = {
    "rel_actions": (
        Field("eef_position", 0, 3, "position", "delta", frame="world", unit="2 cm", reference="state"),
        Field("eef_rotation", 3, 6, "rotation", "delta", "euler_xyz", "world", "0.05 rad", reference="state"),
        Field("gripper", 6, 7, "gripper", unit="1", larger="opens"),
    ),
    "actions": (
        Field("eef_position", 0, 3, "position", frame="world", unit="m"),
        Field("eef_rotation", 3, 6, "rotation", rotation="euler_xyz", frame="world"),
        Field("gripper", 6, 7, "gripper", unit="1", larger="opens"),
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
        return Layout(
            **camera_layout(self._sizes),
            proprio_names=dimension_names(STATE),
            action_names=dimension_names(ACTIONS[self.options.action]),
            fps=30.0,
            robot_type="panda",
            expert=False,
            rewards=False,
        )

    def metadata(self) -> DatasetMetadata:
        control = "end-effector delta" if self.options.action == "rel_actions" else "absolute end-effector"
        cameras = {c: CameraFacts(CAMERAS[c]) for c in self._sizes}
        action = ACTIONS[self.options.action]
        return DatasetMetadata("CALVIN", "panda", control, 30.0, "MIT", state=STATE, action=action, cameras=cameras)

    @cached_property
    def _sizes(self) -> dict[str, tuple[int, int]]:
        """(H, W) of each camera, of the first stretch that it saw."""
        found: dict[str, tuple[int, int]] = {}
        for first in [a for a, _ in self._stretches.values()] or [0]:
            step = self._step(first)
            found = {c: step[c].shape[:2] for c in CAMERAS if c in step} | found
            if len(found) == len(CAMERAS):
                break
        return {c: found[c] for c in CAMERAS if c in found}

    @cached_property
    def _annotations(self) -> list[tuple[int, int, str]]:
        """(first step, last step, text) of all annotations, in order; both steps are inclusive."""
        path = inside(self.root, "lang_annotations/auto_lang_ann.npy")
        if not path.exists():
            return []
        with reading(path):
            return sorted(_annotations(path))

    @cached_property
    def _stretches(self) -> dict[str, tuple[int, int]]:
        """First and last step of each episode, by name."""
        if self.options.only_annotated:
            return {f"{a}-{b}": (a, b) for a, b, _ in self._annotations}
        path = inside(self.root, "ep_start_end_ids.npy")
        with reading(path):
            ids = read_npy(path)
            if ids.ndim != 2 or ids.shape[1] != 2 or ids.dtype.kind not in "iu":
                raise SourceError(
                    f"it is {ids.dtype} {ids.shape} instead of whole numbers, a first and last step a row"
                )
            if (ids < 0).any() or (ids >= STEPS).any() or (ids[:, 1] < ids[:, 0]).any():
                raise SourceError("it is not a list of first and last steps")
        return {f"{a}-{b}": (a, b) for a, b in ids.tolist()}

    def episodes(self) -> Sequence[str]:
        return list(self._stretches)

    def _step(self, number: int, episode: str = "") -> dict[str, np.ndarray]:
        """The arrays of a step; without those of cameras that did not see it."""
        path = inside(self.root, f"episode_{number:07d}.npz")
        with reading(path, episode):
            if not path.exists():
                raise SourceError("it is missing")
            step = read_npz(path, ("robot_obs", self.options.action), CAMERAS)
            for camera in CAMERAS.keys() & step:
                image_size(step[camera].dtype, step[camera].shape, camera)
            return step

    def read(self, name: str) -> Recording:
        first, last = self._stretches[name]
        state, action, seen = [], [], CAMERAS.keys() & self._step(first, name)
        for number in range(first, last + 1):  # nothing is allocated for steps whose files are not there
            step = self._step(number, name)
            with reading(inside(self.root, f"episode_{number:07d}.npz"), name):
                if differs := seen ^ (CAMERAS.keys() & step):
                    raise SourceError(f"{min(differs)} is there at some steps of the episode alone")
                state.append(checked(step["robot_obs"][None], (1, 15), "robot_obs"))
                action.append(checked(step[self.options.action][None], (1, 7), self.options.action))
        within = [(max(a, first), min(b, last), text) for a, b, text in self._annotations if a <= last and b >= first]
        spans = tuple(Span(a - first, b - first + 1, text) for a, b, text in within)
        text = spans[0].text if self.options.only_annotated and spans else ""
        images = {c: self._images(c, first, last, name) for c in CAMERAS if c in seen}
        return Recording(name, text, np.concatenate(state), np.concatenate(action), images, spans)

    def _images(self, camera: str, first: int, last: int, name: str) -> ImageStream:
        def images() -> Iterator[np.ndarray]:
            for number in range(first, last + 1):
                yield self._step(number, name)[camera]

        return images


def _annotation(number: int, steps: Any, text: Any) -> tuple[int, int, str]:
    """Checks one annotation: (first step, last step, text)."""
    steps = tuple(steps) if isinstance(steps, (tuple, list, Array)) else ()
    if len(steps) != 2 or any(type(n) is not int for n in steps) or not 0 <= steps[0] <= steps[1] < STEPS:
        raise SourceError(f"info.indx of annotation {number} is not a first and a last step; correct it")
    return *steps, words(text, f"language.ann of annotation {number}")


def _annotations(path: Path) -> list[tuple[int, int, str]]:
    """The annotations in an npy file of one pickled dictionary, in the order of the file."""
    if path.stat().st_size > LIMIT:
        raise SourceError(f"it has more than {LIMIT} bytes, which annotations never take; refused")
    with path.open("rb") as file:
        shape, _, dtype = header(file, "it")
        if shape != () or not dtype.hasobject:
            raise SourceError("it holds an array instead of a dictionary")
        content: Any = plain_object(file.read())
    content = content.item() if isinstance(content, Array) else content
    for part, key in (("info", "indx"), ("language", "ann")):
        if not isinstance(content, dict) or not isinstance(content.get(part), dict) or key not in content[part]:
            raise SourceError(f"it has no list {part}.{key}; is it CALVIN's?")
    steps, texts = (list(content[part][key]) for part, key in (("info", "indx"), ("language", "ann")))
    if len(steps) != len(texts):
        raise SourceError(f"it has {len(steps)} places (info.indx) for {len(texts)} texts (language.ann)")
    return [_annotation(i, *row) for i, row in enumerate(zip(steps, texts, strict=True))]

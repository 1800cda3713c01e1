"""ALOHA: a folder of `episode_0.hdf5`, ... (arXiv:2304.13705), simulated or real, plain or compressed.

    attrs sim, compress
    action                    float32 (T, 14): absolute joint positions of both arms, six joints and a gripper each;
                              (T, 7) of one arm
    base_action               float32 (T, 2): Mobile ALOHA's forward and turning velocity; imported as an extra
    observations/qpos, qvel, effort                  float32 (T, 14) or (T, 7)
    observations/images/cam_high, cam_low, cam_left_wrist, cam_right_wrist     uint8 (T, 480, 640, 3), or with
                              compress (T, longest): JPEG, padded with zeros (decoders stop at the end of the image)

There are 50 rows a second. Observations come before their actions. Some recorders handed RGB images to OpenCV, which
takes them for BGR; `--options.swap` undoes that for JPEG images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np

from wamkit.config import Between, Checked
from wamkit.data.format.schema import Layout
from wamkit.data.importers.base import (
    IMPORTERS,
    PIXELS,
    ImageStream,
    Importer,
    Recording,
    SourceError,
    camera_facts,
    camera_layout,
    checked,
    first_seen,
    inside,
)
from wamkit.data.importers.encoded_images import decode_image
from wamkit.data.importers.hdf5 import array, columns, dataset, has, opened, sorted_by_number, stored_frames
from wamkit.data.importers.hdf5 import names as names_in
from wamkit.files import visible
from wamkit.metadata import DatasetMetadata, Field

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
NAMES = tuple(f"{arm}_{joint}" for arm in ("left", "right") for joint in (*JOINTS, "gripper"))
FIELDS = (
    Field("left_arm", 0, 6, "joint", unit="rad"),
    Field("left_gripper", 6, 7, "gripper", unit="1", larger="opens"),
    Field("right_arm", 7, 13, "joint", unit="rad"),
    Field("right_gripper", 13, 14, "gripper", unit="1", larger="opens"),
)
ARMS = {
    7: (
        tuple(n.removeprefix("left_") for n in NAMES[:7]),
        (Field("arm", 0, 6, "joint", unit="rad"), Field("gripper", 6, 7, "gripper", unit="1")),
    ),
    14: (NAMES, FIELDS),
}
"""Names and fields by the number of joints: one arm, two arms."""


@dataclass(frozen=True)
class AlohaOptions(Checked):
    """Options of the importer `aloha`."""

    text: str = ""
    """The instruction, which the format does not contain."""
    rate: Annotated[float, Between(1, 1000)] = 50.0
    """Rows a second."""
    swap: bool = False
    """Swap red and blue of compressed images."""


@IMPORTERS.register("aloha")
class Aloha(Importer):
    """ALOHA's two arms: HDF5, absolute joints, plain or JPEG images."""

    Options = AlohaOptions
    options: AlohaOptions

    def layout(self) -> Layout:
        names = self.episodes()
        if not names:
            raise SourceError(f"{self.root}: there is no episode_0.hdf5 in it; is it ALOHA's?")
        cameras = first_seen((name, self._cameras(name)) for name in names)
        with opened(inside(self.root, names[0])) as file:
            base = has(file, "base_action")
        joints, _ = self._arms
        return Layout(
            **camera_layout({c: next(self._images(name, c)()).shape[:2] for c, name in cameras.items()}),
            proprio_names=joints,
            action_names=joints,
            fps=self.options.rate,
            robot_type="aloha",
            expert=False,
            rewards=False,
            extras=(
                ("observation.velocity", "float32", len(joints)),
                *((("base_action", "float32", 2),) if base else ()),
            ),
        )

    def _cameras(self, name: str) -> list[str]:
        with opened(inside(self.root, name), name) as file:
            return names_in(file, "observations/images")

    @cached_property
    def _arms(self) -> tuple[tuple[str, ...], tuple[Field, ...]]:
        """Names and fields of the joints, those of the first episode."""
        if not (names := self.episodes()):
            raise SourceError(f"{self.root}: there is no episode_0.hdf5 in it; is it ALOHA's?")
        with opened(inside(self.root, names[0])) as file:
            if (joints := columns(file, "observations/qpos")) not in ARMS:
                raise SourceError(
                    f"qpos has {joints} values a step, and ALOHA's arms 7 each, 14 both; describe another robot by an "
                    "importer of its own (docs/add-an-importer.md)"
                )
        return ARMS[joints]

    def metadata(self) -> DatasetMetadata:
        _, fields = self._arms
        return DatasetMetadata(
            source="ALOHA",
            embodiment="aloha",
            control_mode="absolute joints",
            rate=self.options.rate,
            state=fields,
            action=fields,
            cameras=camera_facts(self.layout().cameras),
        )

    def episodes(self) -> Sequence[str]:
        return sorted_by_number(p.name for p in visible(self.root, "episode_*.hdf5"))

    def read(self, name: str) -> Recording:
        with opened(inside(self.root, name), name) as file:
            action = array(file, "action")
            T, n = len(action), len(self._arms[0])
            extras = {"observation.velocity": checked(array(file, "observations/qvel"), (T, n), "qvel")}
            if has(file, "base_action"):
                extras["base_action"] = checked(array(file, "base_action"), (T, 2), "base_action")
            return Recording(
                name=name,
                text=self.options.text,
                state=checked(array(file, "observations/qpos"), (T, n), "qpos"),
                action=checked(action, (T, n), "action"),
                images={c: self._images(name, c, T) for c in self._cameras(name)},
                extras=extras,
            )

    def _images(self, name: str, camera: str, steps: int | None = None) -> ImageStream:
        path, key = inside(self.root, name), f"observations/images/{camera}"

        def images() -> Iterator[np.ndarray]:
            with opened(path, name) as file:
                jpeg = dataset(file, key).ndim == 2
            if jpeg:
                yield from _jpeg_frames(path, name, key, self.options.swap)
            else:
                yield from stored_frames(path, key, name, steps)

        return images


def _jpeg_frames(path: Path, name: str, key: str, swap: bool) -> Iterator[np.ndarray]:
    """JPEG images, decoded one at a time."""
    with opened(path, name) as file:
        rows = dataset(file, key)
        if rows.dtype != np.uint8 or rows.shape[1] > PIXELS:
            raise SourceError(f"'{key}' is {rows.dtype} {rows.shape} instead of JPEG images, uint8 (T, bytes)")
        for row in rows:
            image = decode_image(row.tobytes(), key)
            yield np.ascontiguousarray(image[..., ::-1]) if swap else image

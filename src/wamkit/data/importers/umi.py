"""UMI: hand-held grippers (arXiv:2402.10329). One zarr store (version 2), in a zip file or a folder.

    meta/episode_ends                    int64 (E,), one past the last row of each demonstration
    data/robot0_eef_pos                  float32 (N, 3), metres, in the frame of the demonstration's map
    data/robot0_eef_rot_axis_angle       float32 (N, 3)
    data/robot0_gripper_width            float32 (N, 1), metres
    data/robot0_demo_start_pose, _end_pose   float64 (N, 6), constant in a demonstration; not imported
    data/camera0_rgb                     uint8 (N, H, W, 3), JPEG XL, one image a chunk; the camera is at the wrist

With two hands there are also robot1 and camera1. There are no actions: the action of row t is the pose of row t + 1,
and the last row of a demonstration is dropped, because its action is unknown. Poses stay absolute, as recorded. A
mixture makes them relative to the hand (`wamkit.data.embodiment`), as UMI's own loader does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np

from wamkit.config import Between, Checked, Count
from wamkit.data.format.schema import Layout
from wamkit.data.importers.base import (
    IMPORTERS,
    ImageStream,
    Importer,
    Recording,
    SourceError,
    camera_layout,
    checked,
    image_size,
    reading,
)
from wamkit.data.importers.zarr2 import Array, Zarr
from wamkit.metadata import CameraFacts, DatasetMetadata, Field

KEYS = (("eef_pos", 3), ("eef_rot_axis_angle", 3), ("gripper_width", 1))


@dataclass(frozen=True)
class UMIOptions(Checked):
    """Options of the importer `umi`."""

    text: str = ""
    """The instruction, which the format does not contain."""
    rate: Annotated[float, Between(1, 1000)] = 59.94
    """Rows a second, which the format does not contain; a GoPro records 59.94."""
    every: Count = 1
    """Keep every n-th row: 3 leaves about 20 of 59.94 rows a second."""
    licence: str = ""
    """Licence of the data."""


@IMPORTERS.register("umi")
class UMI(Importer):
    """Demonstrations with UMI's hand-held grippers: zarr, absolute poses, wrist cameras."""

    Options = UMIOptions
    options: UMIOptions

    @cached_property
    def _store(self) -> Zarr:
        return Zarr(self.root)

    @cached_property
    def _hands(self) -> list[str]:
        hands = sorted(k.split("_")[0] for k in self._store.arrays("data") if k.endswith("_eef_pos"))
        if not hands:
            raise SourceError(f"{self.root}: there is no data/robot0_eef_pos in it; is it UMI's?")
        return hands

    @cached_property
    def _cameras(self) -> dict[str, Array]:
        """The arrays of the cameras' images, by name."""
        found = (k for k in self._store.arrays("data") if k.endswith("_rgb"))
        cameras = {k.removesuffix("_rgb"): self._store.array(f"data/{k}") for k in found}
        for images in cameras.values():
            if len(images.shape) != 4:
                raise SourceError(f"{self.root}: {images.name} is {images.shape} instead of (N, H, W, 3)")
            image_size(images.dtype, images.shape[1:], images.name)
        return cameras

    def layout(self) -> Layout:
        with reading(self.root):
            hands, sizes = self._hands, {c: images.shape[1:3] for c, images in self._cameras.items()}
        names = tuple(f"{h}_{key}_{i}" for h in hands for key, n in KEYS for i in range(n))
        return Layout(
            **camera_layout(sizes),
            proprio_names=names,
            action_names=names,
            fps=self.options.rate / self.options.every,
            robot_type="umi",
            expert=False,
            rewards=False,
        )

    def metadata(self) -> DatasetMetadata:
        layout = self.layout()
        hands = len(layout.proprio_names) // 7
        fields = []
        for h in range(hands):
            fields.append(Field(f"hand{h}_position", 7 * h, 7 * h + 3, "position", frame="world", unit="m"))
            fields.append(
                Field(f"hand{h}_rotation", 7 * h + 3, 7 * h + 6, "rotation", rotation="axis_angle", frame="world")
            )
            fields.append(Field(f"hand{h}_width", 7 * h + 6, 7 * h + 7, "gripper", unit="m", larger="opens"))
        return DatasetMetadata(
            source="UMI",
            embodiment="umi" if hands == 1 else f"umi, {hands} hands",
            control_mode="absolute end-effector",
            rate=layout.fps,
            licence=self.options.licence,
            state=tuple(fields),
            action=tuple(fields),
            cameras={c: CameraFacts("wrist") for c in layout.cameras},
        )

    @cached_property
    def _ends(self) -> list[int]:
        with reading(self.root):
            ends = self._store.array("meta/episode_ends").read()
            if ends.ndim != 1 or ends.dtype.kind not in "iu" or (ends <= 0).any() or (ends[1:] <= ends[:-1]).any():
                raise SourceError(f"{self.root}: meta/episode_ends is not a list of ascending row numbers")
            return ends.tolist()

    def episodes(self) -> Sequence[str]:
        return [str(i) for i in range(len(self._ends))]

    def read(self, name: str) -> Recording:
        with reading(self.root, name):
            ends, number = self._ends, int(name)
            start, stop = ends[number - 1] if number else 0, ends[number]
            parts = []
            for key, n in ((f"{h}_{key}", n) for h in self._hands for key, n in KEYS):
                whole = self._store.array(f"data/{key}")
                if whole.shape != (ends[-1], n):
                    raise SourceError(
                        f"{self.root}: data/{key} is {whole.shape}, but the demonstrations have {ends[-1]} rows"
                    )
                part = whole.read(start, stop)[:: self.options.every]
                parts.append(checked(part, (-1, n), key))
            if len(parts[0]) < 2:
                raise SourceError(
                    f"{self.root} (episode {name}): {len(parts[0])} row is too short, its action is unknown"
                )
            rows = np.arange(start, stop, self.options.every)
            # A demonstration that a camera did not see has none of its chunks.
            cameras = {c: x for c, x in self._cameras.items() if any(x.holds(row) for row in rows.tolist())}
            for camera, stored in self._cameras.items():
                if stored.shape[0] != ends[-1]:
                    raise SourceError(f"{camera} has {stored.shape[0]} images for {ends[-1]} rows")
        pose = np.concatenate(parts, 1)
        return Recording(
            name=name,
            text=self.options.text,
            state=pose[:-1],
            action=pose[1:],
            images={c: self._images(c, rows[:-1], name) for c in cameras},
        )

    def _images(self, camera: str, rows: np.ndarray, episode: str) -> ImageStream:
        def images() -> Iterator[np.ndarray]:
            with reading(self.root, episode):
                yield from self._cameras[camera].rows(rows)

        return images

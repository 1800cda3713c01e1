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

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np

from wamkit.config import Between, Checked, Count
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
    reading,
)
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.types import WamkitError

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

    @contextmanager
    def _open(self, episode: str = "") -> Iterator[Any]:
        try:
            import zarr
            from imagecodecs.numcodecs import register_codecs
        except ImportError as error:
            raise WamkitError(
                "zarr files need the packages zarr and imagecodecs: pip install 'wamkit[import]'"
            ) from error
        register_codecs(verbose=False)
        with reading(self.root, episode):
            if self.root.is_dir():
                yield zarr.open_group(str(self.root), mode="r", zarr_format=2)
                return
            _check_zip(self.root)
            store = zarr.storage.ZipStore(self.root, mode="r")
            try:
                yield zarr.open_group(store, mode="r", zarr_format=2)
            finally:
                store.close()

    def _hands(self, root: Any) -> list[str]:
        hands = sorted(k.split("_")[0] for k in root["data"].array_keys() if k.endswith("_eef_pos"))
        if not hands:
            raise SourceError(f"{self.root}: there is no data/robot0_eef_pos in it; is it UMI's?")
        return hands

    def _cameras(self, root: Any) -> list[str]:
        return sorted(k.removesuffix("_rgb") for k in root["data"].array_keys() if k.endswith("_rgb"))

    def layout(self) -> Layout:
        with self._open() as root:
            hands, sizes = self._hands(root), {}
            for c in self._cameras(root):
                shape = root[f"data/{c}_rgb"].shape
                if len(shape) != 4 or shape[3] != 3 or np.prod(shape[1:]) > LIMIT:
                    raise SourceError(f"{self.root}: data/{c}_rgb is {shape} instead of (N, H, W, 3)")
                sizes[c] = tuple(shape[1:3])
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
            fields.append(Field(f"hand{h}_width", 7 * h + 6, 7 * h + 7, "gripper", unit="m"))
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

    def _ends(self, root: Any) -> np.ndarray:
        ends = self._array(root, "meta/episode_ends")
        if ends.ndim != 1 or ends.dtype.kind not in "iu" or (np.diff(ends, prepend=0) <= 0).any():
            raise SourceError(f"{self.root}: meta/episode_ends is not a list of ascending row numbers")
        return ends

    def episodes(self) -> Sequence[str]:
        with self._open() as root:
            return [str(i) for i in range(len(self._ends(root)))]

    def read(self, name: str) -> Recording:
        with self._open(name) as root:
            ends, number = self._ends(root), int(name)
            rows = np.arange(ends[number - 1] if number else 0, ends[number], self.options.every)
            if len(rows) < 2:
                raise SourceError(f"{self.root} (episode {name}): {len(rows)} row is too short, its action is unknown")
            parts = []
            for key, n in ((f"{h}_{key}", n) for h in self._hands(root) for key, n in KEYS):
                whole = self._array(root, f"data/{key}")
                if whole.shape != (ends[-1], n):
                    raise SourceError(
                        f"{self.root}: data/{key} is {whole.shape}, but the demonstrations have {ends[-1]} rows"
                    )
                parts.append(checked(whole[rows], (len(rows), n), key))
            cameras = self._cameras(root)
        pose = np.concatenate(parts, 1)
        return Recording(
            name=name,
            text=self.options.text,
            state=pose[:-1],
            action=pose[1:],
            images={c: self._images(c, rows[:-1], name) for c in cameras},
        )

    @cached_property
    def _members(self) -> frozenset[str]:
        with reading(self.root), zipfile.ZipFile(self.root) as file:
            return frozenset(file.namelist())

    def _require(self, chunk: str) -> None:
        """Raises SourceError for a missing chunk, which zarr would silently read as zeros."""
        if not ((self.root / chunk).exists() if self.root.is_dir() else chunk in self._members):
            raise SourceError(f"{self.root}: {chunk} is missing; its content is lost")

    def _array(self, root: Any, name: str) -> np.ndarray:
        array = root[name]
        if array.nbytes > LIMIT:
            raise SourceError(f"{name} declares {array.nbytes} bytes, more than such an array ever takes")
        for at in np.ndindex(*(-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))):
            self._require(f"{name}/{'.'.join(map(str, at))}")
        return array[:]

    def _images(self, camera: str, rows: np.ndarray, episode: str) -> ImageStream:
        def images() -> Iterator[np.ndarray]:
            with self._open(episode) as root:
                stored = root[f"data/{camera}_rgb"]
                for row in rows.tolist():
                    self._require(f"data/{camera}_rgb/{row // stored.chunks[0]}.0.0.0")
                    yield stored[row]

        return images


def _check_zip(path: Any) -> None:
    """Raises SourceError for names that lead out of the archive or absurd sizes. Nothing is unpacked to disk."""
    with zipfile.ZipFile(path) as file:
        for member in file.infolist():
            if member.filename.startswith(("/", "\\")) or ".." in member.filename.split("/"):
                raise SourceError(f"{path}: '{member.filename}' leads out of the archive; refused")
            if member.file_size > LIMIT or member.file_size > 1000 * max(member.compress_size, 1000):
                raise SourceError(f"{path}: '{member.filename}' declares {member.file_size} bytes; refused")

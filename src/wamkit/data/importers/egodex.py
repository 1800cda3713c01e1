"""EgoDex: first-person video of manipulation, with poses of every finger joint (Apple Vision Pro, 30 a second).

    part*/<task>/<i>.hdf5    transforms/{camera, leftHand, rightHand, ...}: float32 (N, 4, 4), in the world's frame
                             camera/intrinsic (3, 3); confidences/<joint> (N,), not in all files
        attrs                llm_description, llm_description2, which_llm_description, llm_type;
                             older files: description
    part*/<task>/<i>.mp4     1920 x 1080, frame i belongs to pose i

Where `llm_type` is "reversible" and `which_llm_description` is "2", the second description is the right one. By default
the import is video without actions. With `--options.hands` the state is the positions of wrists and finger tips
relative to the camera, and the action their next positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.config import ConfigError, Rate
from wamkit.data.format.schema import Layout
from wamkit.data.importers.base import IMPORTERS, Importer, Recording, SourceError, checked, inside
from wamkit.data.importers.hdf5 import array, opened
from wamkit.data.importers.video_files import VideoFileOptions, cropped_intrinsics, probe_video, read_all_frames
from wamkit.files import visible
from wamkit.metadata import CameraFacts, DatasetMetadata, Field

TIPS = ("ThumbTip", "IndexFingerTip", "MiddleFingerTip", "RingFingerTip", "LittleFingerTip")
JOINTS = tuple(f"{side}{joint}" for side in ("left", "right") for joint in ("Hand", *TIPS))
RATE = 30.0


@dataclass(frozen=True)
class EgoDexOptions(VideoFileOptions):
    """Options of the importer `egodex`."""

    fps: Rate | None = None
    """Must not be set: every frame has a pose, 30 a second."""
    hands: bool = False
    """Import positions of wrists and finger tips, in metres relative to the camera, as state and actions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fps is not None:
            raise ConfigError(f"fps = {self.fps:g}: EgoDex has one pose a frame, 30 a second; leave it out")


@IMPORTERS.register("egodex")
class EgoDex(Importer):
    """EgoDex: first-person video of hands, with their poses."""

    Options = EgoDexOptions
    options: EgoDexOptions

    def episodes(self) -> Sequence[str]:
        found = sorted(visible(self.root, "**/*.hdf5"), key=lambda p: (str(p.parent), len(p.stem), p.stem))
        return [str(p.relative_to(self.root).with_suffix("")) for p in found]

    def layout(self) -> Layout:
        names = tuple(f"{j}_{axis}" for j in JOINTS for axis in "xyz") if self.options.hands else ()
        return Layout(("head",), (3, *self.options.size), names, names, RATE, "human", expert=False, rewards=False)

    def metadata(self) -> DatasetMetadata:
        names = self.episodes()
        fields = tuple(Field(j, 3 * i, 3 * i + 3, "hand", frame="camera", unit="m") for i, j in enumerate(JOINTS))
        fields = fields if self.options.hands else ()
        camera = CameraFacts("ego", intrinsics=self._intrinsics(names[0]) if names else ())
        robot = ("human hands", "absolute finger tips") if self.options.hands else ("", "")
        return DatasetMetadata(
            "EgoDex", *robot, RATE, "CC BY-NC-ND", state=fields, action=fields, cameras={"head": camera}
        )

    def _files(self, name: str) -> tuple[Path, Path]:
        return inside(self.root, f"{name}.hdf5"), inside(self.root, f"{name}.mp4")

    def _intrinsics(self, name: str) -> tuple[float, ...]:
        """The camera matrix of the stored images, after resizing and cropping."""
        poses, video = self._files(name)
        with opened(poses, name) as file:
            matrix = checked(array(file, "camera/intrinsic"), (3, 3), "intrinsic")
        return cropped_intrinsics(matrix, probe_video(video, name).size, self.options.size)

    def read(self, name: str) -> Recording:
        poses, video = self._files(name)
        clip = probe_video(video, name)
        with opened(poses, name) as file:
            N = len(array(file, "transforms/camera"))
            if clip.frames != N:
                raise SourceError(f"it has {N} poses, the video {clip.frames} frames")
            text, T = _text(file.attrs), N - 1 if self.options.hands else N
            hands = self._hands(file, N) if self.options.hands else np.zeros((N + 1, 0), np.float32)
        state, action = hands[:T], hands[1 : T + 1]
        images = {"head": lambda: islice(read_all_frames(clip, self.options.size, N, name), T)}
        return Recording(name, text, state, action, images, task=poses.parent.name, videos={"head": video})

    def _hands(self, file: Any, N: int) -> np.ndarray:
        """Positions of the JOINTS relative to the camera at the same frame, float32 (N, 36)."""
        camera = (
            checked(array(file, "transforms/camera").reshape(N, 16), (N, 16), "camera").reshape(N, 4, 4).astype(float)
        )
        out = []
        for joint in JOINTS:
            at = checked(array(file, f"transforms/{joint}").reshape(N, 16), (N, 16), joint).reshape(N, 4, 4)[:, :3, 3]
            out.append(np.einsum("nji,nj->ni", camera[:, :3, :3], at - camera[:, :3, 3]))
        return np.concatenate(out, 1).astype(np.float32)


def _text(attrs: Any) -> str:
    texts = {k: str(v.decode() if isinstance(v, bytes) else v) for k, v in attrs.items()}
    second = texts.get("llm_type") == "reversible" and texts.get("which_llm_description") == "2"
    text = texts.get("llm_description2" if second else "llm_description") or texts.get("description", "")
    if not text.strip():
        raise SourceError("it has no description")
    return text.strip()

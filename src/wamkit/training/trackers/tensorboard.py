"""TensorBoard: event files in RUN/tensorboard."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from wamkit.training.trackers.base import TRACKERS, Tracker


@TRACKERS.register("tensorboard")
class TensorBoard(Tracker):
    """Curves, images, videos and texts in TensorBoard, as they come."""

    package = "tensorboard"
    takes_back = True

    def __init__(self, out: Path, step: int, config: Mapping[str, Any]):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else 0)
        if config and not step:
            self.text("config", f"```\n{json.dumps(config, indent=2)}\n```", 0)

    @classmethod
    def opening(cls, out: Path) -> str:
        return f"tensorboard --logdir {out}/tensorboard"

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        self._board.add_image(name, image, step)

    def video(self, name: str, frames: np.ndarray, fps: float, step: int) -> None:
        """Adds a video as an animated PNG, which TensorBoard shows among the images; its own kind needs moviepy."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        height, width = frames.shape[2:]
        shown = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=_apng(frames, fps))
        self._board.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=shown)]), step)

    def text(self, name: str, text: str, step: int) -> None:
        self._board.add_text(name, text, step)

    def flush(self) -> None:
        self._board.flush()

    def close(self) -> None:
        self._board.close()


def _apng(frames: np.ndarray, fps: float) -> bytes:
    """Frames, uint8 (T, 3, H, W), as an animated PNG without end."""
    file = io.BytesIO()
    with av.open(file, "w", format="apng", options={"plays": "0"}) as container:
        stream = container.add_stream("apng", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = frames.shape[2], frames.shape[3], "rgb24"
        for image in frames.transpose(0, 2, 3, 1):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()

"""Trackio: a local database, beside those of other runs in Trackio's own folder."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.files import scratch_folder
from wamkit.training.trackers.base import TRACKERS, Tracker, identity
from wamkit.viz.images import save_video

PROJECT = "wamkit"


@TRACKERS.register("trackio")
class Trackio(Tracker):
    """Curves, images, videos and texts in Trackio. Its folder is $TRACKIO_DIR, by default one in the user's cache."""

    package = "trackio"

    def __init__(self, out: Path, step: int, config: Mapping[str, Any]):
        import trackio

        self._trackio = trackio
        with contextlib.redirect_stdout(sys.stderr):
            self._run = trackio.init(
                PROJECT,
                name=identity(out),
                config=dict(config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    @classmethod
    def opening(cls, out: Path) -> str:
        return f"trackio show --project {PROJECT}"

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        self._run.log({name: self._trackio.Image(np.ascontiguousarray(image.transpose(1, 2, 0)))}, step=step)

    def video(self, name: str, frames: np.ndarray, fps: float, step: int) -> None:
        with scratch_folder() as folder:  # from which Trackio copies it
            file = save_video(folder / "video.mp4", frames, fps)
            self._run.log({name: self._trackio.Video(file)}, step=step)

    def text(self, name: str, text: str, step: int) -> None:
        self._run.log({name: self._trackio.Markdown(text)}, step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()

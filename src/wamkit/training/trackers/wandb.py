"""Weights & Biases: an offline run in RUN/wandb, which `wandb sync` uploads."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.files import scratch_folder
from wamkit.training.trackers.base import TRACKERS, Tracker, identity
from wamkit.viz.images import save_video


@TRACKERS.register("wandb")
class WandB(Tracker):
    """Curves, images, videos and texts in Weights & Biases. Nothing is sent unless WANDB_MODE=online asks for it."""

    package = "wandb"

    def __init__(self, out: Path, step: int, config: Mapping[str, Any]):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported
        import wandb

        self._wandb, name = wandb, identity(out)
        quiet = {"console": "off", "silent": True, "disable_git": True, "disable_code": True, "x_disable_stats": True}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "wamkit"),
            dir=out,
            id=name,
            name=name,
            resume="allow",
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(**quiet),
        )

    @classmethod
    def opening(cls, out: Path) -> str:
        return f"wandb sync {out}/wandb/offline-run-*"

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        self._run.log({name: self._wandb.Image(np.ascontiguousarray(image.transpose(1, 2, 0)))}, step=step)

    def video(self, name: str, frames: np.ndarray, fps: float, step: int) -> None:
        with scratch_folder() as folder:  # from which wandb copies it
            file = save_video(folder / "video.mp4", frames, fps)
            self._run.log({name: self._wandb.Video(str(file), format="mp4")}, step=step)

    def text(self, name: str, text: str, step: int) -> None:
        self._run.log({name: self._wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)}, step=step)

    def close(self) -> None:
        self._run.finish()

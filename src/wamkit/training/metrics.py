"""Metrics of a training run: metrics.jsonl, trackers and the progress bar."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from wamkit.config import sealed, unsealed, without_nan
from wamkit.files import StoreError, atomic_write, parse_json, read_bytes
from wamkit.training.trackers.base import DEFAULT_TRACKERS
from wamkit.training.tracking import Tracking
from wamkit.types import Batch
from wamkit.viz.images import side_by_side

METRICS = "metrics.jsonl"
MAX_BYTES = 1 << 28
"""Size of a metrics.jsonl that is still read."""


FPS = 2.0
"""Frames a second of videos of imagined futures, which are few frames far apart."""


class Metrics:
    """Writes rows of metrics to `out`/metrics.jsonl and to trackers, and shows progress on stderr. A context manager.

    The files are cut back to the rows up to `step`, at which a run resumes, so that no step is logged twice.
    steps: all steps of the run, the length of the bar.   trackers, config: see `Tracking`.
    """

    def __init__(
        self,
        out: Path,
        step: int,
        steps: int,
        trackers: Sequence[str] = DEFAULT_TRACKERS,
        config: Mapping[str, Any] = {},  # noqa: B006 (never changed)
    ):
        path = out / METRICS
        rows = [line for line, row in read_metrics(path) if row["step"] <= step] if path.exists() else []
        atomic_write(path, "".join(line + "\n" for line in rows).encode())
        self._file = path.open("a")
        self._bar = tqdm(total=steps, initial=step, desc="train", unit="step", dynamic_ncols=True, mininterval=1.0)
        self.tracking = Tracking(trackers, out, step, config)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._file.close()
        self.tracking.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends `row`, JSON-able with a `step`. Its floats go to the trackers."""
        self._file.write(json.dumps(sealed(without_nan(row))) + "\n")
        self.tracking.show("scalars", {k: v for k, v in row.items() if isinstance(v, float)}, row["step"])

    def show_frames(self, batch: Batch) -> None:
        """Shows what the model is given in the trackers: a row for each window, the observed frame and its futures.

        Views are one image each. With it come the texts, so that a wrong camera, crop or text is seen at once.
        """
        if not batch.obs.numel():
            return
        for view in range(batch.obs.shape[1]):
            frames = torch.cat([batch.obs[:, None, view], batch.future[:, :, view]], 1)  # (B, 1 + F, 3, H, W)
            sheet = torch.cat(list(torch.cat(list(frames.unbind(1)), -1)), -2)
            self.tracking.show("image", f"windows/view {view}", sheet.cpu().numpy(), 0)
        self.tracking.show("text", "windows/text", "  \n".join(text or "(no text)" for text in batch.text), 0)

    def show_imagined(self, batch: Batch, imagined: UInt8[np.ndarray, "B F V 3 H W"], step: int) -> None:
        """Shows imagined futures beside the real ones: as an image, a row for each window, and as a short video.

        The image has the observed frame, then the real and the imagined frame of each horizon. The video has the real
        future on the left. Views are one image and one video each.
        """
        obs, future = batch.obs.cpu().numpy(), batch.future.cpu().numpy()
        for view in range(obs.shape[1]):
            now, real, made = obs[:, view], future[:, :, view], imagined[:, :, view]
            pairs = [frames[:, f] for f in range(real.shape[1]) for frames in (real, made)]
            sheet = np.concatenate(list(side_by_side([now, *pairs])), -2)
            clips = side_by_side([np.concatenate([now[:, None], frames], 1) for frames in (real, made)])
            self.tracking.show("image", f"imagined/view {view}", sheet, step)
            self.tracking.show("video", f"imagined/video {view}", np.concatenate(list(clips), -2), FPS, step)

    def show(self, stage: str, losses: Mapping[str, float]) -> None:
        """Shows `losses` beside the bar, those of single data sets left out."""
        short = " ".join(f"{name} {value:.3f}" for name, value in losses.items() if "/" not in name)
        self._bar.set_postfix_str(f"{stage} {short}")

    def advance(self) -> None:
        """Moves the bar by one step."""
        self._bar.update()

    def flush(self) -> None:
        """Makes all rows durable."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self.tracking.flush()


class NoMetrics:
    """In place of `Metrics` in processes that write and show nothing."""

    tracking = False

    def __enter__(self) -> NoMetrics:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def _nothing(self, *_: object) -> None:
        return None

    write = show_frames = show_imagined = show = advance = flush = _nothing


def loss_means(losses_B: Mapping[str, Tensor], batch: Batch, names: tuple[str, ...]) -> dict[str, float]:
    """Means of the losses over the rows of a batch, by name.

    names: data sets of a mixture. Each adds the means over its rows, "future/ego", and their number, "rows/ego".
    """
    out = {name: loss_B.mean().item() for name, loss_B in losses_B.items()}
    for i, name in enumerate(names):
        if (here := batch.source == i).any():
            out |= {f"{k}/{name}": v[here.to(v.device)].mean().item() for k, v in losses_B.items()}
        out[f"rows/{name}"] = float(here.sum())
    return out


def read_metrics(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a metrics.jsonl, as text and as values. A last line that a kill cut short is left out.

    Raises StoreError naming the first line that is not a row or was changed, and for a file that cannot be read.
    """
    content = read_bytes(path, MAX_BYTES).decode(errors="replace")
    rows, lines = [], content.splitlines()
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            row = unsealed(parse_json(line, where), where)
            rows.append((line, row | {"step": int(row["step"])}))
        except (StoreError, ValueError, LookupError, TypeError) as e:
            if number < len(lines) or content.endswith("\n"):
                raise StoreError(f"{where} is no row of metrics, or damaged; remove it, or the file") from e
    return rows

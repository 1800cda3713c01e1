"""Metrics of a training run: metrics.jsonl, TensorBoard and the progress bar."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from wamkit.config import sealed, unsealed, without_nan
from wamkit.files import StoreError, atomic_write, parse_json, read_bytes
from wamkit.types import Batch

METRICS = "metrics.jsonl"
MAX_BYTES = 1 << 28
"""Size of a metrics.jsonl that is still read."""


class Metrics:
    """Writes rows of metrics to `out`/metrics.jsonl and TensorBoard, and shows progress on stderr. A context manager.

    The files are cut back to the rows up to `step`, at which a run resumes, so that no step is logged twice.
    steps: all steps of the run, the length of the bar.
    """

    def __init__(self, out: Path, step: int, steps: int):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

        path = out / METRICS
        rows = [line for line, row in read_metrics(path) if row["step"] <= step] if path.exists() else []
        atomic_write(path, "".join(line + "\n" for line in rows).encode())
        self._file = path.open("a")
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
        self._bar = tqdm(total=steps, initial=step, desc="train", unit="step", dynamic_ncols=True, mininterval=1.0)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._file.close()
        self._board.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends `row`, JSON-able with a `step`. Its floats become TensorBoard scalars."""
        self._file.write(json.dumps(sealed(without_nan(row))) + "\n")
        for key, value in row.items():
            if isinstance(value, float):
                self._board.add_scalar(key, value, row["step"])

    def show_frames(self, batch: Batch) -> None:
        """Shows what the model is given in TensorBoard: a row for each window, the observed frame and its futures.

        Views are one image each. With it come the texts, so that a wrong camera, crop or text is seen at once.
        """
        if not batch.obs.numel():
            return
        for view in range(batch.obs.shape[1]):
            frames = torch.cat([batch.obs[:, None, view], batch.future[:, :, view]], 1)  # (B, 1 + F, 3, H, W)
            sheet = torch.cat(list(torch.cat(list(frames.unbind(1)), -1)), -2)
            self._board.add_image(f"windows/view {view}", sheet.cpu(), 0)
        self._board.add_text("windows/text", "  \n".join(text or "(no text)" for text in batch.text), 0)

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
        self._board.flush()


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

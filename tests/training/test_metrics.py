"""metrics.jsonl: what is written is what was trained, and is read back."""

from __future__ import annotations

import dataclasses
import random
import re

import pytest
import torch
from small_runs import trainer

from wamkit.training.metrics import loss_means, read_metrics
from wamkit.types import Batch, WamkitError


def test_damaged_metrics_are_named_and_a_cut_last_line_is_dropped(tmp_path):
    trainer(tmp_path).run()
    path = tmp_path / "metrics.jsonl"
    rows = read_metrics(path)
    path.write_text("".join(line + "\n" for line, _ in rows) + '{"step": 13, "lo')
    assert read_metrics(path) == rows
    path.write_text("junk\n" + path.read_text())
    with pytest.raises(WamkitError, match="metrics.jsonl, line 1 is no row"):
        read_metrics(path)


def test_a_flipped_bit_in_the_metrics_is_found(tmp_path):
    trainer(tmp_path).run()
    path = tmp_path / "metrics.jsonl"
    good, whole = path.read_bytes(), [row for _, row in read_metrics(path)]
    for bit in random.Random(0).sample(range(len(good) * 8 - 8), 60):  # the last byte ends the last line
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            found = [row for _, row in read_metrics(path)]
            assert all(was.items() <= now.items() for was, now in zip(whole, found, strict=True))
        except WamkitError as error:
            assert re.search(r"metrics.jsonl, line \d+ is no row of metrics, or damaged", str(error))
    path.write_bytes(b"[" * 200_000 + b"\n")
    with pytest.raises(WamkitError, match="line 1 is no row"):
        read_metrics(path)


def test_losses_of_a_mixture_are_also_means_over_each_data_set(tmp_path):
    batch = dataclasses.replace(
        trainer(tmp_path).windows.batch(0).rows(torch.arange(3)), source=torch.tensor([0, 2, 0])
    )
    losses = {"future": torch.tensor([1.0, 4.0, 3.0])}
    mean = torch.tensor([1.0, 4.0, 3.0]).mean().item()
    assert loss_means(losses, batch, ()) == {"future": mean}
    assert loss_means(losses, batch, ("a", "b", "c")) == {
        "future": mean, "future/a": 2.0, "rows/a": 2.0, "rows/b": 0.0, "future/c": 4.0, "rows/c": 1.0
    }  # fmt: skip


def test_tensorboard_shows_what_the_model_is_given(tmp_path, spec):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from wamkit.training.metrics import Metrics

    batch = Batch.random(spec, 4)
    with Metrics(tmp_path, 0, 1) as metrics:
        metrics.show_frames(batch)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["images"] == [f"windows/view {v}" for v in range(len(spec.cameras))]
    (image,) = events.Images("windows/view 1")
    assert (image.height, image.width) == (4 * spec.height, (1 + len(spec.frame_offsets)) * spec.width)
    assert events.Tags()["tensors"] == ["windows/text/text_summary"]

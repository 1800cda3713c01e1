"""Tensors in several files, of which none is believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wamkit.runs.checkpoint import CheckpointError
from wamkit.runs.parts import read_into, read_parts


def write(folder: Path, *parts: tuple[dict[str, torch.Tensor], dict[str, list[int]]]) -> list[Path]:
    """Files of tensors, with the places where their parts begin."""
    folder.mkdir()
    for number, (tensors, offsets) in enumerate(parts):
        told = json.dumps({name: {"saved_offsets": at} for name, at in offsets.items()})
        save_file(tensors, folder / f"shard-{number}.safetensors", {"DCP_SHARDING_INFO": told})
    return sorted(folder.iterdir())


X = torch.arange(12.0).view(4, 3)


def test_parts_make_the_whole(tmp_path):
    files = write(tmp_path / "a", ({"x": X[:3].clone()}, {"x": [0, 0]}), ({"x": X[3:].clone()}, {"x": [3, 0]}))
    assert torch.equal(read_parts(files)["x"], X)
    into = torch.zeros(4, 3, dtype=torch.bfloat16)
    read_into({"x": into}, files)
    assert torch.equal(into, X.bfloat16())
    with pytest.raises(CheckpointError, match="the parts of x do not make"):
        read_into({"x": into}, files[1:])  # a file is missing: half of the tensor would stay as it was


@pytest.mark.parametrize(
    ("offsets", "said"),
    [
        ({"x": [10**12, 0]}, "the parts of x do not make"),  # no memory is taken for what a header declares
        ({"x": [4, 0]}, "the parts of x do not make"),
        ({"x": [0, 0]}, "the parts of x do not make"),
        ({"x": [-1, 0]}, "cannot be read|do not make"),
        ({"x": "no"}, "cannot be read|do not make"),
        ({"x": [3]}, "cannot be read|do not make"),
        ({}, "KeyError"),
        ({"x": [3, 1]}, "do not make"),
    ],
)
def test_what_a_header_declares_is_compared(tmp_path, offsets, said):
    files = write(tmp_path / "a", ({"x": X[:3].clone()}, {"x": [0, 0]}), ({"x": X[3:].clone()}, offsets))
    with pytest.raises(CheckpointError, match=said):
        read_parts(files)


def test_lost_tensors_and_other_shapes_are_refused(tmp_path):
    files = write(tmp_path / "a", ({"x": X}, {"x": [0, 0]}))
    with pytest.raises(CheckpointError, match="lack y, one of 1 of 2 tensors"):
        read_into({"x": torch.zeros(4, 3), "y": torch.zeros(1)}, files)
    with pytest.raises(CheckpointError, match=r"Size mismatch between saved"):
        read_into({"x": torch.zeros(3, 4)}, files)
    files[0].write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_parts(files)

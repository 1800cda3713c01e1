"""Checkpoints of several processes: each writes its part of the training state, the first one the weights.

No process gathers the whole state: the weights for inference, which stay one file, pass the first process one tensor
after the other. What is on the disk at any moment is as `wamkit.runs.checkpoint` says.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from wamkit.runs.checkpoint import (
    DTYPES,
    NEWEST_FORMAT,
    PARTS,
    WEIGHTS,
    begin,
    described,
    finish,
    packed,
    saving,
)
from wamkit.runs.parts import part_of, write_parts
from wamkit.training.world import World

_WORDS = {dtype: word for word, dtype in DTYPES.items()}


def save_sharded(folder: Path, world: World, *, step: int, keep: int = 2, **content: Any) -> None:
    """Writes a checkpoint, as `runs.checkpoint.save_checkpoint` does, of tensors that are divided among processes.

    All processes call it. Raises CheckpointError in all of them where one cannot write.
    """
    with saving(folder, step):
        state, weights, training = packed(step=step, **content)
        tmp = world.by_first(lambda: begin(folder, step))
        try:
            write_parts(training, tmp / PARTS)
            _write_weights(weights, tmp / WEIGHTS, world)
            mine = tmp / PARTS / part_of(world.rank)
            told = world.all(described(mine) if mine.exists() else None)
            files = {f"{PARTS}/{part_of(rank)}": entry for rank, entry in enumerate(told) if entry is not None}
            world.by_first(
                lambda: finish(tmp, state, {WEIGHTS: described(tmp / WEIGHTS), **files}, NEWEST_FORMAT, keep)
            )
        finally:
            if world.first:
                shutil.rmtree(tmp, ignore_errors=True)


def whole(x: Any) -> Any:
    """All of a divided tensor, in all processes."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def _write_weights(tensors: Mapping[str, Tensor], file: Path, world: World) -> None:
    """Writes whole tensors to one safetensors file, one after the other, in the first process."""
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # so that each lies at its alignment
    values = (whole(tensors[name]) for name in names)  # all processes take part in each
    problem: OSError | None = None
    if world.first:
        try:
            with open(file, "wb") as f:
                f.write(_header({name: tensors[name] for name in names}))
                for x in values:
                    f.write(memoryview(x.cpu().contiguous().view(-1).view(torch.uint8).numpy()))
        except OSError as error:
            problem = error
    for _ in values:  # in other processes, and where the disk refused
        pass

    def result() -> None:
        if problem is not None:
            raise problem

    world.by_first(result)


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """The beginning of a safetensors file of these tensors, in this order."""
    entries, at = {}, 0
    for name, x in tensors.items():
        end = at + x.numel() * x.itemsize
        entries[name] = {"dtype": _WORDS[x.dtype], "shape": list(x.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text

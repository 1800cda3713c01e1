"""Tensors in one file a process, in safetensors, through `torch.distributed.checkpoint`: nothing is pickled.

A tensor that is divided among processes is written and read by each of them in its part, whatever their number was when
it was written. No process holds all of it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from wamkit.runs.checkpoint import CheckpointError, Place


def write_parts(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Writes tensors to a new `folder`, as all processes do at the same time, each its part.

    Raises CheckpointError in all of them where one cannot write.
    """
    with _problems(f"{folder} was not written"):
        dcp.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def part_of(rank: int) -> str:
    """The name of the file that process number `rank` writes, if any of the tensors is in its part."""
    return f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"


def read_parts(files: Sequence[Path], place: Place | None = None) -> dict[str, Tensor]:
    """All tensors in safetensors files of one folder, by name.

    place: makes a tensor to read one into, divided among the processes that call this together; None to read whole ones
    in this process. Raises CheckpointError for files that lack some of a tensor, or declare more than they hold.
    """
    with _problems(f"{files[0].parent} cannot be read"):
        reader, there = _opened(files)
        found = {name: (place or _whole)(name, kept.size, kept.properties.dtype) for name, kept in there.items()}
        _read(found, reader, alone=place is None)
        return found


def read_into(tensors: Mapping[str, Tensor], files: Sequence[Path]) -> None:
    """Reads tensors by name from safetensors files of one folder into `tensors`, which are divided among processes.

    All processes call it. Raises CheckpointError for files that lack one, or have it in another shape.
    """
    with _problems(f"{files[0].parent} cannot be read"):
        reader, there = _opened(files)
        if missing := sorted(tensors.keys() - there.keys()):
            raise CheckpointError(
                f"the weights in {files[0].parent} lack {missing[0]}, one of {len(missing)} of {len(tensors)} tensors"
            )
        _read(dict(tensors), reader, alone=False)


def _opened(files: Sequence[Path]) -> tuple[HuggingFaceStorageReader, dict[str, TensorStorageMetadata]]:
    """A reader of these files alone, and what they hold. Raises CheckpointError where parts do not make a whole."""
    reader = HuggingFaceStorageReader(str(files[0].parent))
    reader.fs.ls = lambda path: list(map(str, files))  # type: ignore[method-assign]
    there = cast("dict[str, TensorStorageMetadata]", reader.read_metadata().state_dict_metadata)
    for name, kept in there.items():
        if sum(math.prod(chunk.sizes) for chunk in kept.chunks) != math.prod(kept.size):
            raise CheckpointError(f"{files[0].parent}: the parts of {name} do not make {tuple(kept.size)}")
    return reader, there


def _read(tensors: dict[str, Tensor], reader: HuggingFaceStorageReader, alone: bool) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is .* a single process", UserWarning)
        dcp.load(tensors, storage_reader=reader, no_dist=alone or not dist.is_initialized())


def _whole(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@contextmanager
def _problems(what: str) -> Iterator[None]:
    try:
        yield
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        raise CheckpointError(f"{what}: {first}") from error
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{what}: {error!r}") from error

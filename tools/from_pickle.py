"""Converts a checkpoint that is a pickle into safetensors, beside it: python tools/from_pickle.py FILE

Nothing but tensors and plain containers is unpickled (`torch.load(weights_only=True)`): a file that wants to run code
is refused. Nested dictionaries become names with dots.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of nested dictionaries, by name."""
    if isinstance(value, torch.Tensor):
        yield name, value.detach().contiguous().clone()
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from tensors(inner, f"{name}.{key}" if name else str(key))


def main(argv: list[str]) -> int:
    """Converts one file; 1 and a line on stderr for one that cannot be."""
    if len(argv) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    path = Path(argv[0])
    out = path.with_suffix(".safetensors")
    if out.exists():
        print(f"{out} exists already", file=sys.stderr)
        return 1
    try:
        found = dict(tensors(torch.load(path, map_location="cpu", weights_only=True, mmap=True)))
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"{path} is refused: {first}", file=sys.stderr)
        return 1
    if not found:
        print(f"{path} holds no tensors", file=sys.stderr)
        return 1
    save_file(found, out)
    print(f"{out}: {len(found)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

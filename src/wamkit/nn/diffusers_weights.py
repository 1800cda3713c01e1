"""Networks of `diffusers` with released weights: loaded whole or refused, never unpickled."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from wamkit.files import read_json
from wamkit.types import WamkitError

WEIGHTS = "diffusion_pytorch_model"
"""Name of files of weights, before their endings."""


def diffusers() -> Any:
    """The package. Raises WamkitError if it is missing."""
    try:
        import diffusers as package
    except ImportError as error:
        raise WamkitError("a pretrained video model needs diffusers: pip install 'wamkit[pretrained]'") from error
    return package


def empty_weights() -> AbstractContextManager[None]:
    """A block in which networks have no memory for their parameters, which are on torch's meta device."""
    from accelerate import init_empty_weights

    return init_empty_weights()


def weight_files(folder: Path, what: str) -> list[Path]:
    """The files of a network's weights in a folder, as diffusers names them: one, or those of an index.

    what: they are called in errors. Raises WamkitError where they are not there.
    """
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    names = {f"{WEIGHTS}.safetensors"}
    if index.is_file():
        listed = read_json(index)
        names = set(listed["weight_map"].values()) if isinstance(listed, dict) and listed.get("weight_map") else set()
    files = [folder / name for name in sorted(map(str, names))]
    if not files or any(file.name not in names or not file.is_file() for file in files):
        missing = next((file.name for file in files if not file.is_file()), index.name)
        raise WamkitError(f"{what} do not load: {missing} is missing in {folder}, or no list of its files")
    return files


def load_weights(kind: Any, folder: Path, what: str) -> Any:
    """A network of diffusers' class `kind` with the weights in a folder, in float32.

    what: they are called in errors. Raises WamkitError for weights that are damaged, of another size, or not all there.
    """
    log = logging.getLogger("diffusers")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it would say the same in lines of its own
    try:
        options = {"torch_dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        model, told = kind.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise WamkitError(f"{what} do not load: {first}") from error
    finally:
        log.setLevel(level)
    if missing := sorted(told["missing_keys"]):
        raise WamkitError(f"{what} lack {missing[0]}, one of {len(missing)} tensors of a {kind.__name__}")
    return model

"""A run as one file, for inference: safetensors, with everything but the weights as JSON in its metadata.

    model.safetensors    tensors of the weights, as weights.safetensors of a checkpoint has them
        __metadata__     {"wamkit": {"run": {...}, "sha256": ...}}, a JSON text

`run` holds the format, the configuration, extras, step and digest of the run, and the SHA-256 of the tensors; `sha256`
is that of `run`. The file holds no optimiser state, so it answers and is evaluated, and cannot be trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from wamkit.files import StoreError, atomic_write, file_size, parse_json
from wamkit.hub.names import origin
from wamkit.runs import checkpoint
from wamkit.runs.checkpoint import CheckpointError, Layout, State

if TYPE_CHECKING:
    from wamkit.runs.run import Run

KEY = "wamkit"
SUFFIX = ".safetensors"
LARGEST_HEADER = checkpoint.LIMITS[checkpoint.STATE]
"""Most bytes of the header, metadata included, that are read."""
_PARTS = {
    "format_version": int,
    "digest": str,
    "step": int,
    "config": dict,
    "extra": dict,
    "weights": dict,
    "tensors": str,
}


@dataclass(frozen=True)
class Exported:
    """A file that `export` wrote, with its header read and verified. It stands in for the manifest of a checkpoint.

    path: the file.   digest: that of the run, see `wamkit.runs.run.weights_digest`.
    run: what the metadata say.   header: types and shapes of the tensors by their names in the file.
    """

    path: Path
    digest: str
    run: Mapping[str, Any] = field(repr=False)
    header: Mapping[str, Layout] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Exported:
        """Reads the header alone. Raises CheckpointError for a file that `export` did not write, or that is altered."""
        try:
            size = file_size(path)
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                    raise CheckpointError(f"{path} is no run: it declares a header of {length} bytes")
                header = parse_json(file.read(length), str(path))
            told = parse_json(header["__metadata__"][KEY], str(path))
            run, sealed = told["run"], told["sha256"] == _digest(told["run"])
            if not sealed or any(type(run[key]) is not kind for key, kind in _PARTS.items()):
                raise CheckpointError(f"{path} is damaged: its metadata are not as they were written; {_again(path)}")
            if run["format_version"] > checkpoint.FORMAT_VERSION:
                raise CheckpointError(
                    f"{path} was exported by wamkit {run.get('wamkit_version')} in format {run['format_version']}; "
                    f"this is wamkit {checkpoint.wamkit_version()}, which reads formats up to "
                    f"{checkpoint.FORMAT_VERSION}: upgrade wamkit"
                )
            return cls(path, run["digest"], run, checkpoint.layouts(header, path))
        except OSError as e:
            raise CheckpointError(f"{path} cannot be read: {e}") from e
        except (StoreError, LookupError, TypeError, AttributeError, ValueError) as e:
            raise CheckpointError(f"{path} is no run: wamkit export did not write it ({e})") from e

    @property
    def described_in(self) -> Path:
        """The file that holds the configuration: this one."""
        return self.path

    @property
    def weights_in(self) -> Path:
        """The file that holds the weights: this one."""
        return self.path

    def state(self) -> State:
        """Step, configuration and extras."""
        return State(self.run["step"], *(self._restored(key, {}) for key in ("config", "extra")))

    def layout(self) -> dict[str, Layout]:
        """Types and shapes of the weights by the model's own names. Raises CheckpointError."""
        return checkpoint.named(self.run["weights"], self.header, self.path)

    def weights(self) -> dict[str, Tensor]:
        """The weights by the model's own names. Raises CheckpointError if they were altered."""
        try:
            tensors = {k: v.clone() for k, v in load_file(self.path).items()}
        except (OSError, SafetensorError) as e:
            raise CheckpointError(f"{self.path} cannot be read: {e}") from e
        if _content(tensors) != self.run["tensors"]:
            raise CheckpointError(
                f"{self.path} is damaged: its weights are not as they were written; {_again(self.path)}"
            )
        return self._restored("weights", tensors)

    def _restored(self, key: str, tensors: Mapping[str, Tensor]) -> Any:
        try:
            return checkpoint.unpack(self.run[key], tensors)
        except (LookupError, TypeError, ValueError) as e:
            raise CheckpointError(f"{self.path}: '{key}' is not as wamkit writes it ({e!r})") from e


def export(run: Run, out: Path) -> None:
    """Writes the file `out`, which `wamkit.load` reads. Raises CheckpointError for damaged weights, WriteError."""
    source = run.manifest
    if isinstance(source, Exported):
        tensors, told = {k: v.clone() for k, v in load_file(source.path).items()}, dict(source.run)
    else:
        state, tensors = checkpoint.served(source)
        told = {"format_version": checkpoint.FORMAT_VERSION, "wamkit_version": checkpoint.wamkit_version()}
        told |= {"digest": run.digest} | {key: state[key] for key in ("step", "config", "extra", "weights")}
        told |= {"tensors": _content(tensors)}
    atomic_write(out, save(tensors, {KEY: json.dumps({"run": told, "sha256": _digest(told)})}))


def is_export(path: Path) -> bool:
    """True if `export` wrote the file."""
    try:
        return bool(Exported.open(path))
    except CheckpointError:
        return False


def _again(path: Path) -> str:
    """The advice for a damaged file."""
    if (name := origin(path)) is None:
        return "export it again"
    return f"remove {path.resolve()} and load {name} again"


def _digest(run: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def _content(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()

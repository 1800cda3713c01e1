"""Checkpoints: atomic, verified by SHA-256, exact to the bit, and free of pickle.

    folder/latest                       the name of the newest checkpoint
    folder/step-00001000/weights.safetensors    weights for inference (the EMA where there is one)
                         training.safetensors   raw weights, optimizer and generator tensors
                         state.json             step, configuration, extras, optimizer scalars
                         manifest.json          versions, and size and SHA-256 of every file

Where several processes train (format 2), the folder training/ is in place of training.safetensors: each process writes
its part of all tensors there, and reads its part of them later (`runs.parts`).

A checkpoint is built in a hidden sibling folder, made durable, and renamed into place; then `latest` moves to it, and
old ones go. So a kill or a power cut at any moment leaves `latest` at a complete checkpoint, the old one or the new.
One process writes to a folder at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from wamkit.files import StoreError, advice_for, atomic_write, fsync_folder, parse_json, read_bytes, read_json
from wamkit.types import WamkitError

FORMAT_VERSION, NEWEST_FORMAT = 1, 2
WEIGHTS, TRAINING, STATE, MANIFEST = "weights.safetensors", "training.safetensors", "state.json", "manifest.json"
SERVED = (STATE, WEIGHTS)
"""Files that inference needs."""
LIMITS = {MANIFEST: 1 << 20, STATE: 64 << 20, "header": 8 << 20}
"""Most bytes of a file, or of the header of weights, that are read. Compared with what is declared before any are."""
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
"""Types of tensors by their names in safetensors, as far as models have them."""
SHA256 = re.compile("[0-9a-f]{64}")
NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")  # ".1" when the step was saved before
PARTS = "training"
"""Folder of a training state in parts."""
PART = re.compile(PARTS + r"/[\w-]{1,100}\.safetensors")


class CheckpointError(WamkitError):
    """A checkpoint could not be written, or is missing, damaged or from a newer version."""


class _Damaged(CheckpointError):
    """A file of a checkpoint is missing or altered. Names the file, without advice."""


@dataclass(frozen=True)
class Manifest:
    """A list of a checkpoint's files, itself verified.

    path: the checkpoint's folder.
    digest: SHA-256 of the manifest's bytes; it stands for the whole checkpoint.
    files: size and SHA-256 of every file, by name.
    """

    path: Path
    digest: str
    files: Mapping[str, Mapping[str, Any]]

    @property
    def described_in(self) -> Path:
        """The file that holds the configuration."""
        return self.path / STATE

    @property
    def weights_in(self) -> Path:
        """The file that holds the weights."""
        return self.path / WEIGHTS

    @property
    def parts(self) -> list[str]:
        """Files of a training state in parts; none where it is in one."""
        return sorted(name for name in self.files if PART.fullmatch(name))

    def names(self, training: bool) -> list[str]:
        """Files that inference needs, or that training goes on from."""
        return [*SERVED, *((self.parts or [TRAINING]) if training else ())]

    def state(self) -> State:
        """See `read_state`."""
        return read_state(self)

    def layout(self) -> dict[str, Layout]:
        """See `read_layout`."""
        return read_layout(self)

    def weights(self) -> dict[str, Tensor]:
        """See `read_weights`."""
        return read_weights(self)


class Layout(NamedTuple):
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class State(NamedTuple):
    """Step, and the configuration and extras that were given to `save_checkpoint`."""

    step: int
    config: dict[str, Any]
    extra: dict[str, Any]


class Place(Protocol):
    """A function that makes an empty tensor to read a saved one into, whole or divided among processes."""

    def __call__(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """A tensor for the one that was saved as `name`: model.NAME, ema.NAME, optimizer.PART.state.NUMBER.KEY."""


@dataclass(frozen=True)
class Checkpoint:
    """One loaded checkpoint, tensors on the CPU unless they were placed elsewhere.

    weights: for inference, by the model's own names.
    config, extra: as they were given to `save_checkpoint`.
    model_state, ema_state, optimizer_state, rng_state: the state for exact resume, in the original dtypes and memory
        layouts; None unless loaded with `training=True`, and `ema_state` also when none was saved.
    """

    path: Path
    step: int
    weights: dict[str, Tensor]
    config: dict[str, Any]
    extra: dict[str, Any]
    model_state: dict[str, Tensor] | None = None
    ema_state: dict[str, Tensor] | None = None
    optimizer_state: dict[str, Any] | None = None
    rng_state: dict[str, Any] | None = None


def save_checkpoint(folder: str | Path, *, step: int, keep: int = 2, **content: Any) -> Path:
    """Writes one complete checkpoint under `folder`, points `latest` to it, and keeps the `keep` newest.

    content: the further arguments of `packed`: model_state, ema_state, optimizer_state, rng_state, config, extra.
    Returns the checkpoint's folder. Raises CheckpointError when it cannot be written (disk full) or something in it
    cannot be stored; the earlier checkpoints then stand untouched.
    """
    if keep < 1 or step < 0:
        raise CheckpointError(f"keep must be at least 1 and step at least 0, got keep={keep}, step={step}")
    state, weights, training = packed(step=step, **content)
    folder = Path(folder)
    with saving(folder, step):
        tmp = begin(folder, step)
        try:
            for file, tensors in ((WEIGHTS, weights), (TRAINING, training)):
                copies = {k: torch.clone(x.cpu(), memory_format=torch.contiguous_format) for k, x in tensors.items()}
                save_file(copies, tmp / file)
            files = {name: described(tmp / name) for name in (WEIGHTS, TRAINING)}
            return finish(tmp, state, files, FORMAT_VERSION, keep)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)


class Packed(NamedTuple):
    """The content of a checkpoint, before it is written.

    state: that of state.json.   weights, training: tensors as they were given, by the names that `state` has for them.
    """

    state: dict[str, Any]
    weights: dict[str, Tensor]
    training: dict[str, Tensor]


def packed(
    *,
    step: int,
    model_state: Mapping[str, Tensor],
    ema_state: Mapping[str, Tensor] | None,
    optimizer_state: Mapping[str, Any],
    rng_state: Mapping[str, Any],
    config: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> Packed:
    """The content of a checkpoint.

    ema_state: averaged weights by the names of `model_state`; a name it lacks (a buffer) is taken from there.
    optimizer_state, rng_state: nested dicts, lists and tuples of tensors, numbers, text and None.
    config, extra: the same without tensors (loader position, normalisation, ...).
    Raises CheckpointError for an average of nothing in the model, and for what cannot be stored.
    """
    if unknown := sorted(set(ema_state or ()) - set(model_state)):
        raise CheckpointError(f"ema_state has {unknown[:3]}, which model_state lacks; use the model's own names")
    weights: dict[str, Tensor] = {}
    training: dict[str, Tensor] = {}
    state = {
        "step": step,
        "config": _pack(dict(config), None, "config"),
        "extra": _pack(dict(extra), None, "extra"),
        "ema": None if ema_state is None else sorted(ema_state),
        "model_state": _pack(dict(model_state), training, "model"),
        "optimizer_state": _pack(dict(optimizer_state), training, "optimizer"),
        "rng_state": _pack(dict(rng_state), training, "rng"),
        "weights": _pack({**model_state, **(ema_state or {})}, weights, ""),
    }
    return Packed(state, weights, training)


@contextmanager
def saving(folder: Path, step: int) -> Iterator[None]:
    """A block that writes a checkpoint. Raises CheckpointError for what the disk refuses."""
    try:
        yield
    except (OSError, SafetensorError) as e:
        advice = advice_for(e) if isinstance(e, OSError) else "free space, then run the same command again"
        raise CheckpointError(
            f"could not save step {step} under {folder}: {e}. Earlier checkpoints are untouched; {advice}"
        ) from e


def begin(folder: Path, step: int) -> Path:
    """A new hidden folder for the checkpoint of `step`, which `finish` then moves into place."""
    folder.mkdir(parents=True, exist_ok=True)
    _clean(folder)
    again = [number + 1 for at, number in map(_order, _checkpoints(folder)) if at == step]
    name = f"step-{step:08d}" + (f".{max(again)}" if again else "")  # never over the one that `latest` names
    tmp = folder / f".tmp-{name}"
    tmp.mkdir()
    return tmp


def finish(tmp: Path, state: Mapping[str, Any], files: Mapping[str, Any], version: int, keep: int) -> Path:
    """Completes a checkpoint that `begin` began, moves it into place, and keeps the `keep` newest. Returns its folder.

    state: content of state.json.   files: size and SHA-256 of every other file, by name (`described`).
    """
    folder, final = tmp.parent, tmp.parent / tmp.name.removeprefix(".tmp-")
    (tmp / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
    listed = {STATE: described(tmp / STATE), **files}
    head = {"format_version": version, "wamkit_version": wamkit_version(), "files": listed}
    (tmp / MANIFEST).write_text(json.dumps(head | {"sha256": _digest(head)}, indent=2), encoding="utf-8")
    for name in listed:
        shutil.copymode(tmp / STATE, tmp / name)  # safetensors makes files that only their owner can read
    for file in (p for p in tmp.rglob("*") if p.is_file()):
        with open(file, "rb") as f:
            os.fsync(f.fileno())
    for at in {(tmp / name).parent for name in listed}:
        fsync_folder(at)
    os.rename(tmp, final)
    fsync_folder(folder)
    atomic_write(folder / "latest", f"{final.name}\n".encode())
    for old in [p for p in _checkpoints(folder) if p != final][keep - 1 :]:
        os.rename(old, folder / f".tmp-old-{old.name}")  # a half-deleted folder must not look like a checkpoint
    _clean(folder)
    return final


def described(file: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as a manifest has them."""
    return {"size": file.stat().st_size, "sha256": _sha256(file)}


def has_checkpoint(folder: str | Path) -> bool:
    """True if anything in `folder` or its `checkpoints/` is, or claims to be, a checkpoint to resume from."""
    at = Path(folder) / "checkpoints"
    return any((f / "latest").is_file() or bool(_checkpoints(f)) for f in (Path(folder), at))


def newest(folder: str | Path) -> str:
    """The name of the newest checkpoint in `folder` or its `checkpoints/`, "none" where there is none."""
    return _locate(Path(folder)).name if has_checkpoint(folder) else "none"


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a checkpoint, given its folder, the one with `latest`, or the run with that in `checkpoints/`.

    Raises CheckpointError if there is no checkpoint, if the manifest is damaged, and for one that a newer wamkit wrote.
    """
    path = _locate(Path(folder))
    with _explained(path):
        return _manifest(path)


def read_state(manifest: Manifest) -> State:
    """Step, configuration and extras. Raises CheckpointError if their file is missing or altered."""
    with _explained(manifest.path):
        state = _json(manifest)
        return State(state["step"], *(_restored(manifest, state, key) for key in ("config", "extra")))


def read_layout(manifest: Manifest) -> dict[str, Layout]:
    """Types and shapes of the weights, by the model's own names, from the header of their file alone.

    Raises CheckpointError if the file is missing, of another size than the manifest has, or no file of weights.
    """
    with _explained(manifest.path):
        header = _header(_sized(manifest, WEIGHTS))
        return named(_json(manifest)["weights"], header, manifest.path / STATE)


def named(nodes: Mapping[str, Any], header: Mapping[str, Layout], where: Path) -> dict[str, Layout]:
    """The layouts `header` by the model's own names, as the weights' `nodes` in the file `where` give them.

    Raises CheckpointError for a name of a tensor that is not there.
    """
    try:
        return {name: header[node["__tensor__"]] for name, node in nodes.items()}
    except (LookupError, TypeError) as e:
        raise _Damaged(f"{where}: 'weights' names tensors that are not there ({e})") from e


def served(manifest: Manifest) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of state.json, and the tensors of the weights by their names there. Raises CheckpointError."""
    with _explained(manifest.path):
        return _json(manifest), _tensors(manifest, WEIGHTS)


def read_weights(manifest: Manifest) -> dict[str, Tensor]:
    """The weights for inference, by the model's own names. Raises CheckpointError if they are missing or altered."""
    with _explained(manifest.path):
        return _restored(manifest, _json(manifest), "weights", _tensors(manifest, WEIGHTS))


def verify(manifest: Manifest, rank: int, size: int) -> None:
    """Verifies every file of a checkpoint and its training state whose turn is that of process `rank` of `size`.

    Raises CheckpointError for one that is missing or altered.
    """
    with _explained(manifest.path, training=True):
        for name in manifest.names(training=True)[rank::size]:
            _verify(manifest, name)


def load_checkpoint(folder: str | Path, *, training: bool = False, place: Place | None = None) -> Checkpoint:
    """Reads and verifies a checkpoint, found as by `read_manifest`. With `training` the state for resuming is read too.

    place: makes tensors for a training state in parts, of which several processes read their parts together, when each
    has verified its share of the files (`verify`).
    Raises CheckpointError for a missing, truncated or altered file, naming it and the newest intact checkpoint beside
    it, and for one that a newer wamkit wrote. The training state is neither read nor verified unless asked for.
    """
    path = _locate(Path(folder))
    with _explained(path, training):
        manifest = _manifest(path)
        state = _json(manifest)
        together = place if training and manifest.parts else None
        weights = _restored(manifest, state, "weights", _weights(manifest, together))
        resume = {}
        if training:
            tensors = _training(manifest, together)
            keys = ("model_state", "optimizer_state", "rng_state")
            resume = {key: _restored(manifest, state, key, tensors) for key in keys}
            resume["ema_state"] = None if state.get("ema") is None else _picked(manifest, weights, state["ema"])
        config, extra = (_restored(manifest, state, key) for key in ("config", "extra"))
    return Checkpoint(path, state["step"], weights, config, extra, **resume)


def _weights(manifest: Manifest, place: Place | None) -> dict[str, Tensor]:
    if place is None:
        return _tensors(manifest, WEIGHTS)
    from wamkit.runs.parts import read_parts

    return read_parts([_sized(manifest, WEIGHTS)], lambda name, *kind: place(f"ema.{name}", *kind))


def _training(manifest: Manifest, place: Place | None) -> dict[str, Tensor]:
    if not manifest.parts:
        return _tensors(manifest, TRAINING)
    from wamkit.runs.parts import read_parts

    return read_parts([(_verify if place is None else _sized)(manifest, name) for name in manifest.parts], place)


@contextmanager
def _explained(path: Path, training: bool = False) -> Iterator[None]:
    """Adds to errors about the checkpoint `path` what to do.

    training: another one helps only if training can go on from it.
    """
    try:
        yield
    except _Damaged as e:
        raise CheckpointError(f"{e}{_advice(path.parent, path.name, training)}") from None
    except StoreError as e:
        raise CheckpointError(str(e)) from e
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"{path} cannot be read: {e}") from e


def _manifest(path: Path) -> Manifest:
    """Raises _Damaged unless the manifest is intact and lists what a checkpoint has, CheckpointError for a newer
    format."""
    if not (path / MANIFEST).exists():
        raise _Damaged(f"{path / MANIFEST} is missing")
    raw = read_bytes(path / MANIFEST, LIMITS[MANIFEST])
    try:
        head = parse_json(raw, MANIFEST)
        intact = head.pop("sha256") == _digest(head)
    except (StoreError, KeyError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise _Damaged(f"{path / MANIFEST} is damaged: its own checksum does not match")
    if not isinstance(head.get("format_version"), int):
        raise _Damaged(f"{path / MANIFEST}: format_version is {head.get('format_version')!r}, not a number")
    if head["format_version"] > NEWEST_FORMAT:
        raise CheckpointError(
            f"{path} was written by wamkit {head.get('wamkit_version')} in checkpoint format {head['format_version']}; "
            f"this is wamkit {wamkit_version()}, which reads formats up to {NEWEST_FORMAT}: upgrade wamkit"
        )
    listed = head.get("files")
    manifest = Manifest(path, hashlib.sha256(raw).hexdigest(), listed if isinstance(listed, dict) else {})
    for name in SERVED:
        _listed(manifest, name)
    return manifest


def _listed(manifest: Manifest, name: str) -> tuple[int, str]:
    """Size and SHA-256 of a file. Raises _Damaged if the manifest does not have them."""
    entry = manifest.files.get(name)
    size, sha256 = (entry.get("size"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    if type(size) is not int or not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        raise _Damaged(f"{manifest.path / MANIFEST} does not list {name} with its size and SHA-256")
    return size, sha256


_intact: set[tuple[str, int, int, str]] = set()
"""Files whose bytes this process has verified: path, inode, time of the last change, SHA-256."""


def _sized(manifest: Manifest, name: str) -> Path:
    """A file of a checkpoint. Raises _Damaged unless it is there, of the size that was written and that is read."""
    file, (size, _) = manifest.path / name, _listed(manifest, name)
    if not file.is_file():
        training = name == TRAINING or PART.fullmatch(name)
        answers = ": the run answers without it, but cannot be trained on" if training else ""
        raise _Damaged(f"{file} is missing{answers}")
    if (found := file.stat().st_size) != size:
        raise _Damaged(f"{file} has {found} bytes, {size} were written")
    if size > LIMITS.get(name, size):
        raise _Damaged(f"{file} has {size} bytes, and at most {LIMITS[name]} are read")
    return file


def _verify(manifest: Manifest, name: str) -> Path:
    """A file of a checkpoint. Raises _Damaged unless it is there and unaltered; its bytes are hashed once a process."""
    file, (_, sha256) = _sized(manifest, name), _listed(manifest, name)
    found = file.stat()
    version = (str(file), found.st_ino, found.st_mtime_ns, sha256)
    if version not in _intact:
        if _sha256(file) != sha256:
            raise _Damaged(f"{file} is damaged: its SHA-256 is not the one in {MANIFEST}")
        _intact.add(version)
    return file


_PARTS = {"step": int, "config": dict, "extra": dict, "weights": dict}
"""Parts of state.json that inference needs, and their types."""


def _json(manifest: Manifest) -> dict[str, Any]:
    """state.json. Raises _Damaged unless it has its parts."""
    file = _verify(manifest, STATE)
    state = read_json(file, max_bytes=LIMITS[STATE])
    for key, kind in _PARTS.items():
        if not isinstance(state, dict) or type(state.get(key)) is not kind:
            raise _Damaged(f"{file}: '{key}' is missing, or no {kind.__name__}: wamkit did not write this")
    return state


def _restored(
    manifest: Manifest, state: Mapping[str, Any], key: str, tensors: Mapping[str, Tensor] | None = None
) -> Any:
    """A part of state.json as it was given to `save_checkpoint`. Raises _Damaged for one that was made otherwise."""
    try:
        return unpack(state[key], tensors or {})
    except (LookupError, TypeError, ValueError) as e:
        raise _Damaged(f"{manifest.path / STATE}: '{key}' is not as wamkit writes it ({e!r})") from e


def _picked(manifest: Manifest, weights: Mapping[str, Tensor], names: Any) -> dict[str, Tensor]:
    try:
        return {k: weights[k] for k in names}
    except (LookupError, TypeError) as e:
        raise _Damaged(f"{manifest.path / STATE}: 'ema' names weights that are not there ({e!r})") from e


def _header(file: Path) -> dict[str, Layout]:
    """Types and shapes of the tensors in a safetensors file; nothing else of it is read. Raises _Damaged."""
    with open(file, "rb") as f:
        size = int.from_bytes(f.read(8), "little")
        if size > LIMITS["header"]:
            raise _Damaged(f"{file} declares a header of {size} bytes, and at most {LIMITS['header']} are read")
        header = parse_json(f.read(size), str(file))
    return layouts(header, file)


def layouts(header: Mapping[str, Any], file: Path) -> dict[str, Layout]:
    """Types and shapes of tensors by name, from the header of the safetensors file `file`. Raises CheckpointError."""
    try:
        header = {name: t for name, t in header.items() if name != "__metadata__"}
        return {name: Layout(DTYPES[t["dtype"]], tuple(map(operator.index, t["shape"]))) for name, t in header.items()}
    except (LookupError, TypeError, AttributeError) as e:
        raise _Damaged(f"{file} has a header that describes no tensors ({e!r})") from e


def _tensors(manifest: Manifest, name: str) -> dict[str, Tensor]:
    file = _verify(manifest, name)
    return {k: v.clone() for k, v in load_file(file).items()}  # a copy: load_file maps the file, which may change


def _advice(folder: Path, bad: str, training: bool = False) -> str:
    """Advice about a damaged checkpoint: the newest intact one beside it, if there is any."""
    for other in _checkpoints(folder):
        if other.name != bad and _usable(other, training):
            return f"; {other} is intact: load that, or write {other.name!r} into {folder / 'latest'} to go on from it"
    return "; no other intact checkpoint stands beside it: restore the file from a copy, or train again"


def _usable(path: Path, training: bool) -> bool:
    try:
        manifest = _manifest(path)
        for name in manifest.names(training):
            _verify(manifest, name)
    except (CheckpointError, StoreError, OSError):
        return False
    return True


def _locate(given: Path) -> Path:
    if (given / MANIFEST).exists() or NAME.fullmatch(given.name):
        return given
    folder = next((f for f in (given, given / "checkpoints") if (f / "latest").is_file()), None)
    if folder is None:  # killed before the first `latest`: a complete checkpoint may stand there all the same
        found = _checkpoints(given) or _checkpoints(given / "checkpoints")
        if not found:
            raise CheckpointError(f"no checkpoint in {given}: expected a file `latest` or a folder step-00000000 in it")
        return found[0]
    with _explained(folder):
        name = read_bytes(folder / "latest", 4096).decode(errors="replace").strip()
    if not NAME.fullmatch(name) or not (folder / name).is_dir():
        raise CheckpointError(
            f"{folder / 'latest'} names {name!r}, which is no checkpoint there{_advice(folder, name)}"
        )
    return folder / name


def _pack(value: Any, tensors: dict[str, Tensor] | None, where: str) -> Any:
    """The JSON-able form of nested containers; tensors move to `tensors`, named by their place. None refuses them."""
    if isinstance(value, Tensor) and tensors is not None:
        while where in tensors:  # {"a.b": x, "a": {"b": y}}
            where += "'"
        tensors[where] = value.detach()
        node: dict[str, Any] = {"__tensor__": where}
        if not value.is_contiguous():
            # safetensors keeps no memory layout, and fused AdamW on the CPU silently computes nonsense when the layouts
            # of a channels_last weight and of its moments differ.
            node["stride"] = list(torch.empty_like(value, device="meta").stride())
        return node
    if isinstance(value, Mapping):
        items = [(k, _pack(v, tensors, f"{where}.{k}" if where else str(k))) for k, v in value.items()]
        if all(isinstance(k, str) and not k.startswith("__") for k in value):
            return dict(items)
        return {"__items__": [[_pack(k, None, f"a key of {where}"), v] for k, v in items]}
    if isinstance(value, (list, tuple)):
        items = [_pack(v, tensors, f"{where}[{i}]") for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"__tuple__": items}
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": str(value)}  # JSON has no word for it
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(f"{where} is a {type(value).__name__}, which cannot be stored there; make it numbers or text")


def unpack(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """A value as it was given to `save_checkpoint`, from its JSON-able form.

    Raises LookupError, TypeError or ValueError for a form that was made otherwise.
    """
    if isinstance(node, list):
        return [unpack(v, tensors) for v in node]
    if not isinstance(node, dict):
        return node
    if "__tensor__" in node:
        tensor = tensors[node["__tensor__"]]
        if "stride" not in node:
            return tensor
        stride = _dense(tensor.shape, node["stride"])
        return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)
    if "__float__" in node:
        return float(node["__float__"])
    if "__tuple__" in node:
        return tuple(unpack(node["__tuple__"], tensors))
    if "__items__" in node:
        return {unpack(k, tensors): unpack(v, tensors) for k, v in node["__items__"]}
    return {k: unpack(v, tensors) for k, v in node.items()}


def _dense(shape: Sequence[int], stride: Any) -> list[int]:
    """`stride` if it lays out a tensor of `shape` without gaps, so that it takes no more memory. Else ValueError."""
    strides = [operator.index(s) for s in stride]
    filled = 1
    for step, size in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n > 1):
        if step != filled:
            raise ValueError(f"stride {strides} does not lay out {tuple(shape)} densely")
        filled *= size
    if not all(0 <= s < 2**62 for s in strides):  # those of sides of length 1 were not asked
        raise ValueError(f"stride {strides} is out of range")
    return strides


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders under `folder`, newest step first."""
    found = [p for p in folder.iterdir() if NAME.fullmatch(p.name) and p.is_dir()] if folder.is_dir() else []
    return sorted(found, key=_order, reverse=True)


def _order(path: Path) -> tuple[int, int]:
    match = NAME.fullmatch(path.name)
    assert match is not None, path  # callers list matching folders alone
    step, number = match.groups()
    return int(step), int(number or 0)


def _clean(folder: Path) -> None:
    """Removes the remains of saves that were killed."""
    for left in folder.glob(".tmp-*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in folder.glob(".latest.*.tmp"):
        left.unlink(missing_ok=True)


def _sha256(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _digest(head: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()


def wamkit_version() -> str:
    """The version of the installed package."""
    try:
        return version("wamkit")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"

"""Configuration as frozen dataclasses: exact JSON round trip, strict reading, and errors that name the place.

A configuration is a tree of frozen dataclasses whose leaves are bool, int, float, str, None, Path, enums and literals,
in tuples, lists and string-keyed mappings. Where a field may hold more than one dataclass (a union, or a subclass of
the annotated one), the JSON object carries the tag "kind": the class name, or the default of its own field `kind`.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import math
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from wamkit.errors import WamkitError, nearest
from wamkit.files import StoreError, atomic_write, parse_json, read_json

T = TypeVar("T")
_hints = functools.cache(get_type_hints)  # which evaluates every annotation anew
SCALARS = (bool, int, float, str, type(None))


class ConfigError(WamkitError, ValueError):
    """A configuration has an unknown key, a missing key or a wrong value. The message starts with the place."""


def check_bounds(config: Any, **bounds: tuple[float, float]) -> None:
    """Raises ConfigError naming the first field of `config` outside its closed interval.

    bounds: field name -> (lowest, highest), as in `check_bounds(c, steps=(1, inf))`. Values must be finite even where a
        bound is not. A tuple must hold at least one value, all of them inside.
    """
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        if not values or not all(low <= x <= high and (isinstance(x, int) or math.isfinite(x)) for x in values):
            limits = f"at least {_number(low)}" if high == math.inf else f"at most {_number(high)}"
            limits = limits if math.inf in (high, -low) else f"between {_number(low)} and {_number(high)}"
            raise ConfigError(f"{name} = {value}: must be {limits}")


@dataclass(frozen=True)
class Between:
    """The numbers that a field may hold, declared on its type: `width: Annotated[int, Between(1, inf, multiple=2)]`."""

    low: float
    high: float
    multiple: int = 1


def AtMost(high: float) -> Between:  # noqa: N802 (stands where `Between` stands)
    """An upper bound above all use, declared beside the other bounds: `Annotated[int, Between(1, inf), AtMost(256)]`.

    Every number that a user can give has one, so that a slip is refused before it fills the memory, or makes work
    without end.
    """
    return Between(-inf, high)


Count = Annotated[int, Between(1, inf), AtMost(2**16)]
Steps = Annotated[int, Between(1, inf), AtMost(10**9)]
Episodes = Annotated[int, Between(0, inf), AtMost(10**6)]
Processes = Annotated[int, Between(1, inf), AtMost(256)]
Seed = Annotated[int, Between(0, 2**63 - 1)]
Side = Annotated[int, Between(1, inf), AtMost(4096)]
"""Pixels of an image."""
Share = Annotated[float, Between(0, 1)]
Positive = Annotated[float, Between(1e-6, inf), AtMost(1e6)]
NotNegative = Annotated[float, Between(0, inf), AtMost(1e6)]
Rate = Annotated[float, Between(0.01, 1000)]
"""Steps or frames a second."""
Gigabytes = Annotated[float, Between(0, inf), AtMost(1e6)]


def check_declared(config: Any) -> None:
    """Raises ConfigError for a field of `config` that holds what its type's `Between` excludes.

    The type may be optional, and None is then allowed. In `tuple[Count, ...]` it holds for each value, and an empty
    tuple is allowed; in `Annotated[tuple[int, ...], Between(1, 9)]` there must be one.
    """
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name, None)
        if value is None or (value == () and get_origin(hint) is not Annotated):
            continue
        for limit in _limits(hint):
            check_bounds(config, **{name: (limit.low, limit.high)})
            if limit.multiple > 1:
                check_multiple(name, value, "", limit.multiple)


def _limits(hint: Any) -> Iterator[Between]:
    """The bounds that a type declares, those of its parts included."""
    yield from (x for x in getattr(hint, "__metadata__", ()) if isinstance(x, Between))
    for part in get_args(hint):
        yield from _limits(part)


def _number(x: float) -> str:
    return str(int(x)) if float(x).is_integer() else f"{x:g}"


@dataclass(frozen=True)
class Checked:
    """The base of options whose numbers declare their bounds: raises ConfigError for one out of bounds."""

    def __post_init__(self) -> None:
        check_declared(self)


def check_multiple(name: str, value: int, other: str, part: int) -> None:
    """Raises ConfigError unless `value` is a multiple of `part`, and says which values would fit.

    name, other: what the two are called in the message.
    """
    if value % part:
        what = f"a multiple of {other}, {part}" if other else "even" if part == 2 else f"a multiple of {part}"
        near = [str(n) for n in (value // part * part, (value // part + 1) * part) if n]
        verb = "is not" if other else "must be"
        raise ConfigError(f"{name} {value} {verb} {what}: {' or '.join(near)} would fit")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass instance as JSON-able data. Raises ConfigError where `from_dict` would not restore it exactly.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Optimizer:
        ...     lr: float = 1e-3
        ...     betas: tuple[float, float] = (0.9, 0.99)
        >>> to_dict(Optimizer())
        {'lr': 0.001, 'betas': [0.9, 0.99]}
    """
    if not is_dataclass(config) or isinstance(config, type):
        raise ConfigError(f"a configuration is a dataclass instance; this is {shown(config)}")
    out = _encode(config, type(config), "")
    back = from_dict(type(config), out)
    for f in _init_fields(type(config)):
        was, now = getattr(config, f.name), getattr(back, f.name)
        if was is not now and was != now:
            raise ConfigError(f"{f.name}: {was!r} comes back from JSON as {now!r}")
    return out


def to_json(config: Any) -> str:
    """A dataclass instance as indented JSON text; see `to_dict`."""
    return json.dumps(to_dict(config), indent=2, ensure_ascii=False) + "\n"


def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """An instance of `cls` from JSON-able data. Missing keys take the fields' defaults.

    Raises ConfigError naming the place ("train.optimizer.lr") for an unknown key, a wrong type, a missing key without a
    default, or a value that the class itself refuses with ValueError.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Optimizer:
        ...     lr: float = 1e-3
        ...     steps: int = 100
        >>> from_dict(Optimizer, {"lr": 0.01})
        Optimizer(lr=0.01, steps=100)
    """
    return _decode(cls, data, "")


def from_json(cls: type[T], text: str) -> T:
    """An instance of `cls` from JSON text; see `from_dict`."""
    try:
        return from_dict(cls, parse_json(text, "the text", finite=False))
    except StoreError as e:
        raise ConfigError(str(e)) from e


def load_json(cls: type[T], path: str | Path) -> T:
    """Reads what `save_json` wrote. Every error names the file."""
    try:
        return from_dict(cls, read_json(path, finite=False))
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from e
    except StoreError as e:
        raise ConfigError(str(e)) from e


def save_json(path: str | Path, obj: Any) -> None:
    """Writes a dataclass instance, or any JSON-able data, atomically."""
    atomic_write(path, to_bytes(obj))


def to_bytes(obj: Any) -> bytes:
    """The content of the file that `save_json` writes."""
    return (to_json(obj) if is_dataclass(obj) else json.dumps(obj, indent=2, ensure_ascii=False) + "\n").encode()


def without_nan(x: Any) -> Any:
    """A nested copy of `x` in which NaN and infinities, which JSON lacks, are None."""
    if isinstance(x, Mapping):
        return {k: without_nan(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [without_nan(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def digest(key: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of JSON-able data.

    default: as in `json.dumps`, for values that are not JSON-able.
    """
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=default).encode()).hexdigest()[:16]


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-able `data` with a checksum of itself under the key "checksum", for a file that stands alone."""
    return {**data, "checksum": digest(data)}


def unsealed(data: Any, where: object) -> dict[str, Any]:
    """The content of what `sealed` gave. Data of earlier versions hold no checksum, and are returned as they are.

    where: the file, for errors. Raises StoreError if the content was changed, or is no JSON object.
    """
    if not isinstance(data, Mapping):
        raise StoreError(f"{where} is damaged: it holds {shown(data)}, not an object; restore it, or make it again")
    rest = {k: v for k, v in data.items() if k != "checksum"}
    if "checksum" in data and data["checksum"] != digest(rest):
        raise StoreError(f"{where} is damaged: its checksum is not that of its content; restore it, or make it again")
    return rest


def _encode(value: Any, hint: Any, where: str) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        cls, hints = type(value), _hints(type(value))
        out = {} if set(_dataclasses(hint)) == {cls} or "kind" in hints else {"kind": _tag(cls)}
        for f in _init_fields(cls):
            out[f.name] = _encode(getattr(value, f.name), hints[f.name], _join(where, f.name))
        return out
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_encode(v, hint, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        return {k: _encode(v, hint, _join(where, k)) for k, v in value.items()}
    if isinstance(value, SCALARS):
        return value
    raise ConfigError(f"{where}: a configuration cannot hold {shown(value)}")


def _decode(hint: Any, data: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return data
    if origin in (Union, types.UnionType):
        return _decode_union(hint, data, where)
    if is_dataclass(hint):
        return _decode_dataclass((hint,), data, where)
    if origin is Literal:
        return _decode_choice({a: a for a in args}, data, where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _decode_choice({m.value: m for m in hint}, data, where)
    if origin in (tuple, list):
        return _decode_sequence(origin, args, data, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _check(isinstance(data, Mapping) and all(isinstance(k, str) for k in data), hint, data, where)
        return {k: _decode(args[1], v, _join(where, k)) for k, v in data.items()}
    if hint is Path:
        _check(isinstance(data, str), "a path as text", data, where)
        return Path(data)
    if hint in SCALARS:
        accepted = (int, float) if hint is float else hint
        _check(isinstance(data, accepted) and (hint is bool or not isinstance(data, bool)), hint, data, where)
        if hint is not float:
            return data
        _check(isinstance(data, float) or abs(data) <= sys.float_info.max, hint, data, where)
        return float(data)
    raise ConfigError(f"{where or hint}: {_name(hint)} is not a type that a configuration can hold")


_hints = functools.lru_cache(maxsize=None)(get_type_hints)  # slow, and asked for each episode of a data set


def _decode_dataclass(candidates: tuple[type, ...], data: Any, where: str) -> Any:
    _check(isinstance(data, Mapping), " or ".join(f"the fields of {c.__name__}" for c in candidates), data, where)
    cls = _choose(candidates, data, where)
    hints, known, values = _hints(cls), {f.name: f for f in _init_fields(cls)}, {}
    for key in data:
        if key not in known and key != "kind":
            place, has = _join(where, key), ", ".join(known)
            raise ConfigError(f"{place}: unknown key{nearest(key, known)}; {cls.__name__} has: {has}")
    for name, f in known.items():
        if name in data:
            values[name] = _decode(hints[name], data[name], _join(where, name))
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{_join(where, name)}: missing, and {cls.__name__} has no default for it")
    try:
        return cls(**values)
    except ValueError as e:
        raise ConfigError(f"{where}: {e}" if where else str(e)) from e


def _choose(candidates: tuple[type, ...], data: Mapping[str, Any], where: str) -> type:
    """The class named by the tag of `data`, among the candidates and their subclasses."""
    kind, first = data.get("kind"), candidates[0]
    if len(candidates) == 1 and kind in (None, _tag(first)):
        return first
    tags = {_tag(c): c for candidate in candidates for c in _with_subclasses(candidate)}
    if isinstance(kind, str) and kind in tags:
        return tags[kind]
    if len(candidates) == 1 and "kind" in first.__dataclass_fields__:
        return first  # an ordinary field that happens to be called `kind`
    problem = "missing" if kind is None else f"unknown {kind!r}{nearest(kind, tags)}"
    raise ConfigError(f"{_join(where, 'kind')}: {problem}; known: {', '.join(tags)}")


def _decode_union(hint: Any, data: Any, where: str) -> Any:
    arms = [a for a in get_args(hint) if a is not type(None)]
    classes = tuple(a for a in arms if is_dataclass(a))
    if type(data) in get_args(hint):  # try the exact type first: 3 in `float | int` stays an int
        return data
    if classes and (isinstance(data, Mapping) or len(classes) == len(arms)):
        return _decode_dataclass(classes, data, where)
    if len(arms) == 1:  # an optional: its own error is the most exact
        return _decode(arms[0], data, where)
    for arm in arms:
        try:
            return _decode(arm, data, where)
        except ConfigError:
            continue
    return _check(False, hint, data, where)


def _decode_choice(options: Mapping[Any, Any], data: Any, where: str) -> Any:
    for key, value in options.items():
        if key == data and type(key) is type(data):  # True is not 1
            return value
    known = ", ".join(map(repr, options))
    raise ConfigError(f"{where}: expected one of {known}, found {shown(data)}{nearest(data, map(str, options))}")


def _decode_sequence(origin: type, args: tuple[Any, ...], data: Any, where: str) -> Any:
    _check(isinstance(data, (list, tuple)), f"a list for {origin.__name__}", data, where)
    hints = [args[0]] * len(data) if origin is list or args[-1:] == (...,) else list(args)
    if len(hints) != len(data):
        raise ConfigError(f"{where}: expected {len(hints)} entries, found {len(data)}")
    return origin(_decode(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(hints, data, strict=True)))


def _check(ok: bool, expected: Any, data: Any, where: str) -> None:
    if not ok:
        raise ConfigError(f"{where or 'configuration'}: expected {_name(expected)}, found {shown(data)}")


def shown(value: Any) -> str:
    """A value as errors show it, shortened, with its type."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _init_fields(cls: type) -> list[Field]:
    return [f for f in fields(cls) if f.init]


def _tag(cls: type) -> str:
    own = next((f.default for f in fields(cls) if f.name == "kind"), MISSING)
    return own if isinstance(own, str) else cls.__name__


def _dataclasses(hint: Any) -> Iterator[type]:
    if is_dataclass(hint):
        yield hint
    for arg in get_args(hint):
        yield from _dataclasses(arg)


def _with_subclasses(cls: type) -> Iterator[type]:
    yield cls
    for sub in cls.__subclasses__():
        if "__dataclass_fields__" in vars(sub):
            yield from _with_subclasses(sub)

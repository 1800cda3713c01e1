"""Pickles of plain data, read without running anything: CALVIN's annotations are one.

A pickle is a program for a small machine. Python's own unpickler runs it and calls what it names, with arguments of its
choosing. An allow-list of functions does not help, because NumPy's, called wrongly, follow pointers out of the file.
Here the instructions are read one by one and nothing is called. Only texts, numbers, lists, tuples and dictionaries are
built, and arrays of numbers or texts whose bytes are as many as their shape says.
"""

from __future__ import annotations

import math
import pickletools
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from wamkit.data.importers.base import SourceError

MOST = 2_000_000
"""Instructions of a pickle that is still read; CALVIN's largest has under a million."""

_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NAMES = {
    "numpy ndarray": "",
    "numpy dtype": "dtype",
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy.core.multiarray scalar": "scalar",
    "numpy._core.multiarray scalar": "scalar",
    "_codecs encode": "encode",
    "__builtin__ bytes": "bytes",
}
"""The meaning of each (module, name) that a pickle may refer to; "" for one that stands in arguments only."""
_DTYPE = re.compile(r"[biufcSU][1-9][0-9]{0,5}")  # bool, integers, floats, complex, bytes, text


def plain_object(data: bytes) -> Any:
    """The object in a pickle: None, numbers, texts, bytes, lists, tuples, dictionaries, and `Array` in place of arrays.

    Raises SourceError, without naming the file, for a damaged pickle and for one that refers to anything else.
    """
    machine, at = _Machine(), 0
    try:
        for count, (instruction, argument, place) in enumerate(pickletools.genops(data)):
            at = place or 0
            if count == MOST:
                raise SourceError(f"the pickle has more than {MOST} instructions; refused")
            if instruction.name == "STOP":
                (result,) = machine.stack
                return result
            machine.step(instruction.name, argument)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise SourceError(f"the pickle is damaged at byte {at} ({error}); fetch the file again") from error
    raise SourceError("the pickle ends too early; fetch the file again")


class Array:
    """An array in a pickle. Iterating yields rows as (nested) lists of Python values."""

    def __init__(self) -> None:
        self._content: np.ndarray | list[Any] = []

    def fill(self, state: Any) -> None:
        """Takes the state that NumPy pickles: (version, shape, dtype, order, content)."""
        _, shape, dtype, fortran, content = state
        sized = type(shape) is tuple and len(shape) <= 8 and all(type(n) is int and 0 <= n < 2**40 for n in shape)
        if not sized or not isinstance(dtype, _DType):
            raise ValueError("an array without shape or type")
        if dtype.numpy is None:
            if len(shape) > 1 or not isinstance(content, list) or len(content) != math.prod(shape):
                raise ValueError("objects that do not fill their array")
            self._content = content
        elif not isinstance(content, bytes) or len(content) != math.prod(shape) * dtype.numpy.itemsize:
            raise ValueError(f"content that does not fill its array {shape}")
        elif content:
            whole = np.frombuffer(content, dtype.numpy)
            if dtype.numpy.kind == "U" and np.frombuffer(content, f"{dtype.numpy.byteorder}u4").max() > sys.maxunicode:
                raise ValueError("characters that there are not")  # NumPy would make texts of them
            self._content = whole.reshape(shape, order="F" if fortran else "C")

    def __iter__(self) -> Iterator[Any]:
        return iter(self._content if isinstance(self._content, list) else self._content.tolist())

    def item(self) -> Any:
        """The only element."""
        (value,) = self
        return value


class _DType:
    """A type of numbers or texts; `numpy` is None for one of objects."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or code not in ("O", "O8") and not _DTYPE.fullmatch(code):
            raise SourceError("it holds an array of neither numbers nor texts; refused")
        self.numpy = None if code[0] == "O" else np.dtype(code)

    def fill(self, state: Any) -> None:
        """Takes the state that NumPy pickles: (version, byte order, None, None, None, ...)."""
        if state[1] not in ("<", ">", "|", "=") or state[2:5] != (None, None, None):
            raise SourceError("it holds an array of several fields instead of numbers or texts; refused")
        if self.numpy is not None:
            self.numpy = self.numpy.newbyteorder(state[1])


class _Name:
    """A function or class that the pickle refers to."""

    def __init__(self, name: str) -> None:
        if name not in _NAMES:
            raise SourceError(f"it tries to run {name.replace(' ', '.')[:80]}; refused: plain data runs nothing")
        self.name, self.kind = name.replace(" ", "."), _NAMES[name]


class _Machine:
    """The stack and the memory of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []  # stacks set aside at marks
        self._memory: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Follows one instruction."""
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MEMOIZE":
            self._memory[len(self._memory)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memory[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memory[argument])
        elif name == "MARK":
            self._below.append(stack)
            self.stack = []
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(self._pop(_TUPLES[name]))]
        elif name == "TUPLE":
            self._since_mark()
            self.stack.append(tuple(stack))
        elif name in ("APPEND", "APPENDS"):
            values = self._pop(1, remove=True) if name == "APPEND" else self._since_mark()
            self._last(list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = self._pop(2, remove=True) if name == "SETITEM" else self._since_mark()
            if any(type(key) not in (str, int) for key in values[::2]):
                raise ValueError("a key that is neither text nor number")
            self._last(dict).update(zip(values[::2], values[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_Name(argument))
        elif name == "STACK_GLOBAL":
            stack.append(_Name(" ".join(self._pop(2, remove=True))))
        elif name == "REDUCE":
            function, arguments = self._pop(2, remove=True)
            stack.append(_stand_in(function, arguments))
        elif name == "BUILD":
            (state,) = self._pop(1, remove=True)
            self._last((Array, _DType)).fill(state)
        elif name not in ("PROTO", "FRAME"):
            raise SourceError(f"it has the instruction {name}, which plain data does not need; refused")

    def _pop(self, count: int, remove: bool = False) -> list[Any]:
        """The upper `count` values of the stack."""
        if len(self.stack) < count:
            raise ValueError("an empty stack")
        values = self.stack[-count:]
        if remove:
            del self.stack[-count:]
        return values

    def _since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self._below.pop()
        return values

    def _last(self, kind: Any) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"values for a {type(self.stack[-1]).__name__}")
        return self.stack[-1]


def _stand_in(function: Any, arguments: Any) -> Any:
    """The value that stands for `function(*arguments)`, which is not called."""
    kind = function.kind if isinstance(function, _Name) else ""
    if kind == "array":
        return Array()
    if kind == "dtype":
        return _DType(*arguments)
    if kind == "bytes" and arguments == ():  # so protocol 2 stores empty bytes, and `encode` others
        return b""
    if kind == "encode":
        text, encoding = arguments
        if encoding in ("latin1", "latin-1"):
            return text.encode("latin-1")
    if kind == "scalar":
        dtype, content = arguments
        if dtype.numpy is not None and len(content) == dtype.numpy.itemsize:
            array = Array()
            array.fill((1, (1,), dtype, False, content))
            return array.item()
    raise SourceError(f"it tries to run {getattr(function, 'name', 'a value')}; refused: plain data runs nothing")

"""The one parser of the command line. A command is a frozen dataclass of options and a function `run(args)`:

    @dataclass(frozen=True)
    class Greet(Options):
        '''Greet somebody.'''

        name: str
        '''Name of the person.'''
        _: KW_ONLY
        loud: bool = False
        '''Greet in capital letters.'''

    @COMMANDS.register("greet")
    def run(args: Greet) -> None: ...

The docstring of the class is the help of the command, the docstrings of its fields that of the options. A field without
a default is given by its position, unless it is keyword-only. A name that Python reserves has an underscore behind it,
which the option lacks. Modules of commands import what is slow inside functions,
so that `wamkit --help` and a wrong command answer at once, and Ctrl-C ends a command cleanly while libraries load.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from wamkit.config import Checked
from wamkit.errors import nearest, shortened
from wamkit.files import StoreError, parse_json
from wamkit.registry import Registry

COMMANDS: Registry[Callable[[Any], None]] = Registry("command", "wamkit.commands", package="wamkit.cli")
"""Name of a command -> its `run` function."""


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """Base of the options of a command. Numbers declare their bounds on their types, as in `wamkit.config`."""

    @classmethod
    def resolve(cls, argv: Sequence[str]) -> type[Options]:
        """The class to parse `argv` with. Overridden where a first choice decides which options follow."""
        return cls


O = TypeVar("O", bound=Options)  # noqa: E741


def options_of(run: Callable[[Any], None]) -> type[Options]:
    """The options of a command: the annotated type of its function's argument."""
    (options,) = (hint for name, hint in typing.get_type_hints(run).items() if name != "return")
    return options


def first_line(documented: Any) -> str:
    """The first line of a docstring."""
    return (documented.__doc__ or "").strip().splitlines()[0]


def parse(options: type[O], command: str, argv: Sequence[str]) -> O:
    """The options of `command` from the command line.

    Exits with 0 after printing help, and with 2 after printing one line for wrong options.
    """
    return parse_resolved(options.resolve(argv), command, argv)


def parse_resolved(resolved: type[O], command: str, argv: Sequence[str]) -> O:
    """The same for options that `Options.resolve` gave, or another choice of defaults for them."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_key_values)
    registry.primitive_rule(_path)
    markers = (tyro.conf.EnumChoicesFromValues, tyro.conf.PositionalMetavarFromFieldName)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            given = tyro.cli(
                _with_marks(resolved), prog=f"wamkit {command}", args=argv, registry=registry, config=markers
            )
    except SystemExit as stop:
        if stop.code:
            message = _one_line(errors.getvalue(), resolved.__name__)
            print(f"wamkit {command}: {shortened(message)}; see wamkit {command} --help", file=sys.stderr)
        raise
    return resolved(**{f.name: getattr(given, f.name) for f in dataclasses.fields(resolved)})


def peek(argv: Sequence[str], option: str, default: str) -> str:
    """The value of one option, read before the others are known."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(option, dest="value", nargs="?", const=default, default=default)
    return parser.parse_known_args(argv)[0].value


def extend(options: type[O], groups: Mapping[str, Any], doc: str | None = None, flat: bool = False) -> type[O]:
    """The options with further groups, name -> dataclass instance with the defaults. doc: another help text.

    flat: whether options of the groups are named without their group.
    """

    def kind(group: Any) -> Any:
        if not flat:
            return type(group)
        from tyro.conf import OmitArgPrefixes

        return OmitArgPrefixes[type(group)]

    fields = [(name, kind(group), dataclasses.field(default=group)) for name, group in groups.items()]
    named = {"__doc__": doc or options.__doc__}
    return dataclasses.make_dataclass(
        options.__name__, fields, bases=(options,), namespace=named, frozen=True, kw_only=True
    )


def join(options: type[O], config: type[Any]) -> type[O]:
    """The options with the fields of a configuration of the library, for a command that takes all of them."""
    named = {"__doc__": options.__doc__}
    return dataclasses.make_dataclass(options.__name__, [], bases=(options, config), namespace=named, frozen=True)


def _with_marks(options: type[O]) -> type[O]:
    """The options with tyro's marks on the fields that are given by their position, and on those with another name."""
    from tyro.conf import Positional, arg

    hints = typing.get_type_hints(options, include_extras=True)
    required = [
        f.name
        for f in dataclasses.fields(options)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and not f.kw_only
    ]
    fields: list[Any] = [(name, Positional[hints[name]]) for name in required]
    fields += [
        (
            f.name,
            typing.Annotated[hints[f.name], arg(name=f.name.rstrip("_"))],
            dataclasses.field(kw_only=True, default=f.default),
        )
        for f in dataclasses.fields(options)
        if f.name.endswith("_")
    ]
    named = {"__doc__": options.__doc__}
    return dataclasses.make_dataclass(options.__name__, fields, bases=(options,), namespace=named, frozen=True)


def _one_line(box: str, name: str) -> str:
    """The message of an error that tyro has drawn as a box, with the nearest option. name: class of the options."""
    _title, *lines = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines() or [""]
    rows = [line.strip("│╰─╯ ") for line in lines]
    paragraphs = re.split(r"\n(?:-*\n)+", "\n".join(rows).strip("-\n"))
    message, *others = (" ".join(paragraph.split("\n")) for paragraph in paragraphs)
    near = re.search(r"(?:Perhaps you meant|Arguments similar to \S+): (--[\w.-]+)", " ".join(others))
    message = message.removeprefix(f"Error parsing {name}: ").rstrip(".")
    if choice := re.match(r"invalid choice '(.*)' for argument '.*'\. Expected one of \((.*)\)", message):
        return message + nearest(choice[1], re.findall(r"'([^']*)'", choice[2]))
    return message + (f" (did you mean {near[1]}?)" if near else "")


def _key_values(info: Any) -> Any:
    """A rule for tyro. It reads a mapping as KEY=VALUE, with JSON for a value or, where it is none, plain text."""
    from tyro.constructors import PrimitiveConstructorSpec

    def read(words: list[str]) -> dict[str, Any]:
        pairs = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not key or not equals:
                raise ValueError(f"{word!r} is not KEY=VALUE")
            try:
                pairs[key] = parse_json(value, word)
            except StoreError:  # plain text
                pairs[key] = value
        return pairs

    if typing.get_origin(info.type) is not Mapping:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[KEY=VALUE ...]",
        instance_from_str=read,
        is_instance=lambda x: isinstance(x, Mapping),
        str_from_instance=lambda x: [f"{k}={json.dumps(v)}" for k, v in x.items()],
    )


def _path(info: Any) -> Any:
    """A rule for tyro. It refuses an empty path, which pathlib takes for the present folder."""
    from tyro.constructors import PrimitiveConstructorSpec

    def read(words: list[str]) -> Path:
        if not words[0]:
            raise ValueError("an empty text names no file or folder")
        return Path(words[0])

    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=read,
        is_instance=lambda x: isinstance(x, Path),
        str_from_instance=lambda x: [str(x)],
    )

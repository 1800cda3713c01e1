"""Cases about options: random ones for every command, well-typed and not, and absurd ones.

The options are those of the commands' own dataclasses, so new ones are attacked without a change here.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import re
import types
import typing
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from benchmarks.attack.fixtures import COLLECT, COMPARISON, EVAL, SOURCES, TINY, copy
from benchmarks.attack.sandbox import Case

BASE: dict[str, tuple[tuple[str, ...], tuple[str, ...], int]] = {
    "browse": (("data", "--no-open-browser", "--port", "0"), ("data",), 1),
    "check-env": (("reacher",), (), 1),
    "collect": ((*COLLECT[1:-1], "new"), ("run",), 8),
    "compare": ((COMPARISON, "--data", "data", "--out", "docs", "--work", "work"), ("data", "docs"), 2),
    "diagnose": (("run", "--stride", "50"), ("run",), 2),
    "eval": (("run", *EVAL), ("run", "other", "mixed"), 6),
    "import": ((), (), 8),
    "list": ((), (), 1),
    "mix": (("data", "--size", "32", "32", "--out", "new.json"), ("data", "imported"), 3),
    "rank": (("run", "other", "third", "fourth", "fifth"), ("run", "other", "third", "fourth", "fifth"), 3),
    "report": (("run", "other", "--out", "page.html"), ("run", "other"), 1),
    "robustness": (("geom", "--episodes", "1", "--processes", "1", "--factors", "lighting"), ("geom",), 3),
    "sample": (("run", "--query", "policy", "--stride", "50"), ("run",), 3),
    "show": (("metaworld-bc",), ("run",), 1),
    "train": (("--data", "data", "--out", "new", *TINY), ("data",), 24),
    "validate": (("data",), ("data",), 1),
}
"""Command -> (a command line that works, the fixtures that it reads, its weight among the cases)."""

INTS = ("0", "1", "-1", "2", "3", "5", "16", "1000000000", "2147483648", "9223372036854775808", "-5", "1" + "0" * 30)
FLOATS = ("0", "0.5", "1", "-1", "nan", "inf", "-inf", "1e308", "1e-320", "1e400", "-0.0", "2", "1e9")
TEXTS = ("", "x", "reach", "reacher", "metaworld", "joint", "a\nb", "é", "x" * 5000, "-", "policy", "data", "None")
ILL = ("", "x", "1.5", "1e3", "nan", "0x10", "None", "True", "[1]", "{}", "--", "é", "1_000", " 1")
PATHS = ("data", "run", "missing", "missing/deep", "mix.json", ".", "data/meta/info.json", "", "x" * 300, "a\nb")
HUGE = ("65536", "1000000000", "2147483647", "9223372036854775807", "1" + "0" * 30, "nan", "inf", "1e308", "-1")

ABSURD = """
train --cache-gb nan
train --cache-gb -inf
train --feature-cache-gb nan
train --model.width 65536
train --train.batch-size 1000000000
train --model.depth 20000
train --model.depth 100000
train --model.heads 1000000
train --model.width 1000000 --model.heads 1000000
train --train.threads 1000000
train --model.text.buckets 100000000000
train --window.chunk 1000000000
train --window.frame-offsets 1000000000
train --model.codec-channels 1000000
train --model.codec-lr 1e300
train --train.lr 1e308
train --train.weight-decay 1e308
train --train.shift 1000000000
train --train.seed -1
train --train.device cuda:99
train --train.device meta
train --model.denoising-steps 1000000000
train --train.clip nan
train --train.ema nan
train --episodes.labelled 1000000000
collect --options height=1000000000
collect --options height=16384 width=16384
collect --options supersample=1000
collect --options height=nan
collect --options height=[1,2]
collect --options height=-64
collect --options x=1
collect --episodes 1000000000
collect --noise nan
collect --noise 1e308
collect --perturbed-experts 1 --perturbed-offset 1e308
collect --max-attempts 1000000000
collect --policy-episodes 1000000000 --policies run
eval --episodes 1000000000
eval --steps 1000000000
eval --replan-every 1000000000
eval --held-out 1000000000
eval --held-out -1
sample --episode 1000000000 --query inverse
sample --stride 0
sample --seed 1000000000000000000000000000000
diagnose --episode 1000000000
robustness --severities nan
robustness --severities 1e9
robustness --factors nothing
rank --candidates 1000000000
rank --spread nan
rank --spread 1e308
rank --classifier-steps 1000000000
rank --max-steps 1000000000
rank --recordings 1000000000
mix --size 1000000000 1000000000
mix --size 65536 65536
mix --size 0 0
mix --views
compare --episodes 1000000000
compare --episodes -1
compare --held-out -1
compare --seeds -1
browse --port 99999
browse --port -1
import --limit -1
""".strip().splitlines()
"""Well-typed and out of all proportion: to be refused."""

LARGE: tuple[tuple[str, ...], ...] = (
    ("train", "--window.frame-offsets", *["8"] * 2000),
    ("train", "--window.past-offsets", *[str(-i) for i in range(1, 500)]),
    ("train", "--train.warmup", "1000000000"),
    ("train", "--train.save-every", "1000000000"),
    ("collect", "--options", "height=" + "[" * 100_000),
    ("collect", "--options", "height=1" + "0" * 400),
    ("collect", "--processes", "1000000"),
    ("collect", "--steps-after-success", "1000000000"),
    ("collect", "--seed", "1" + "0" * 30),
    ("eval", "--processes", "1000000"),
    ("eval", "--query", "x" * 5000),
    ("sample", "--stride", "1000000000"),
    ("browse", "--host", "x" * 300),
    ("import", "--limit", "1000000000"),
)
"""Large or long: work or a refusal."""


def absurd_cases(made: Path, seed: int, count: int = 100) -> Iterator[Case]:
    """The cases of `ABSURD` and `LARGE`, and random numbers replaced by extreme ones."""
    lines = [*((w.split(), "refused") for w in ABSURD), *((list(w), "any") for w in LARGE)][:count]
    for i, ((command, *options), expect) in enumerate(lines):
        yield _case(made, f"absurd/{i:03d}-{command}", seed, command, options, expect)
    for i in range(len(lines), count):
        name = f"absurd/{i:03d}-random"
        rng = _rng(seed, name)
        command = str(rng.choice(["train", "train", "collect", "eval", "sample", "rank", "compare", "robustness"]))
        numbers = {k: t for k, t in _options(command, _argv(command, rng)).items() if _number(t)}
        flag = str(rng.choice(sorted(numbers)))
        yield _case(made, name, seed, command, [flag, str(rng.choice(HUGE))])


def option_cases(made: Path, seed: int, count: int = 500) -> Iterator[Case]:
    """One to three random options of every command, in proportion to the commands' weights."""
    weights = {command: weight for command, (_, _, weight) in BASE.items()}
    for command, weight in weights.items():
        for i in range(max(5, round(count * weight / sum(weights.values())))):
            name = f"options/{command}/{i:03d}"
            rng = _rng(seed, name)
            argv = _argv(command, rng)
            known = _options(command, argv)
            words: list[str] = []
            for flag in rng.choice(sorted(known), size=min(len(known), int(rng.integers(1, 4))), replace=False):
                words += _words(str(flag), known[str(flag)], rng)
            yield _case(made, name, seed, command, [*argv, *words])


def _argv(command: str, rng: np.random.Generator) -> list[str]:
    """The words that decide which options a command has."""
    if command == "import":
        source = SOURCES[int(rng.integers(len(SOURCES)))]
        return [source.format, source.path, "--out", "new", *source.options]
    if command == "train" and rng.random() < 0.4:
        from wamkit.runs.recipes import RECIPES

        return ["--recipe", str(rng.choice([n for n in RECIPES.names() if n.startswith("metaworld-")]))]
    return []


def _case(made: Path, name: str, seed: int, command: str, options: list[str], expect: Any = "any") -> Case:
    words, needs, _ = BASE[command]
    if command == "import":
        if options[0].startswith("-"):
            options = ["lerobot2", "sources/lerobot2", "--out", "new", *options]
        needs = (f"sources/{options[0]}",)
    copied = copy(made, *needs)
    typed = {p for w in (*words, *options) for p in (w[:40], *re.split("[=.]", w[:80].lstrip("-"))) if p.strip()}
    known = {f.lstrip("-").rsplit(".", 1)[-1] for f in _options(command, options[:1] if command == "import" else [])}
    names = {x for p in typed | known for x in (p.strip(), p.replace("-", "_"))}

    def prepare(folder: Path, rng: np.random.Generator) -> str:
        copied(folder)
        return " ".join(repr(w)[:60] if not w.isprintable() or len(w) > 60 else w for w in options)

    return Case(
        name,
        (command, *words, *options),
        prepare,
        names=tuple(sorted(names)),
        expect=expect,
        work=expect == "any",
        gigabytes=4.0,
    )


def _options(command: str, argv: list[str]) -> dict[str, Any]:
    """Flag -> type of every option of a command; positional arguments are left alone."""
    from wamkit.cli.parse import COMMANDS, options_of

    resolved = options_of(COMMANDS.get(command)).resolve(argv)
    return dict(_flags(resolved, ""))


def _flags(cls: type, prefix: str) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        name = f"{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(kind):
            yield from _flags(kind, f"{name}.")
        elif field.kw_only or prefix or not _missing(field):
            yield f"--{name}", kind


def _missing(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _number(kind: Any) -> bool:
    kinds = get_args(kind) if get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    return int in kinds or float in kinds


def _words(flag: str, kind: Any, rng: np.random.Generator) -> list[str]:
    """The words of one option with a random value: of its type in seven cases of ten."""
    if kind is bool:
        return [flag if rng.random() < 0.5 else flag.replace("--", "--no-", 1)]
    if rng.random() < 0.05:
        return [flag]
    ill = rng.random() < 0.3
    return [flag, *_values(kind, rng, ill)]


def _values(kind: Any, rng: np.random.Generator, ill: bool) -> list[str]:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return ["None"] if rng.random() < 0.2 else _values(next(a for a in args if a is not type(None)), rng, ill)
    if origin is tuple:
        many = int(rng.integers(0, 4)) if args[-1] is ... else len(args) + (int(rng.integers(-1, 2)) if ill else 0)
        inner = args[:1] * many if args[-1] is ... else (args * 2)[:many]
        return [w for a in inner for w in _values(a, rng, ill)]
    if ill:
        return [str(rng.choice(ILL))]
    if origin in (collections.abc.Mapping, dict):
        key = str(rng.choice(["height", "width", "supersample", "task", "x", "point_grid", "", "cameras"]))
        return [f"{key}={rng.choice([*INTS, *FLOATS, *TEXTS[:6], '[]', 'null', '{}', 'true'])}"]
    if origin is Literal:
        return [str(rng.choice([str(a) for a in args]))]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [str(rng.choice([m.value for m in kind]))]
    known = {int: INTS, float: FLOATS, Path: PATHS}
    return [str(rng.choice(known.get(kind, TEXTS)))]


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])

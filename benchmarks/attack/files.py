"""Cases about files: JSON corrupted in sixteen ways, flipped bits, and damaged sources of every importer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from benchmarks.attack.damage import BINARY, JSON, Damage, flipped
from benchmarks.attack.fixtures import COLLECT, COMPARISON, EVAL, SOURCES, TINY, Source, answer, copy
from benchmarks.attack.sandbox import Case, Prepare

CommandOf = tuple[str, ...]

DATA_COMMANDS: tuple[CommandOf, ...] = (
    ("@data", "data"),
    ("validate", "data"),
    ("train", "--data", "data", "--out", "new", *TINY),
    ("mix", "data", "--size", "32", "32", "--out", "new.json"),
    COLLECT,
)
RUN_COMMANDS: tuple[CommandOf, ...] = (
    ("@run", "run"),
    ("show", "run"),
    ("train", "--data", "data", "--out", "run", *TINY, "--train.steps", "3"),
    ("eval", "run", *EVAL),
)


def json_cases(made: Path, seed: int) -> Iterator[Case]:
    """Every JSON file of a data set, a mixture, a run, its evaluation and a comparison, in every corruption."""
    data = [p for p in _files(made, "data", "*.json*")]
    for file in data:
        yield from _json(made, file, ("data",), DATA_COMMANDS)
    again = ("import", "lerobot2", "sources/lerobot2", "--out", "imported")
    needs = ("imported", "sources/lerobot2")
    yield from _json(made, "imported/import.json", needs, (("@data", "imported"), again))
    train_mix = ("train", "--data", "mix.json", "--out", "new", "--recipe", "unified-mixture", *TINY)
    yield from _json(made, "mix.json", ("mix.json", "data"), (train_mix,))
    for name in ("config.json", "metrics.jsonl", *_checkpoint_files(made, "*.json")):
        yield from _json(made, f"run/{name}", ("run", "data"), RUN_COMMANDS)
    for name in _checkpoint_files(made, "state.json", "mixed"):
        yield from _json(made, f"mixed/{name}", ("mixed",), (("@run", "mixed"),))
    reports = (("@report", "p.html", "run", "other"), ("report", "run", "other"))
    yield from _json(made, "run/eval/summary.json", ("run", "other"), reports)
    for file in _files(made, "run/eval/parts", "*.json"):
        part = Path(file).relative_to("run").as_posix()
        yield from _json(made, file, ("run",), (("@evaluation", "run", part, *EVAL),), seconds=20)
    for file in _files(made, "run/eval/held-out-6", "*.json"):
        yield from _json(made, file, ("run",), (("sample", "run", "--query", "policy", "--stride", "50"),))
    for file in _files(made, "docs", "*.json")[:1]:
        command = ("compare", COMPARISON, "--data", "data", "--out", "docs", "--work", "work", "--page")
        yield from _json(made, file, ("data", "docs"), (command,))
    for source in SOURCES:
        for file in _files(made, f"sources/{source.format}", "*.json*"):
            yield from _json(made, file, (f"sources/{source.format}",), (_import(source),), foreign=True)


def flip_cases(made: Path, seed: int, count: int = 400) -> Iterator[Case]:
    """Flipped bits over a collected and an imported data set, in proportion to size, at least one a file."""
    files = [f for d in ("data", "imported") for f in _files(made, d, "*")]
    yield from _flips(made, files, count, lambda file: ("@data+validate", Path(file).parts[0]))


def result_flip_cases(made: Path, seed: int) -> Iterator[Case]:
    """Flipped bits over an evaluation's records, pieces and summary, and over a run."""
    report = ("@report", "p.html", "run", "other")
    yield from _flips(made, ["run/eval/episodes.parquet"], 60, lambda _: report, ("run", "other"))
    yield from _flips(made, ["run/eval/summary.json"], 20, lambda _: report, ("run", "other"))
    for suffix, count in ((".json", 12), (".npz", 12)):
        for file in _files(made, "run/eval/parts", f"*{suffix}"):
            part = Path(file).relative_to("run").as_posix()
            yield from _flips(made, [file], count, lambda _, p=part: ("@evaluation", "run", p, *EVAL), ("run",), 20)
    names = ["run/config.json", *(f"run/{n}" for n in _checkpoint_files(made, "*")), "run/checkpoints/latest"]
    yield from _flips(made, names, 40, lambda _: ("@run", "run"), ("run",))


def source_cases(made: Path, seed: int, each: int = 6) -> Iterator[Case]:
    """Files of every importer's source, damaged. each: flipped bits and cuts a file."""
    for source in SOURCES:
        files = _files(made, f"sources/{source.format}", "*")
        files = [f for f in files if not f.endswith((".json", ".jsonl"))]
        few = files if len(files) <= 6 else files[:: -(-len(files) // 6)]
        for file, (kind, damage) in itertools.product(few, BINARY.items()):
            for i in range(each if kind in ("flip", "truncated", "zeros") else 1):
                name = f"sources/{source.format}/{Path(file).name}/{kind}/{i}"
                yield _case(made, name, _import(source), file, damage, (f"sources/{source.format}",))


def _import(source: Source) -> CommandOf:
    return ("import", source.format, source.path, "--out", "new", *source.options)


def _json(
    made: Path,
    file: str,
    needs: Sequence[str],
    commands: Sequence[CommandOf],
    foreign: bool = False,
    seconds: float = 5.0,
) -> Iterator[Case]:
    """Cases of one JSON file: every corruption, with every command that reads the file."""
    for (kind, damage), command in itertools.product(JSON.items(), commands):
        repeats = 3 if command == commands[0] and kind in ("type", "negative", "missing") else 1
        for i in range(repeats):
            name = f"json/{file}/{kind}/{command[0]}/{i}"
            yield _case(made, name, command, file, damage, needs, seconds)


def _flips(
    made: Path, files: Sequence[str], count: int, command, needs: Sequence[str] = (), seconds: float = 5.0
) -> Iterator[Case]:
    sizes = [(made / f).stat().st_size for f in files]
    for file, size in zip(files, sizes, strict=True):
        for i in range(max(1, round(count * size / sum(sizes)))):
            roots = needs or (Path(file).parts[0],)
            group = "results" if file.startswith("run/") else "flips"
            yield _case(made, f"{group}/{file}/{i:03d}", command(file), file, flipped, roots, seconds)


def _case(
    made: Path,
    name: str,
    command: CommandOf,
    file: str,
    damage: Damage,
    needs: Sequence[str],
    seconds: float = 5.0,
) -> Case:
    entry = command[0].startswith("@")
    return Case(
        name,
        command,
        _prepare(made, file, damage, needs),
        names=(Path(file).name, Path(file).parts[0]),
        expect="same" if entry else "any",
        answer=answer(made, command) if entry else "",
        seconds=seconds,
    )


def _prepare(made: Path, file: str, damage: Damage, needs: Sequence[str]) -> Prepare:
    copied = copy(made, *needs)

    def prepare(folder: Path, rng: np.random.Generator) -> str:
        copied(folder)
        return damage(folder / file, rng)

    return prepare


def _files(made: Path, folder: str, pattern: str) -> list[str]:
    """Names of files below `folder`, in order; caches, pages and other folders' recordings are left out."""
    found = (p for p in sorted((made / folder).rglob(pattern)) if p.is_file() and p.suffix != ".html")
    return [p.relative_to(made).as_posix() for p in found if ".cache" not in p.parts]


def _checkpoint_files(made: Path, pattern: str, run: str = "run") -> list[str]:
    names = (p.relative_to(made / run).as_posix() for p in sorted((made / run / "checkpoints").glob(f"*/{pattern}")))
    return [n for n in names if "training" not in n]

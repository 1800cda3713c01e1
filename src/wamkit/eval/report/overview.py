"""`wamkit report`: many evaluated runs side by side on one page, figure by figure, each on one scale for all runs."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from wamkit import old_names
from wamkit.config import from_dict
from wamkit.data.format.parquet import read_parquet
from wamkit.errors import nearest
from wamkit.eval.outputs import read_result, write_result
from wamkit.eval.results import AXES, made_by
from wamkit.eval.suites.closed_loop import Record
from wamkit.eval.suites.paired import PairedResult, evidence
from wamkit.files import StoreError, atomic_write, inside, read_bytes
from wamkit.runs.checkpoint import MANIFEST, has_checkpoint
from wamkit.runs.config import home
from wamkit.runs.run import Run
from wamkit.types import Interval, WamkitError
from wamkit.viz.charts import interval_svg
from wamkit.viz.html import header, page, section, table

SAME = ("env", "tasks", "options", "episodes", "replan_every", "query", "text", "seeds", "held_out")
"""Fields of the protocol that must agree for two evaluations to compare."""
RECORDED = ("data", "episodes", "stride")
"""The same for evaluations on recordings."""


SIDE_BY_SIDE = 4
"""Most runs that stand side by side, a column each; more stand below each other, a row each."""

_HASH = re.compile(r"[0-9a-f]{12,}")


@dataclass(frozen=True)
class Evaluated:
    """One run's evaluation as `wamkit eval` wrote it.

    folder: of its files.   records: its episodes; none of a model that does not act.
    """

    run: Path
    folder: Path
    summary: Mapping[str, Any]
    records: tuple[Record, ...]

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        """Key -> one row of the summary."""
        return {r.get("key") or old_names.figure(r["table"], r["name"]): r for r in self.summary["rows"]}


def evaluations_of(run: Path) -> list[Path]:
    """Folders of all evaluations of `run`, that in run/eval first."""
    top = home(run)
    found = [p.parent for pattern in ("", "*/", "*/*/") for p in sorted((top / "eval").glob(f"{pattern}summary.json"))]
    return [folder for folder in found if inside(top, folder.relative_to(top))]


def read_evaluation(run: Path, evaluation: str = "") -> Evaluated:
    """An evaluation that `wamkit eval` wrote into `run`.

    evaluation: its folder in run/eval; by default run/eval itself or, if there is none, the only one.

    Raises WamkitError where there is none, where it is damaged, and where the run has other weights by now.
    """
    found = evaluations_of(run)
    base = home(run) / "eval"
    names = ", ".join(str(folder.relative_to(base)) for folder in found)
    if not found:
        raise WamkitError(f"{run} was not evaluated: wamkit eval {run}")
    folder = base / evaluation
    if evaluation and folder not in found:
        raise WamkitError(
            f"{run} has no evaluation '{evaluation}'{nearest(evaluation, names.split(', '))}; it has {names}"
        )
    if folder not in found and len(found) > 1:
        raise WamkitError(f"{run} has several evaluations: {names}; name one: --evaluation NAME")
    return _read(run, folder if folder in found else found[0])


def evaluation_under(run: Path, protocol: Mapping[str, Any]) -> Evaluated:
    """The evaluation of `run` under this protocol, as a summary has it. Raises WamkitError as `read_evaluation`."""
    wanted = json.loads(json.dumps(protocol))
    found = (f for f in evaluations_of(run) if read_result(f / "summary.json")["protocol"] == wanted)
    if (folder := next(found, None)) is None:
        raise WamkitError(f"{run} was not evaluated under this protocol: wamkit eval {run}")
    return _read(run, folder)


def _read(run: Path, folder: Path) -> Evaluated:
    again = f"wamkit eval {run}"
    try:
        summary = read_result(folder / "summary.json")
        rows, protocol = summary["rows"], summary["protocol"]
        if not all({"table", "name", "value"} <= r.keys() for r in rows) or not set(_same(protocol)) <= protocol.keys():
            raise ValueError("it lacks its figures or its protocol")
        if str(given := summary.get("command", "")).startswith("wamkit eval ") and given.isprintable():
            again = given
        _check_weights(run, folder, str(summary.get("weights", "")), again)
        records = _records(folder / "episodes.parquet", summary.get("files", {}))
        return Evaluated(run, folder, summary, records)
    except (StoreError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WamkitError(f"the evaluation of {run} cannot be read ({error}): {again}") from error


def _records(path: Path, hashes: Mapping[str, str]) -> tuple[Record, ...]:
    """The episodes of an evaluation, compared with the hash in its summary; earlier versions wrote none there."""
    if not path.exists() and path.name not in hashes:
        return ()
    if path.name in hashes and hashlib.sha256(read_bytes(path)).hexdigest() != hashes[path.name]:
        raise StoreError(f"{path} is damaged: its SHA-256 is not the one in summary.json")
    return tuple(from_dict(Record, r) for r in read_parquet(path).to_pylist())


def _check_weights(run: Path, folder: Path, evaluated: str, again: str) -> None:
    """Raises WamkitError if the run holds other weights than those that were evaluated. One without any passes."""
    if run.is_file() or has_checkpoint(run) or (run / MANIFEST).exists():
        opened = Run.open(run)
        if not opened.is_named(evaluated):
            raise WamkitError(
                f"{folder} is of weights {evaluated[:12]}, which {run} no longer holds (now {opened.digest[:12]}, step "
                f"{opened.step}): evaluate it again: {again}"
            )


def _alike(run: Path, first: Evaluated) -> Evaluated:
    """The evaluation of `run` that compares with `first`; that in run/eval, if it does or if none does."""
    for folder in evaluations_of(run):
        try:
            alike = not _differences(first.summary["protocol"], read_result(folder / "summary.json")["protocol"])
        except (StoreError, LookupError, TypeError, ValueError):
            continue  # one that cannot be read hides none of the others
        if alike:
            return _read(run, folder)
    return read_evaluation(run)


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    if _same(a) != _same(b):
        return ["data"]
    return [key for key in _same(a) if _comparable(a, key) != _comparable(b, key)]


def _same(protocol: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields that must agree with those of another evaluation."""
    return RECORDED if "data" in protocol else SAME


def overview(runs: Sequence[Path], out: Path, evaluation: str = "") -> Path:
    """Writes a page with several evaluated runs side by side, and a JSON file beside it. Returns the page.

    runs: run folders, or exported files. The others are compared with the first one, episode by episode.
    out: file of the page.
    evaluation: folder in the first run's eval/ of the evaluation to show, see `read_evaluation`. Of the other runs it
        is the one under the same protocol.
    Prints the figures that the runs share.

    Raises WamkitError for no runs, runs named twice, runs that were not evaluated or have other weights by now, and
    evaluations that do not compare.
    """
    if not runs or len(set(runs)) != len(runs):
        raise WamkitError("name the runs to report, each once: wamkit report RUN RUN ...")
    found = [read_evaluation(runs[0], evaluation)]
    found += [_alike(run, found[0]) for run in runs[1:]]
    first = found[0].summary["protocol"]
    for other in found[1:]:
        theirs = other.summary["protocol"]
        for key in _differences(first, theirs)[:1]:
            raise WamkitError(
                f"{runs[0]} and {other.run} were evaluated differently, so their figures do not compare: {key} is "
                f"{_comparable(first, key)!r} and {_comparable(theirs, key)!r}; evaluate both alike"
            )
    pairs = [evidence((str(a.run), str(b.run)), a.records, b.records) for a, b in _pairs(found)]
    atomic_write(out, _page(found, pairs).encode())
    content = {
        "made_by": made_by(),
        "protocol": first,
        "runs": [{k: e.summary.get(k) for k in ("run", "family", "step", "weights", "made_by", "rows")} for e in found],
        "against_the_first": [
            {k: v for k, v in asdict(p).items() if k not in ("runs", "tasks", "episodes_left")} | {"run": p.runs[1]}
            for p in pairs
        ],
    }  # fmt: skip
    write_result(out.with_suffix(".json"), content)
    print(text(found, pairs))
    return out


def _comparable(protocol: Mapping[str, Any], key: str) -> Any:
    """A part of the protocol; options may be written as pairs."""
    value = protocol.get(key)
    return dict(value) if key == "options" else value


def _pairs(found: Sequence[Evaluated]) -> list[tuple[Evaluated, Evaluated]]:
    """The first run that acts, with every other one that does."""
    acting = [e for e in found if e.records]
    return [(acting[0], other) for other in acting[1:]]


def _names(found: Sequence[Evaluated]) -> list[str]:
    """The last parts of the folders that tell them apart. Of a hash the beginning, with the family before it."""
    parts = [e.run.resolve().parts for e in found]
    depth = next((d for d in range(1, max(map(len, parts)) + 1) if len({p[-d:] for p in parts}) == len(parts)), 1)
    names = ["/".join(p[-depth:]) for p in parts]
    short = [_HASH.sub(lambda m: m[0][:8], n) for n in names]
    if len(set(short)) < len(short):
        return names
    return [n if n == s else f"{e.summary['family']} {s}" for e, n, s in zip(found, names, short, strict=True)]


@dataclass(frozen=True)
class _Group:
    """A table of figures. rows: (label, row of each run, None where a run has none), one per figure."""

    axis: str
    title: str
    rows: list[tuple[str, Sequence[Mapping[str, Any] | None]]]


def _groups(found: Sequence[Evaluated]) -> list[_Group]:
    """Figures of all runs by axis and table, in the order of first appearance, axes as in a report.

    Rows of a figure are matched by key. Labels and titles are those of the first run that has it.
    """
    figures = [e.figures for e in found]
    groups: dict[str, _Group] = {}
    for key in dict.fromkeys(k for own in figures for k in own):
        rows = [own.get(key) for own in figures]
        row = next(r for r in rows if r)
        group = groups.setdefault(key.partition(".")[0], _Group(row.get("axis", ""), row["table"], []))
        group.rows.append((row["name"], rows))
    return sorted(groups.values(), key=lambda g: AXES.index(g.axis) if g.axis in AXES else -1)


def _number(row: Mapping[str, Any] | None, key: str = "value") -> float:
    value = None if row is None else row.get(key)
    return math.nan if value is None else float(value)


def _format(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.3g}" if abs(x) < 1000 else f"{x:.0f}"


def text(found: Sequence[Evaluated], pairs: Sequence[PairedResult]) -> str:
    """Text for a terminal, with the figures that more than one run has."""
    names = _names(found)
    if len(found) > SIDE_BY_SIDE or sum(map(len, names)) > 60:
        return _long_text(found, names, pairs)
    wide = [max(8, len(n)) for n in names]
    lines = [" " * 46 + "  ".join(f"{n:>{w}}" for n, w in zip(names, wide, strict=True))]
    for group in _groups(found):
        shared = [(n, rows) for n, rows in group.rows if sum(r is not None for r in rows) > 1 or len(found) == 1]
        lines += ["", group.title] if shared else []
        for name, rows in shared:
            cells = [f"{_format(_number(r)):>{w}}" for r, w in zip(rows, wide, strict=True)]
            lines.append(f"  {name:<44}" + "  ".join(cells))
    lines += [""] + [_verdict(p) for p in pairs]
    return "\n".join(lines)


def _long_text(found: Sequence[Evaluated], names: Sequence[str], pairs: Sequence[PairedResult]) -> str:
    """The same for many runs or long names: a line for each run below its figure."""
    lines, wide = [], max(map(len, names))
    for group in _groups(found):
        shared = [(n, rows) for n, rows in group.rows if sum(r is not None for r in rows) > 1]
        lines += [group.title] if shared else []
        for figure, rows in shared:
            lines.append(f"  {figure}")
            lines += [f"    {n:<{wide}}  {_format(_number(r))}" for n, r in zip(names, rows, strict=True) if r]
        lines += [""] if shared else []
    return "\n".join([*lines, *map(_verdict, _by_names(found, names, pairs))])


def _by_names(found: Sequence[Evaluated], names: Sequence[str], pairs: Sequence[PairedResult]) -> list[PairedResult]:
    """The comparisons with the short names of the runs in place of their folders."""
    short = dict(zip((str(e.run) for e in found), names, strict=True))
    return [replace(p, runs=(short[p.runs[0]], short[p.runs[1]])) for p in pairs]


def _verdict(p: PairedResult) -> str:
    low, high = (100 * x for x in (p.interval.low, p.interval.high))
    difference = f"success of {p.runs[1]} against {p.runs[0]}: {100 * p.difference:+.1f} points"
    difference += f" [{low:+.1f}, {high:+.1f}] in {p.episodes} pairs (p = {p.p_value:.2g})"
    if p.winner:
        return f"{difference}: decided, {p.runs[p.winner == 'second']} is better"
    return f"{difference}: not decided" + (f"; likely after {p.episodes_left} more pairs" if p.episodes_left else "")


def _page(found: Sequence[Evaluated], pairs: Sequence[PairedResult]) -> str:
    names = _names(found)
    parts = []
    for axis, groups in groupby(_groups(found), lambda g: g.axis):
        parts.append(f'<h2 class="axis">{escape(axis)}</h2>' if axis else "")
        for group in groups:
            if len(found) > SIDE_BY_SIDE:
                # A heading, since phones do not show the head of a table.
                many = ((name, table([], _rows_of_runs(names, rows))) for name, rows in group.rows)
                tables = [f"<div><h3>{escape(name)}</h3>{rows}</div>" for name, rows in many]
            else:
                tables = [table(["Figure", *names], [_row(name, rows) for name, rows in group.rows])]
            parts.append(section(group.title, "", tables))
    how = "From the same reset states; may be looked at after any number of episodes (an e-process)."
    said = [_verdict(p) for p in _by_names(found, names, pairs)]
    parts.append(section("Against the first run", how, [f"<p>{escape(words)}</p>" for words in said]))
    facts = "".join(f"<dt>{escape(n)}</dt><dd>{escape(_origin(e))}</dd>" for n, e in zip(names, found, strict=True))
    protocol = escape(json.dumps(found[0].summary["protocol"], indent=2))
    details = f"<details><summary>Protocol</summary><pre>{protocol}</pre></details>"
    parts.append(section("How it was made", "The same protocol for all.", [f'<dl class="facts">{facts}</dl>', details]))
    how = (
        "Bars are 95 % intervals; a figure has one scale for all runs. There is no overall score: read the axes apart."
    )
    title = ", ".join(names) if len(found) <= SIDE_BY_SIDE else f"{len(found)} runs"
    return page(f"{len(found)} runs", header(title, how) + "".join(parts))


def _origin(e: Evaluated) -> str:
    """Folder, family, step and weights of a run, and the version of wamkit that evaluated it."""
    maker = e.summary.get("made_by", {})
    version = maker.get("commit") or maker.get("wamkit")
    weights = str(e.summary["weights"])[:12]
    return f"{e.run}: {e.summary['family']}, step {e.summary['step']}, weights {weights}, wamkit {version}"


def _end(x: float, unbounded: str) -> str:
    return _format(x) if math.isfinite(x) else unbounded


def _row(name: str, rows: Sequence[Mapping[str, Any] | None]) -> str:
    """A figure as one row of a table, a cell for each run."""
    return f'<tr><td class="what">{escape(name)}</td>{"".join(_cells(rows))}</tr>'


def _rows_of_runs(names: Sequence[str], rows: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """A figure as rows of a table, one for each run that has it."""
    cells = zip(names, rows, _cells(rows), strict=True)
    return [f'<tr><td class="what">{escape(n)}</td>{cell}</tr>' for n, row, cell in cells if row is not None]


def _cells(rows: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """A cell for each run, the bars on one scale."""
    ends = [x for r in rows for x in (_number(r), _number(r, "low"), _number(r, "high")) if math.isfinite(x)]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    reach = (high - low) or 1.0
    cells = []
    for r in rows:
        value, a, b = (_number(r, k) for k in ("value", "low", "high"))
        if not math.isfinite(value):
            cells.append("<td></td>")
            continue
        wide = math.isfinite(a) or math.isfinite(b)  # one open end: as far as the scale goes
        span = f"<small>{_end(a, '-∞')} to {_end(b, '∞')}</small>" if wide and a != b else ""
        a, b = (x if math.isfinite(x) else end if wide else value for x, end in ((a, low), (b, high)))
        mark = interval_svg(Interval(*((x - low) / reach for x in (value, a, b))))
        unit = escape(r["unit"]) if r else ""
        cells.append(f'<td class="num value">{_format(value)} {unit}{mark}{span}</td>')
    return cells

"""The page of a comparison: Markdown, which code forges show, with its charts as SVG files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from wamkit.config import ConfigError
from wamkit.eval.metrics.intervals import bootstrap_ratio, mean_rate, sign_flip
from wamkit.eval.protocols import named_protocol
from wamkit.eval.suites.latency import Load, load_note
from wamkit.experiments.comparisons import Comparison, Published
from wamkit.files import atomic_write, make_folder
from wamkit.types import Interval
from wamkit.viz.charts import panels_file, rates_file

Groups = Sequence[tuple[str, Sequence[str]]]
"""Names and tasks of groups of tasks."""

_COLUMNS = {
    "parameters": ("trunk", "all"),
    "training": ("cpu_s",),
    "curve": ("step", "held_out_action_error"),
    "episodes": ("first_seed", "outcomes", "steps"),
    "latency": ("total", "encode", "prefill", "step", "steps", "decode"),
}
"""Keys of what a `Result` holds."""


@dataclass(frozen=True)
class Result:
    """Result of one finished job.

    key: digest of data and protocol.
    configuration: that of the run.
    parameters: number in the "trunk" and in "all".
    samples: rows seen, by training stage.
    training: "cpu_s" and "wall_s", in seconds.
    episodes: task -> "first_seed", "outcomes" (a character a reset state, "1" is success), "steps", and "ends" (the
        course of each episode, see `eval.suites.closed_loop.outcome`; absent in results of earlier versions).
    figures: key (`eval.results.Table.figure`) -> (value, low, high), those of closed loop left out.
    latency: query -> the fields of `Latency`, in ms.
    curve: columns "step" and "held_out_action_error".
    made_by: version, commit and machine.
    weights: digest of the weights (`Run.digest`); "" in results of earlier versions.
    load: of the machine while latency was taken; None in results of earlier versions.
    """

    key: str
    recipe: str
    seed: int
    configuration: Mapping[str, Any]
    leaf: str
    queries: tuple[str, ...]
    parameters: Mapping[str, int]
    samples: Mapping[str, int]
    training: Mapping[str, float]
    episodes: Mapping[str, Mapping[str, Any]]
    figures: Mapping[str, tuple[float | None, float | None, float | None]]
    latency: Mapping[str, Mapping[str, float]]
    curve: Mapping[str, tuple[float, ...]]
    made_by: Mapping[str, str]
    weights: str = ""
    load: Load | None = None

    def __post_init__(self) -> None:
        rows = [("parameters", self.parameters), ("training", self.training), ("curve", self.curve)]
        rows += [(f"episodes.{task}", row) for task, row in self.episodes.items()]
        rows += [(f"latency.{query}", row) for query, row in self.latency.items()]
        for name, row in rows:
            if missing := [k for k in _COLUMNS[name.split(".")[0]] if k not in row]:
                raise ConfigError(f"{name}: {missing[0]} is missing")

    def successes(self, *tasks: str) -> Bool[np.ndarray, " episodes"]:
        """Success of each episode of `tasks`, or of all tasks, one after the other."""
        outcomes = "".join(e["outcomes"] for t, e in self.episodes.items() if not tasks or t in tasks)
        return np.array([c == "1" for c in outcomes], bool)


def write_page(
    comparison: Comparison, rows: Mapping[str, Sequence[Result]], planned: int, command: str, path: Path
) -> Path:
    """Writes the page, and its charts into the folder of its name. Returns `path`.

    rows: name -> results, one a seed, at least one.   planned: number of jobs.   command: that makes the page.
    """
    results = [r for own in rows.values() for r in own]
    groups = named_protocol(comparison.protocol).groups if comparison.protocol else ()
    media = path.with_suffix("")
    make_folder(media)
    played = {name: own for name, own in rows.items() if own[0].episodes}
    parts = [
        f"# {comparison.title}",
        comparison.question,
        f"{len(results)} of {planned} jobs are finished. Made by `{command}`, which continues "
        "from the JSON files in [jobs/](jobs/).",
    ]
    if played:
        rates = {name: (_pooled(own), [float(r.successes().mean()) for r in own]) for name, own in played.items()}
        label = "Success of every row, with 95 % intervals; circles are training seeds"
        atomic_write(media / "success.svg", rates_file(rates, label).encode())
        parts += [
            f"![success]({media.name}/success.svg)",
            "## Success",
            _success(played, groups),
            *_paired(comparison, played),
        ]
        if comparison.published:
            parts += ["## Published", _published(comparison.published, groups)]
        if groups:
            parts += ["## Every task", _tasks(played, groups)]
    if watched := {name: own for name, own in played.items() if own[0].curve["step"]}:
        error = "held_out_action_error"
        curves = {n: [(r.curve["step"], r.curve[error]) for r in own if r.curve["step"]] for n, own in watched.items()}
        label = "Held-out action error during training, a panel a row"
        atomic_write(media / "curves.svg", panels_file(curves, label).encode())
        parts += [
            f"![learning curves]({media.name}/curves.svg)",
            "Action error of the policy on validation demonstrations during training, one line a seed. Grey, in "
            "every panel: the first row.",
        ]
    parts += ["## Imagination", _imagined(rows), "## Cost", _cost(rows), _latency(rows)]
    parts += ["## Provenance", _made(results), "\n".join(filter(None, [CAVEATS, comparison.caveat]))]
    atomic_write(path, ("\n\n".join(p for p in parts if p) + "\n").encode())
    return path


CAVEATS = """Intervals are of the measurement of these trained models: reset states vary, with the outcomes of all
training seeds that started from them. Two or three training seeds tell little about the spread between seeds, so read
the figure of each seed."""
"""Text at the end of every page."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _pooled(own: Sequence[Result], *tasks: str) -> Interval:
    outcomes = np.concatenate([r.successes(*tasks) for r in own])
    state = np.concatenate([np.arange(len(r.successes(*tasks))) for r in own])
    return bootstrap_ratio(outcomes.astype(float), np.ones(len(outcomes)), state, seed=0, bounds=(0.0, 1.0))


def _success(rows: Mapping[str, Sequence[Result]], groups: Groups) -> str:
    """Success of every row: of all tasks, and of each one, or of groups of them and as the mean over groups."""
    tasks = list(next(iter(rows.values()))[0].episodes)
    head = ["", "success", "95 %"]
    head += ["mean over groups", "95 %", *dict(groups)] if groups else [t.removesuffix("-v3") for t in tasks]
    body = []
    for name, own in rows.items():
        rates = [_pooled(own)]
        if groups:
            parts = [_pooled(own, *group) for _, group in groups]
            rates.append(mean_rate(parts))
        else:
            parts = [_pooled(own, t) for t in tasks]
        means = [cell for r in rates for cell in (f"**{r.value:.1%}**", f"{r.low:.0%} to {r.high:.0%}")]
        seeds = ", ".join(f"{r.successes().sum()}" for r in own)
        cells = [f"{p.value:.0%}" for p in parts]
        body.append([name, *means, *cells, f"{seeds} of {len(own[0].successes())}", own[0].leaf])
    return table([*head, "each seed", "leaf"], body)


def _published(published: Sequence[Published], groups: Groups) -> str:
    how = (
        "Rows of papers, in percent, as a public leaderboard has them, not checked at each source; what differs from "
        "the protocol here stands beside them."
    )
    body = [
        [p.name, *(f"{p.mean:.1f}" if p.of == of else "" for of in ("tasks", "groups"))]
        + ["" if s is None else f"{s:.1f}" for s in p.success]
        + ["; ".join(filter(None, [p.source, p.note]))]
        for p in published
    ]
    return how + "\n\n" + table(["", "mean over tasks", "mean over groups", *dict(groups), "source"], body)


def _tasks(rows: Mapping[str, Sequence[Result]], groups: Groups) -> str:
    """Success of every row in every task, and the ends of the first row's failures."""
    first, body = next(iter(rows.values())), []
    for group, tasks in groups:
        for task in tasks:
            ends = [e for r in first for e in r.episodes[task].get("ends", ()) if e not in ("", "solved")]
            told = ", ".join(f"{ends.count(e)} {e}" for e in sorted(set(ends), key=lambda e: (-ends.count(e), e)))
            cells = [f"{_pooled(own, task).value:.0%}" for own in rows.values()]
            body.append([task.removesuffix("-v3"), group, *cells, told])
    return table(["task", "group", *rows, f"failures of {next(iter(rows))}"], body)


def _paired(comparison: Comparison, rows: Mapping[str, Sequence[Result]]) -> list[str]:
    """The table of differences on the same reset states, with its explanation; nothing if no pair has results."""
    pairs = {e.name: e.against or comparison.reference for e in comparison.entries if e.name in rows}
    body = [
        [line[0], other, *line[1:]]
        for name, other in pairs.items()
        if name != other and other in rows and (line := _difference(rows[name], rows[other], name))
    ]
    if not body:
        return []
    text = (
        "Differences in percentage points, on the training seeds that both rows have and the same reset states. In the "
        "interval, and in the exact p, reset states vary. Won and lost: episodes in which only one of the two succeeds."
    )
    return [text, table(["", "against", "points", "95 %", "won", "lost", "p", "seeds"], body)]


def _difference(own: Sequence[Result], other: Sequence[Result], name: str) -> list[str] | None:
    a, b = ({r.seed: r.successes() for r in rs} for rs in (own, other))
    seeds = sorted(set(a) & set(b))
    if not seeds or len({len(x[s]) for x in (a, b) for s in seeds}) > 1:
        return None
    first, second = (np.concatenate([x[s] for s in seeds]) for x in (a, b))
    state, more = np.tile(np.arange(len(a[seeds[0]])), len(seeds)), first.astype(int) - second
    gap = bootstrap_ratio(more.astype(float), np.ones(len(first)), state, seed=0, bounds=(-1.0, 1.0))
    p_value = sign_flip(np.bincount(state, more).astype(int))
    interval = f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
    counts = [str((more > 0).sum()), str((more < 0).sum()), f"{p_value:.2g}"]
    return [name, f"{100 * gap.value:+.1f}", interval, *counts, str(len(seeds))]


def _mean(own: Sequence[Result], figure: str, fmt: str) -> str:
    values = [r.figures[figure][0] for r in own if figure in r.figures and r.figures[figure][0] is not None]
    return format(sum(values) / len(values), fmt) if values else ""


def _imagined(rows: Mapping[str, Sequence[Result]]) -> str:
    body = []
    for name, own in rows.items():
        by = next((q for q in ("joint", "video", "forward") if q in own[0].queries), None)
        near, far = _offsets(own[0])
        cells = [_mean(own, f"open_loop.{what}.{by}.{o}", fmt) for what, fmt in IMAGINED for o in (near, far)]
        ratios = [_mean(own, key, ".2f") for key in (*RATIOS, f"open_loop.point_error.{far}")]
        body.append([name, by if any(cells) else "", *cells, *ratios, ", ".join(own[0].queries)])
    near, far = _offsets(next(iter(rows.values()))[0])
    head = [f"{what} +{o}" for what in ("skill", "moving, dB", "sharpness") for o in (near, far)]
    how = (
        "Means over seeds, on validation demonstrations. Skill is 1 for a perfect image and 0 for a copy of the "
        "present one. True / shuffled: error of forward dynamics with the executed actions over that with others. "
        "Inverse / policy: error of actions inferred from the future over that of the policy's actions. Both are "
        "below 1 where image and action agree. Points / still: error of imagined scene points over that of no "
        "motion."
    )
    return (
        how
        + "\n\n"
        + table(["", "query", *head, "true / shuffled", "inverse / policy", "points / still", "queries"], body)
    )


IMAGINED = (("skill", ".3f"), ("moving_gain", ".1f"), ("sharpness", ".2f"))
RATIOS = ("coupling.true_over_shuffled", "coupling.inverse_over_policy")


def _offsets(result: Result) -> tuple[int, int]:
    offsets = result.configuration["window"]["frame_offsets"]
    return offsets[0], offsets[-1]


def _cost(rows: Mapping[str, Sequence[Result]]) -> str:
    body = []
    for name, own in rows.items():
        r = own[0]
        samples = ", ".join(f"{stage} {n:,}" for stage, n in r.samples.items())
        cpu = [x.training["cpu_s"] for x in own]
        size = [f"{r.parameters[k] / 1e6:.2f} M" for k in ("trunk", "all")]
        body.append([name, *size, samples, f"{np.median(cpu):.0f} s"])
    return table(["", "backbone", "all parameters", "samples seen, by stage", "training, CPU"], body)


def _latency(rows: Mapping[str, Sequence[Result]]) -> str:
    body = []
    for name, own in rows.items():
        for query in own[0].latency:
            part = {k: float(np.median([r.latency[query][k] for r in own])) for k in own[0].latency[query]}
            step = f"{part['steps']:.0f} x {part['step']:.2f}" if part["steps"] else ""
            times = [f"{part[k]:.1f}" for k in ("total", "encode", "prefill")]
            body.append([name, query, f"**{times[0]}**", *times[1:], step, f"{part['decode']:.1f}"])
    loads = [r.load for own in rows.values() for r in own if r.latency and r.load is not None]
    how = "One query, batch 1, one thread, in milliseconds: the median over seeds of their medians. "
    note = load_note(loads)
    how += f"{note[0].upper()}{note[1:]}."
    return how + "\n\n" + table(["", "query", "total", "encode", "prefill", "denoising steps", "decode"], body)


def _made(results: Sequence[Result]) -> str:
    unique = {k: sorted({r.made_by.get(k, "") for r in results} - {""}) for k in ("wamkit", "commit", "machine")}
    return "\n".join(f"* {k}: {', '.join(v)}" for k, v in unique.items() if v)

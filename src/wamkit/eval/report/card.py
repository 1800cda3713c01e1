"""Report card of a run: the figures of its evaluation and the videos that go with them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.config import unsealed
from wamkit.data.loading.windows import Frames
from wamkit.eval.protocols import PROTOCOLS, Protocol
from wamkit.eval.registry import Context, EvalOptions
from wamkit.eval.report import latency
from wamkit.eval.results import (
    Clip,
    ClosedLoop,
    Curves,
    Imagined,
    Report,
    Row,
    Still,
    Table,
    TaskResult,
    Worst,
    versions,
)
from wamkit.eval.suites.closed_loop import Record, clips, evaluated_records
from wamkit.eval.suites.recording import query_recording
from wamkit.files import StoreError, read_json
from wamkit.inference.model import Model
from wamkit.runs.run import Run
from wamkit.training.metrics import read_metrics
from wamkit.types import Query, WamkitError

_ALONE = {"closed_loop.success": "success, all tasks"}
"""Names of figures outside of their tables, which would not say what is counted."""


def history(run: Path) -> tuple[list[dict[str, Any]], str | None]:
    """Rows of run/metrics.jsonl, and the command that trained the run, from run/config.json; none of an exported file.

    Raises WamkitError for a file that cannot be read.
    """
    if run.is_file():
        return [], None
    path = run / "metrics.jsonl"
    try:
        metrics = [row for _, row in read_metrics(path)]
        path = run / "config.json"
        trained = unsealed(read_json(path), path).get("command")
        return metrics, trained if isinstance(trained, str) else None
    except StoreError as error:
        lost = "its learning curves" if path.name == "metrics.jsonl" else "the training command"
        stand_in = "an empty file" if path.name == "metrics.jsonl" else "a file with {} in it"
        raise WamkitError(
            f"{path} cannot be read ({error}): restore it, or put {stand_in} there; the report then lacks {lost}"
        ) from error


def report_card(
    context: Context,
    command: str,
    history: tuple[list[dict[str, Any]], str | None],
    tables: Sequence[Table],
    worst: Sequence[Worst],
) -> Report:
    """Content of the page of one evaluation.

    Episodes are played again to record videos, which takes about a quarter of their time.
    command: that repeats the evaluation, "" if none does.   history: as `history` returns it.
    """
    run, model, protocol = context.run, context.model, context.protocol
    metrics, trained = history
    rows = {t.figure(r): r for t in tables for r in t.rows}
    last = model.spec.frame_offsets[-1]
    head = ["closed_loop.success", f"open_loop.skill.joint.{last}", "coupling.true_over_shuffled"]
    head.append("closed_loop.latency.median")
    losses = sorted({k for m in metrics for k in m} - {"step", "stage", "lr", "grad_norm", "seconds", "wait"})
    records = evaluated_records(context) if context.acts else []
    asked = _recordings(model, context.frames) if context.options.held_out else []
    imagined, stills = imagined_clips(model, context.frames, asked) if asked else ((), ())
    minutes = run.extra.get("elapsed_s", 0.0) / 60
    recorded = sum(source.episodes for source in run.sources.values())
    return Report(
        title=f"{model.name}: {run.name}",
        subtitle=f"{recorded} recorded episodes of {len(protocol.env.tasks)} tasks, "
        f"{run.step} training steps in {minutes:.1f} minutes",
        headline=tuple(replace(rows[key], name=_ALONE.get(key, rows[key].name)) for key in head if key in rows),
        tables=(*tables, *latency.tables(run.home, run.digest)),
        closed_loop=_closed_loop(protocol, records, rows),
        imagined=imagined,
        stills=stills,
        clips=_clips(context, records),
        worst=tuple(worst),
        curves=(Curves("Losses", metrics, {k: (k,) for k in losses}),),
        commands=tuple(filter(None, (trained, command))),
        versions=versions(),
        config=_described(run, protocol) | {"weights": run.digest},
    )


def command(run: str | Path, requested: Protocol, options: EvalOptions) -> str:
    """The command line that repeats an evaluation exactly; "" for one that no command line describes.

    What the figures depend on is written out even where it is the default, which another version may change.
    """
    if requested.text or (requested.name and requested.name not in PROTOCOLS):
        return ""
    playing = {"episodes": requested.episodes, "replan-every": requested.replan_every, "query": requested.query}
    playing |= {} if requested.steps is None else {"steps": requested.steps}
    playing |= {"held-out": options.held_out, "suite": options.suite}
    playing |= {} if options.processes == EvalOptions.processes else {"processes": options.processes}
    words = [word for name, value in playing.items() for word in (f"--{name}", str(value))]
    words += ["--encoder", *options.encoders] if options.encoders else []
    return shlex.join(["wamkit", "eval", str(run), *_where(requested), *words])


def label(requested: Protocol, options: EvalOptions) -> str:
    """A short name of an evaluation, by the options in which it differs from the plain one."""
    plain = PROTOCOLS.get(requested.name)() if requested.name in PROTOCOLS else Protocol()
    pairs = [(k, getattr(requested, k), getattr(plain, k)) for k in ("episodes", "replan_every", "query", "steps")]
    held_out = 0 if requested.name else EvalOptions.held_out
    pairs += [("held_out", options.held_out, held_out), ("suite", options.suite, EvalOptions.suite)]
    pairs += [("tasks", len(requested.env.tasks), len(plain.env.tasks))]
    named = [f"{name.replace('_', '-')}-{value}" for name, value, default in pairs if value != default]
    return "-".join(named) or "plain"


def arguments(protocol: Protocol) -> str:
    """Command-line arguments for the environment of a protocol; "" for the one that the data came from."""
    return shlex.join(_where(protocol))


def _where(protocol: Protocol) -> list[str]:
    env = protocol.env
    words = ["--protocol", protocol.name] if protocol.name else ["--env", env.env] if env.env else []
    words += ["--tasks", *env.tasks] if env.tasks else []
    words += ["--options", *(f"{k}={json.dumps(v)}" for k, v in env.options.items())] if env.options else []
    return words + (["--embodiment", env.embodiment] if env.embodiment else [])


def _closed_loop(protocol: Protocol, records: Sequence[Record], rows: Mapping[str, Row]) -> tuple[ClosedLoop, ...]:
    """Success by task. rows: figures by key, for the target that all tasks share."""
    if not records:
        return ()
    tasks = tuple(_task_result(t, records) for t in protocol.env.tasks)
    targets = {row.target.above for key, row in rows.items() if key.startswith("closed_loop.success.") and row.target}
    target = targets.pop() if len(targets) == 1 else None
    return (ClosedLoop(f"{protocol.episodes} held-out reset states a task", tasks, target),)


def _clips(context: Context, records: Sequence[Record]) -> tuple[Clip, ...]:
    """Videos of one success and one failure a task, at half the frames and half the speed."""
    if not records:
        return ()
    played = clips(context.run, context.protocol, records, processes=context.options.processes)
    return tuple(
        Clip(e.task, e.images[::2, 0], e.succeeded, e.fps / 4, f"seed {e.seed}, {len(e)} steps") for e in played
    )


def _described(run: Run, protocol: Protocol) -> dict[str, Any]:
    """The run's configuration for the page, with the environment of the evaluation and without the many seeds."""
    seedless = lambda p: {k: v for k, v in asdict(p).items() if k != "seeds"}  # noqa: E731
    origins = {"origins": {name: seedless(o) for name, o in run.origins.items()}} if run.origins else {}
    return {**run.described, "provenance": seedless(replace(run.provenance, env=protocol.env)), **origins}


def _task_result(task: str, records: Sequence[Record]) -> TaskResult:
    own = [r for r in records if r.task == task]
    steps = [r.steps for r in own if r.success]
    p50, p95 = np.percentile([x for r in own for x in r.latency_ms], (50, 95))
    return TaskResult(task, len(steps), len(own), float(np.median(steps)) if steps else None, float(p50), float(p95))


def _recordings(model: Model, frames: Frames) -> list[tuple[str, int, Query]]:
    """The first demonstration of every task, and one off-expert episode, with the queries to ask about them."""
    texts = list(dict.fromkeys(frames.text))
    chosen = [(t, next(e for e, x in enumerate(frames.text) if x == t and frames.is_demonstration[e])) for t in texts]
    queries = [q for q in (Query.FORWARD, Query.JOINT) if q in model.queries]
    jobs = [(t, e, q) for t, e in chosen for q in queries]
    off = np.flatnonzero(~frames.is_demonstration)
    if len(off) and Query.FORWARD in model.queries:
        jobs.append(("random actions", int(off[0]), Query.FORWARD))
    return jobs


def imagined_clips(
    model: Model, frames: Frames, asked: Sequence[tuple[str, int, Query]]
) -> tuple[tuple[Imagined, ...], tuple[Still, ...]]:
    """Videos of imagined episodes, with a still from each.

    asked: title, episode and query of each video; the query must imagine frames.
    """
    clips_, stills = [], []
    for text, episode, query in asked:
        f = query_recording(model, frames, episode, query)
        name = f"{text}: {'given the actions' if query is Query.FORWARD else 'imagined with its own actions'}"
        now, real, guess = (x[..., f.views[0], :, :, :] for x in (f.now, f.real, f.imagined))
        for k, offset in enumerate(model.spec.frame_offsets):
            clips_.append(Imagined(name, offset, real[:, k], guess[:, k]))
        middle = len(now) // 2
        stills.append(Still(name, now[middle], real[middle], guess[middle], model.spec.frame_offsets))
    return tuple(clips_), tuple(stills)

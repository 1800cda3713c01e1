"""The report card of a run: what was measured, with the images that go with it, as one page's content."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.data.loading.windows import Frames
from wamkit.eval.results import (
    VISUAL,
    Clip,
    ClosedLoop,
    Curves,
    Imagined,
    Report,
    Still,
    Table,
    TaskResult,
    Worst,
    versions,
)
from wamkit.eval.suites.closed_loop import Protocol, Record, clips
from wamkit.eval.suites.open_loop import Imagination
from wamkit.eval.suites.recording import query_recording
from wamkit.inference.model import Model
from wamkit.runs.run import Run
from wamkit.training.metrics import read_metrics
from wamkit.types import Query, WamkitError
from wamkit.viz.images import difference

PICTURED = (Query.FORWARD, Query.JOINT, Query.VIDEO)


def history(run: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The rows of run/metrics.jsonl, and the command that trained the run, out of run/config.json."""
    path = run / "metrics.jsonl"
    try:
        metrics = [row for _, row in read_metrics(path)]
        path = run / "config.json"
        return metrics, json.loads(path.read_bytes()).get("command")
    except (OSError, ValueError, AttributeError) as error:
        lost = "its learning curves" if path.name == "metrics.jsonl" else "the training command"
        stand_in = "an empty file" if path.name == "metrics.jsonl" else "a file with {} in it"
        raise WamkitError(
            f"{path} cannot be read ({error}): restore it, or put {stand_in} there; the report then lacks {lost}"
        ) from error


def report_card(
    run: Run,
    model: Model,
    history: tuple[list[dict[str, Any]], str | None],
    protocol: Protocol,
    words: str,
    records: Sequence[Record],
    frames: Frames | None,
    tables: list[Table],
    worst: Sequence[Worst],
    processes: int,
) -> Report:
    """The page of one evaluation; films what it shows, which takes about as long as a quarter of the episodes.

    words: what the command line says of the environment.
    """
    rows = {t.figure(r): r for t in tables for r in t.rows}
    last = model.spec.frame_offsets[-1]
    head = ["closed_loop.success", f"open_loop.skill.joint.{last}", "coupling.true_over_shuffled"]
    head.append("closed_loop.latency.median")
    metrics, trained = history
    losses = sorted({k for m in metrics for k in m} - {"step", "stage", "lr", "grad_norm", "seconds", "wait"})
    played = clips(run, protocol, records, processes=processes) if records else []
    imagined, stills = _imagined(model, frames) if frames is not None else ((), ())
    minutes = run.extra["elapsed_s"] / 60
    return Report(
        title=f"{model.name}: {run.name}",
        subtitle=f"{run.provenance.episodes} recorded episodes of {len(protocol.env.tasks)} tasks, "
        f"{run.step} training steps in {minutes:.1f} minutes",
        headline=tuple(rows[key] for key in head if key in rows),
        tables=tuple(tables),
        closed_loop=(
            ClosedLoop(
                f"{protocol.episodes} held-out reset states a task",
                tuple(_task_result(t, records) for t in protocol.env.tasks),
                0.85,
            ),
        )
        if records
        else (),
        imagined=imagined,
        stills=stills,
        clips=tuple(
            Clip(e.task, e.images[::2, 0], e.succeeded, e.fps / 4, f"seed {e.seed}, {len(e)} steps") for e in played
        ),
        worst=tuple(worst),
        curves=(Curves("Losses", metrics, {k: (k,) for k in losses}),),
        commands=(
            *([trained] if trained else []),
            f"wamkit eval {run.path} {f'{words} ' if words else ''}--episodes {protocol.episodes} --replan-every {protocol.replan_every}",
        ),
        versions=versions(),
        config=_described(run, protocol),
    )


def _described(run: Run, protocol: Protocol) -> dict[str, Any]:
    """The run's configuration for the page, with the environment that it was evaluated in and without its many seeds."""
    provenance = {k: v for k, v in asdict(replace(run.provenance, env=protocol.env)).items() if k != "seeds"}
    return {**run.described, "provenance": provenance}


def _task_result(task: str, records: Sequence[Record]) -> TaskResult:
    own = [r for r in records if r.task == task]
    steps = [r.steps for r in own if r.success]
    p50, p95 = np.percentile([x for r in own for x in r.latency_ms], (50, 95))
    return TaskResult(task, len(steps), len(own), float(np.median(steps)) if steps else None, float(p50), float(p95))


def _imagined(model: Model, frames: Frames) -> tuple[tuple[Imagined, ...], tuple[Still, ...]]:
    """Videos of the first demonstration of every task, and of one off-expert episode, with a still from each."""
    clips_, stills = [], []
    texts = list(dict.fromkeys(frames.text))
    chosen = [(t, next(e for e, x in enumerate(frames.text) if x == t and frames.is_demonstration[e])) for t in texts]
    queries = [q for q in PICTURED[:2] if q in model.queries]
    jobs = [(t, e, q) for t, e in chosen for q in queries]
    off = np.flatnonzero(~frames.is_demonstration)
    if len(off) and Query.FORWARD in model.queries:
        jobs.append(("random actions", int(off[0]), Query.FORWARD))
    for text, episode, query in jobs:
        f = query_recording(model, frames, episode, query)
        name = f"{text}: {'given the actions' if query is Query.FORWARD else 'imagined with its own actions'}"
        for k, offset in enumerate(model.spec.frame_offsets):
            clips_.append(Imagined(name, offset, f.real[:, k, 0], f.imagined[:, k, 0]))
        middle = len(f.now) // 2
        stills.append(
            Still(name, f.now[middle, 0], f.real[middle, :, 0], f.imagined[middle, :, 0], model.spec.frame_offsets)
        )
    return tuple(clips_), tuple(stills)


def worst_pictures(model: Model, frames: Frames, result: Imagination, count: int = 2) -> list[Worst]:
    """The demonstrations that are imagined worst, by skill at the furthest horizon, one a task at most."""
    query = next(q for q in ("joint", "video", "forward") if q in result.fidelity)
    part, episode = result.demonstrations(query)
    bottom, out = np.nan_to_num(part.mse_copy[:, -1]), {}
    top = np.nan_to_num(part.mse[:, -1])
    skill = {
        e: 1 - top[episode == e].sum() / bottom[episode == e].sum()
        for e in np.unique(episode)
        if bottom[episode == e].sum()
    }
    for e in sorted(skill, key=skill.__getitem__):
        text = frames.text[e]
        if text in out or len(out) == count:
            continue
        f = query_recording(model, frames, int(e), Query(query))
        real, guess = f.real[:, -1, 0], f.imagined[:, -1, 0]
        columns = {"happened": real, f"imagined +{part.offsets[-1]}": guess, "difference": difference(real, guess)}
        out[text] = Worst(VISUAL, text, columns, 10.0, f"held-out recording {e}, skill {skill[e]:.2f}")
    return list(out.values())

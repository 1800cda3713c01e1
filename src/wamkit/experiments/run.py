"""Runs a comparison: trains and evaluates its entries, one small JSON file a finished job, and writes one page.

The JSON files are the comparisons' memory: they are meant to be committed, and in a fresh clone `wamkit compare` goes
on from those that are there. Comparisons share them: a job that two of them name is done once. A file that was made
from another configuration, data set or protocol is made again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wamkit import config as cfg
from wamkit import old_names
from wamkit.data.format.store import Store
from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.mixture import MixtureConfig
from wamkit.data.loading.windows import Frames, Windows, observations, window_starts
from wamkit.eval.evaluate import evaluate
from wamkit.eval.held_out import validation_frames
from wamkit.eval.protocols import Protocol
from wamkit.eval.registry import EvalOptions
from wamkit.eval.results import made_by
from wamkit.eval.suites.closed_loop import closed_loop
from wamkit.eval.suites.latency import query_latency
from wamkit.eval.suites.open_loop import action_error
from wamkit.experiments.comparisons import COMPARISONS, Comparison, Entry
from wamkit.experiments.page import Result, write_page
from wamkit.families.base import Family
from wamkit.files import StoreError, atomic_write, exclusive, make_folder
from wamkit.inference.model import Model, opened
from wamkit.runs.config import PARTS, RunConfig, config_from_dict, config_to_dict, family_class
from wamkit.runs.provenance import Provenance
from wamkit.runs.recipes import RECIPES
from wamkit.runs.run import Run
from wamkit.training.interruption import Interrupted
from wamkit.training.launch import train_run
from wamkit.training.metrics import read_metrics
from wamkit.training.schedule import stage_spans
from wamkit.types import Query, WamkitError


@dataclass(frozen=True)
class Compare:
    """Trains and evaluates the rows of a comparison under one budget.

    The same command continues, and finished jobs are kept.
    """

    name: str
    """Name of the comparison; `wamkit list` shows all."""
    data: Path = Path("data/demos")
    """Data set folder, from `wamkit collect`."""
    out: Path = Path("docs/results")
    """Folder of the page. Beside it, in jobs/, lies one small JSON file for each finished job."""
    work: Path = Path("runs/compare")
    """Run folders. What is in there can be thrown away once the JSON files exist."""
    only: tuple[str, ...] = ()
    """Only these rows."""
    seeds: int | None = None
    """Only the first so many training seeds of each row."""
    episodes: int = 20
    """Held-out reset states a task."""
    held_out: int = 6
    """Held-out recordings a task (one more off-expert each) on which imagination is scored."""
    processes: int = 2
    """Worker processes of the evaluation."""
    page: bool = False
    """Write the page from the files that are there, and run nothing."""


@dataclass(frozen=True)
class _Job:
    entry: Entry
    seed: int
    run: RunConfig
    key: str
    result: Path
    folder: Path


def compare(args: Compare) -> Path:
    """Carries out the jobs that have no result yet, seed by seed so that every row gets its first before any its
    second.

    Writes the page after every job. A job that fails is reported, the others go on, and the command ends with an error.
    """
    comparison = COMPARISONS.get(args.name)()
    jobs = _plan(comparison, args)
    if not args.page:
        make_folder(args.work)
        make_folder(args.out / "jobs")
        with exclusive(args.work):
            _run(comparison, jobs, args)
    return _page(comparison, jobs, args)


def _run(comparison: Comparison, jobs: list[_Job], args: Compare) -> None:
    failed: list[str] = []
    left = [job for job in jobs if _read(job) is None]
    todo = [
        job
        for job in left
        if (not args.only or job.entry.name in args.only) and job.seed in job.entry.seeds[: args.seeds]
    ]
    print(f"{comparison.title}: {len(jobs)} jobs, {len(jobs) - len(left)} of them done, {len(todo)} to do now")
    for i, job in enumerate(todo, 1):
        print(f"\n{job.entry.name}, seed {job.seed}: job {i} of {len(todo)}", flush=True)
        try:
            result = _carry_out(job, args)
        except Interrupted:
            raise
        except WamkitError as error:
            failed.append(f"{job.entry.name}, seed {job.seed}: {error}")
            print(f"failed: {error}", flush=True)
            continue
        atomic_write(job.result, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
        _page(comparison, jobs, args)
    if failed:
        raise WamkitError(f"{len(failed)} of {len(todo)} jobs failed; {failed[0]}")


def _plan(comparison: Comparison, args: Compare) -> list[_Job]:
    if unknown := set(args.only) - {e.name for e in comparison.entries}:
        known = ", ".join(e.name for e in comparison.entries)
        raise WamkitError(f"'{args.name}' has no row '{unknown.pop()}'; it has {known}")
    provenance = Provenance.of(Store.open(args.data))
    if not provenance.env.env:
        raise StoreError(f"{args.data} was made by no environment of wamkit; there is nothing to play in")
    jobs = []
    for round_ in range(max(len(e.seeds) for e in comparison.entries)):
        for entry in comparison.entries:
            if round_ < len(entry.seeds):
                jobs.append(_job(entry, entry.seeds[round_], provenance, args))
    return jobs


def _job(entry: Entry, seed: int, provenance: Provenance, args: Compare) -> _Job:
    run = changed(RECIPES.get(entry.recipe)(), {**entry.options, "train.seed": seed})
    sources = [cfg.to_dict(s) for s in entry.sources]
    data = {**old_names.source(cfg.to_dict(provenance)), "seeds": None}
    key = cfg.digest([data, args.episodes, args.held_out, *([sources] if sources else [])])
    stem = f"{entry.slug}-{seed}"
    folder = args.work / f"{stem}-{cfg.digest([key, config_to_dict(run)])}"
    return _Job(entry, seed, run, key, args.out / "jobs" / f"{stem}.json", folder)


def changed(run: RunConfig, options: Mapping[str, Any]) -> RunConfig:
    """`run` with the fields named by dotted path set, checked as if read from a file.

    Raises ConfigError for unknown ones.
    """
    data = config_to_dict(run)
    for path, value in options.items():
        part, _, name = path.partition(".")
        if part not in PARTS:
            raise cfg.ConfigError(f"a run has no part '{part}' ({path}); it has {', '.join(PARTS)}")
        data[part][name] = value
    return config_from_dict(data)


def _read(job: _Job) -> Result | None:
    """The result of a finished job; None where there is none, or where it answers another question."""
    if not job.result.exists():
        return None
    try:
        result = cfg.from_dict(Result, old_names.job(json.loads(job.result.read_bytes())))
    except (ValueError, KeyError, AttributeError, cfg.ConfigError) as error:
        raise WamkitError(
            f"{job.result} is damaged ({error}); restore it, or remove it to run the job again"
        ) from error
    return result if result.key == job.key and _was(result) == job.run else None


def _was(result: Result) -> RunConfig | None:
    """The run that a result is of, with today's defaults for options that did not exist then; None where it can't be
    read.
    """
    try:
        return config_from_dict(result.configuration)
    except (cfg.ConfigError, LookupError):
        return None


def _carry_out(job: _Job, args: Compare) -> dict[str, Any]:
    recordings = args.work / "recordings"
    data, watch = _mixed(job, args) if job.entry.sources else args.data, None
    # What a mixture trains has no robot while it trains, so there is nothing to watch but its losses.
    if Query.POLICY in family_class(job.run.family).queries and not job.entry.sources:
        provenance = Provenance.of(Store.open(args.data))
        watch = partial(
            _held_out_error, validation_frames(provenance, recordings, args.held_out, processes=args.processes)
        )
    train_run(job.run, data, job.folder, watch=watch)
    run = Run.open(job.folder)
    protocol = Protocol(episodes=args.episodes)
    options = EvalOptions(args.held_out, args.processes, recordings=recordings, report=False)
    summary = evaluate(run, protocol, options)
    model = opened(run, run.provenance.env.embodiment)
    frames, _ = open_frames(recordings / f"held-out-{args.held_out}")
    return asdict(
        Result(
            key=job.key,
            recipe=job.entry.recipe,
            seed=job.seed,
            configuration=config_to_dict(job.run),
            leaf=model.taxonomy.leaf,
            queries=tuple(sorted(model.queries)),
            parameters={"trunk": trunk_size(model.family), "all": sum(p.numel() for p in model.family.parameters())},
            samples={
                s.name: (end - start) * job.run.train.batch_size
                for s, start, end in stage_spans(model.family.stages(), job.run.train.steps)
            },
            training={"cpu_s": run.extra["cpu_s"], "wall_s": run.extra["elapsed_s"]},
            episodes=_episodes(run, model, replace(protocol, env=run.provenance.env), args.processes),
            figures={r["key"]: _finite(r) for r in summary["rows"] if not r["key"].startswith("closed_loop.")},
            latency=_latency(model, frames),
            curve=_curve(job.folder),
            made_by=made_by(),
        )
    )


def _mixed(job: _Job, args: Compare) -> Path:
    """The file of a mixture of the row's sources, which lie beside the data set: images of its size, one view of
    whatever there is.
    """
    size = Store.open(args.data).layout.image_shape[1:]
    sources = tuple(replace(s, data=str((args.data.parent / s.data).resolve())) for s in job.entry.sources)
    path = args.work / "mixtures" / f"{job.folder.name}.json"
    cfg.save_json(path, MixtureConfig(sources, size=size, views=("scene+ego+wrist",)))
    return path


def trunk_size(model: Family) -> int:
    """Parameters of the family's main backbone, 0 where it has none."""
    return sum(p.numel() for p in model.backbone.parameters()) if model.backbone else 0


def _episodes(run: Run, model: Model, protocol: Protocol, processes: int) -> dict[str, dict[str, Any]]:
    """Task -> held-out seeds, outcomes ("1" solved) and steps, in that order."""
    if Query.POLICY not in model.queries:
        return {}
    out: dict[str, dict[str, Any]] = {}
    for record in closed_loop(run, protocol, processes=processes):
        row = out.setdefault(record.task, {"first_seed": record.seed, "solved": "", "steps": []})
        row["solved"] += str(int(record.success))
        row["steps"].append(record.steps)
    return out


def _finite(row: Mapping[str, Any]) -> tuple[float | None, ...]:
    """(value, low, high), None where there is none: JSON knows no infinity."""
    return tuple(x if x is not None and math.isfinite(x) else None for x in (row["value"], row["low"], row["high"]))


def _latency(model: Model, frames: Frames) -> dict[str, dict[str, float]]:
    starts = window_starts(frames, model.spec.chunk, 4)[:20]
    obs = observations(Windows(frames, model.spec, seed=0, batch_size=1).gather(starts))
    asked = [q for q in (Query.POLICY, Query.JOINT) if q in model.queries]
    return {q.value: {k: round(v, 3) for k, v in asdict(query_latency(model, obs, q)).items()} for q in asked}


def _held_out_error(frames: Frames, family: Family) -> dict[str, float]:
    """The policy's mean squared action error on held-out demonstrations, in the robot's units: the learning curve."""
    model = Model(family)
    starts = window_starts(frames, model.spec.chunk, 8)
    starts = starts[frames.is_demonstration[frames.episode[starts]]]
    batch = Windows(frames, model.spec, seed=0, batch_size=1).gather(starts)
    out = model.sample(observations(batch), Query.POLICY, seed=[int(s) for s in starts])
    return {"held_out_action_error": float(np.nanmean(action_error(out.actions, batch)))}


def _curve(folder: Path) -> dict[str, list[float]]:
    error = "held_out_action_error"
    rows = [row for _, row in read_metrics(folder / "metrics.jsonl") if error in row]
    return {"step": [r["step"] for r in rows], error: [round(r[error], 6) for r in rows]}


def _page(comparison: Comparison, jobs: list[_Job], args: Compare) -> Path:
    rows: dict[str, list[Result]] = {}
    for job in jobs:
        if (result := _read(job)) is not None:
            rows.setdefault(job.entry.name, []).append(result)
    if not rows:
        raise WamkitError(f"{args.out} holds no result of it yet: run `wamkit compare {args.name}` without --page")
    rows = {e.name: rows[e.name] for e in comparison.entries if e.name in rows}
    command = f"wamkit compare {args.name} --data {args.data}"
    return write_page(comparison, rows, len(jobs), command, args.out / f"{args.name}.md")

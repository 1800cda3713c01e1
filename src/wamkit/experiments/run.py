"""Runs a comparison: trains and evaluates its rows, writes one small JSON file for each finished job, and one page.

The JSON files are meant to be committed: in a fresh clone `wamkit compare` continues from them. Comparisons share them,
so a job that two of them have is run once. A file of another configuration, data set or protocol is not used, and its
job runs again.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from wamkit import config as cfg
from wamkit import old_names
from wamkit.data.format.store import Store
from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.mixture import MixtureConfig
from wamkit.data.loading.windows import Frames, Windows, observations, window_starts
from wamkit.eval.evaluate import evaluate
from wamkit.eval.held_out import evaluation_env, validation_store
from wamkit.eval.protocols import Protocol, named_protocol
from wamkit.eval.registry import EvalOptions
from wamkit.eval.results import made_by
from wamkit.eval.suites.closed_loop import closed_loop
from wamkit.eval.suites.latency import machine_load, query_latency
from wamkit.eval.validation import held_out_action_error
from wamkit.experiments.comparisons import COMPARISONS, Comparison, Entry
from wamkit.experiments.page import Result, write_page
from wamkit.families.base import Family
from wamkit.files import StoreError, atomic_write, exclusive, make_folder, read_json
from wamkit.inference.model import Model, opened
from wamkit.runs.config import RunConfig, changed, config_from_dict, config_to_dict, family_class
from wamkit.runs.fitted import DataFacts, facts_of, fit
from wamkit.runs.provenance import Provenance
from wamkit.runs.recipes import RECIPES, FittedRecipe
from wamkit.runs.run import Run
from wamkit.training.interruption import Interrupted
from wamkit.training.launch import train_run
from wamkit.training.metrics import read_metrics
from wamkit.training.schedule import stage_spans
from wamkit.types import Query, WamkitError
from wamkit.workers import kept_workers


@dataclass(frozen=True)
class Setup:
    """Data, protocol and folders that all jobs of a comparison share.

    data: data set folder.   out: folder of the page, and in jobs/ of the JSON files.   work: folder of the runs.
    episodes: held-out reset states a task; None for those of the comparison's protocol, 20 without one.
    held_out: validation episodes a task, and one more off-expert.   processes: worker processes of the evaluation.
    """

    data: Path
    out: Path
    work: Path
    episodes: int | None = None
    held_out: int = 6
    processes: int = 2

    def arguments(self) -> list[str]:
        """Words of the command line: the data, and what differs from the defaults of `wamkit compare`."""
        usual = Setup(self.data, Path("docs/results"), Path("runs/compare"), processes=self.processes)
        words = ["--data", str(self.data)]
        for name in ("out", "work", "episodes", "held_out"):
            if (value := getattr(self, name)) != getattr(usual, name):
                words += [f"--{name.replace('_', '-')}", str(value)]
        return words


@dataclass(frozen=True)
class Job:
    """One training run with its evaluation.

    protocol: without an environment for that of the data.
    key: digest of data and protocol.   result: JSON file of the finished job.   folder: run folder.
    """

    entry: Entry
    seed: int
    config: RunConfig
    protocol: Protocol
    key: str
    result: Path
    folder: Path

    @property
    def title(self) -> str:
        """Row and seed, for messages."""
        return f"{self.entry.name}, seed {self.seed}"


@kept_workers()
def compare(name: str, setup: Setup, *, only: Sequence[str] = (), seeds: int | None = None) -> Path:
    """Runs the jobs of comparison `name` that are not finished, and returns its page.

    only: rows to run; all if empty.   seeds: number of training seeds of each row to run.
    Jobs run seed by seed, so that every row has its first seed before any has its second. The page is written after
    each. A job that fails is reported and the others continue; then WamkitError is raised. Raises WamkitError for an
    unknown row.
    """
    comparison = COMPARISONS.get(name)()
    comparison.check_rows(name, only)
    jobs = plan(comparison, setup)
    left = [job for job in jobs if read_result(job) is None]
    chosen = [job for job in left if (not only or job.entry.name in only) and job.seed in job.entry.seeds[:seeds]]
    make_folder(setup.work)
    make_folder(setup.out / "jobs")
    with exclusive(setup.work):
        print(f"{comparison.title}: {len(jobs)} jobs, {len(jobs) - len(left)} finished, {len(chosen)} to run")
        failed = _run_jobs(chosen, setup, lambda: write_comparison(name, setup))
    if failed:
        raise WamkitError(f"{len(failed)} of {len(chosen)} jobs failed; {failed[0]}")
    return write_comparison(name, setup)


def write_comparison(name: str, setup: Setup) -> Path:
    """Writes the page of comparison `name` from the JSON files that exist. Raises WamkitError if there is none."""
    comparison = COMPARISONS.get(name)()
    jobs = plan(comparison, setup)
    rows: dict[str, list[Result]] = {entry.name: [] for entry in comparison.entries}
    for job in jobs:
        if (result := read_result(job)) is not None:
            rows[job.entry.name].append(result)
    rows = {row: results for row, results in rows.items() if results}
    if not rows:
        raise WamkitError(f"{setup.out} holds no result of '{name}': run `wamkit compare {name}` without --page")
    command = shlex.join(["wamkit", "compare", name, *setup.arguments()])
    return write_page(comparison, rows, len(jobs), command, setup.out / f"{name}.md")


def plan(comparison: Comparison, setup: Setup) -> list[Job]:
    """All jobs of a comparison, the first seed of every row first. Raises StoreError for data of no environment."""
    provenance = Provenance.of(Store.open(setup.data))
    if not provenance.env.env:
        raise StoreError(f"{setup.data} was made by no environment of wamkit, so there is none to evaluate in")
    rounds = range(max(len(e.seeds) for e in comparison.entries))
    pairs = [(entry, entry.seeds[k]) for k in rounds for entry in comparison.entries if k < len(entry.seeds)]
    protocol = named_protocol(comparison.protocol) if comparison.protocol else Protocol()
    protocol = replace(protocol, episodes=setup.episodes or protocol.episodes)
    facts = cache(partial(facts_of, setup.data))  # read once, and only where a recipe is fitted
    recipes = {entry.recipe: _recipe(entry.recipe, facts) for entry in comparison.entries}
    jobs = [_job(entry, seed, recipes[entry.recipe], provenance, protocol, setup) for entry, seed in pairs]
    results = [job.result for job in jobs]
    if same := next((job for job in jobs if results.count(job.result) > 1), None):
        both = " and ".join(repr(job.title) for job in jobs if job.result == same.result)
        raise WamkitError(f"{both} would be written into one file, {same.result.name}: leave one of them out")
    return jobs


def read_result(job: Job) -> Result | None:
    """The result of a finished job; None if there is no file, or one of another configuration, data set or protocol.

    A configuration without an option that is new since then has its default. Raises WamkitError for a damaged file.
    """
    if not job.result.exists():
        return None
    try:
        result = cfg.from_dict(Result, old_names.job(cfg.unsealed(read_json(job.result), job.result)))
    except (StoreError, ValueError, LookupError, AttributeError, TypeError) as error:
        message = f"{job.result} is damaged ({error}); restore it, or remove it to run the job again"
        raise WamkitError(message) from error
    try:
        config = config_from_dict(result.configuration)
    except (cfg.ConfigError, LookupError):
        return None
    return result if (result.key, config) == (job.key, job.config) else None


def _job(entry: Entry, seed: int, recipe: RunConfig, provenance: Provenance, protocol: Protocol, setup: Setup) -> Job:
    config = changed(recipe, {**entry.options, "train.seed": seed})
    sources = [cfg.to_dict(s) for s in entry.sources]
    data = {**old_names.source(cfg.to_dict(provenance)), "seeds": None}
    named = [protocol.to_dict()] if protocol.name else []
    key = cfg.digest([data, protocol.episodes, setup.held_out, *([sources] if sources else []), *named])
    stem = "-".join([*([protocol.name] if protocol.name else []), entry.slug, str(seed)])
    folder = setup.work / f"{stem}-{cfg.digest([key, old_names.without_added(config_to_dict(config))])}"
    return Job(entry, seed, config, protocol, key, setup.out / "jobs" / f"{stem}.json", folder)


def _recipe(name: str, facts: Callable[[], DataFacts]) -> RunConfig:
    """The recipe called `name`, fitted to the data if it is one that is."""
    recipe = RECIPES.get(name)
    return fit(recipe(), facts())[0] if isinstance(recipe, FittedRecipe) else recipe()


def _run_jobs(jobs: Sequence[Job], setup: Setup, after_each: Callable[[], Any]) -> list[str]:
    """Runs the jobs and writes their results; messages of those that failed."""
    failed = []
    for i, job in enumerate(jobs, 1):
        print(f"\n{job.title}: job {i} of {len(jobs)}", flush=True)
        try:
            result = asdict(_run_job(job, setup))
        except Interrupted:
            raise
        except WamkitError as error:
            failed.append(f"{job.title}: {error}")
            print(f"failed: {error}", flush=True)
            continue
        atomic_write(job.result, (json.dumps(cfg.sealed(result), indent=1, allow_nan=False) + "\n").encode())
        after_each()
    return failed


def _run_job(job: Job, setup: Setup) -> Result:
    recordings = setup.work / "recordings"
    data, watch = mixture_of(job, setup) if job.entry.sources else setup.data, None
    # A mixture has no embodiment during training, so there is no action error to watch.
    if Query.POLICY in family_class(job.config.family).queries and not job.entry.sources:
        provenance = Provenance.of(Store.open(setup.data))
        store = validation_store(
            setup.data,
            {"its data": provenance},
            provenance.env,
            recordings,
            setup.held_out,
            processes=setup.processes,
        )
        watch = partial(held_out_action_error, open_frames(store.root, job.config.window.size)[0])
    train_run(job.config, data, job.folder, watch=watch)
    run = Run.open(job.folder)
    options = EvalOptions(setup.held_out, setup.processes, recordings=recordings, report=False)
    summary = evaluate(run, job.protocol, options)
    env = evaluation_env(run, job.protocol.env, keep_rendering=bool(job.protocol.name))
    model = opened(run, run.provenance.env.embodiment)
    held = validation_store(run.path, run.learned_from, env, recordings, setup.held_out, processes=setup.processes)
    frames, _ = open_frames(held.root, run.image_size)
    rows = job.config.train.batch_size
    return Result(
        key=job.key,
        recipe=job.entry.recipe,
        seed=job.seed,
        configuration=config_to_dict(job.config),
        leaf=model.taxonomy.leaf,
        queries=tuple(sorted(model.queries)),
        parameters={"trunk": trunk_size(model.family), "all": sum(p.numel() for p in model.family.parameters())},
        samples={
            stage.name: (end - start) * rows
            for stage, start, end in stage_spans(model.family.stages(), job.config.train.steps)
        },
        training={"cpu_s": run.extra["cpu_s"], "wall_s": run.extra["elapsed_s"]},
        episodes=_episodes(run, model, replace(job.protocol, env=env), setup.processes),
        figures={r["key"]: _finite(r) for r in summary["rows"] if not r["key"].startswith("closed_loop.")},
        latency=_latency(model, frames),
        curve=_curve(job.folder),
        made_by=made_by(),
        weights=run.digest,
        load=machine_load(),
    )


def mixture_of(job: Job, setup: Setup) -> Path:
    """The file of a mixture of the row's sources, which lie beside the data set: its image size, one view."""
    size = Store.open(setup.data).layout.image_shape[1:]
    places = [(setup.data.parent / s.data.replace("{seed}", str(job.seed))).resolve() for s in job.entry.sources]
    sources = tuple(replace(s, data=str(p)) for s, p in zip(job.entry.sources, places, strict=True))
    path = setup.work / "mixtures" / f"{job.folder.name}.json"
    cfg.save_json(path, MixtureConfig(sources, size=size, views=("scene+ego+wrist",)))
    return path


def trunk_size(model: Family) -> int:
    """Parameters of the family's main backbone, 0 where it has none."""
    return sum(p.numel() for backbone in model.backbones[:1] for p in backbone.parameters())


def _episodes(run: Run, model: Model, protocol: Protocol, processes: int) -> dict[str, dict[str, Any]]:
    """Task -> first held-out seed, outcomes ("1" is success), steps and ends in words, in the order of the seeds."""
    if Query.POLICY not in model.queries:
        return {}
    out: dict[str, dict[str, Any]] = {}
    for record in closed_loop(run, protocol, processes=processes):
        row = out.setdefault(record.task, {"first_seed": record.seed, "outcomes": "", "steps": [], "ends": []})
        row["outcomes"] += str(int(record.success))
        row["steps"].append(record.steps)
        row["ends"].append(record.outcome)
    return out


def _finite(row: Mapping[str, Any]) -> tuple[float | None, ...]:
    """(value, low, high), with None for infinity and NaN, which JSON does not have."""
    return tuple(x if x is not None and math.isfinite(x) else None for x in (row["value"], row["low"], row["high"]))


def _latency(model: Model, frames: Frames) -> dict[str, dict[str, float]]:
    starts = window_starts(frames, model.spec.chunk, 4)[:20]
    obs = observations(Windows(frames, model.spec, seed=0, batch_size=1).gather(starts))
    asked = [q for q in (Query.POLICY, Query.JOINT) if q in model.queries]
    return {q.value: {k: round(v, 3) for k, v in asdict(query_latency(model, obs, q)).items()} for q in asked}


def _curve(folder: Path) -> dict[str, list[float]]:
    error = "held_out_action_error"
    rows = [row for _, row in read_metrics(folder / "metrics.jsonl") if error in row]
    return {"step": [r["step"] for r in rows], error: [round(r[error], 6) for r in rows]}

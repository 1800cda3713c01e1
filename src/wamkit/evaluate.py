"""The whole evaluation of a run: closed loop and imagination on held-out states, summarised in JSON and one HTML page."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from wamkit.checkpoint import load_checkpoint
from wamkit.collect import CollectConfig, collect
from wamkit.config import atomic_write, nearest, within
from wamkit.data.dataset import open_frames
from wamkit.data.files import make_folder
from wamkit.data.loader import Frames, Windows
from wamkit.envs import ENVIRONMENTS
from wamkit.envs.base import held_out_seeds
from wamkit.eval.branches import Setting
from wamkit.eval.closed_loop import Protocol, Record, clips, closed_loop, outcomes, weights_hash, write_records
from wamkit.eval.imagination import Imagination, imagine, observations, window_starts
from wamkit.eval.pictures import difference, save_video, side_by_side
from wamkit.eval.plausibility import action_tables, foresight_table, inverse_table
from wamkit.eval.report import (
    Clip,
    ClosedLoop,
    Curves,
    Imagined,
    Report,
    Row,
    Still,
    Table,
    TaskResult,
    made_by,
    versions,
    write_report,
)
from wamkit.eval.stats import Interval, clopper_pearson, wilson
from wamkit.eval.visual import Score
from wamkit.family import Family, unsupported
from wamkit.policy import Policy
from wamkit.run import load
from wamkit.train import read_metrics
from wamkit.types import Query, UnsupportedQuery, WamkitError

SOLVES = "Does it solve the tasks?"
"""Title of the table of success."""

PICTURED = (Query.FORWARD, Query.JOINT, Query.VIDEO)


_SEEN = ("cameras", "height", "width", "supersample", "coarse_meshes", "points", "drawn", "turn")
"""Options that say how pictures are made, not what happens."""


@dataclass(frozen=True)
class World:
    """An environment to evaluate in that is not the one that the data came from, or one of several.

    tasks: all of the environment's if empty.   options: fields of its Config, as `wamkit collect` is given them.
    robot: of a model that a mixture trained, the data set whose robot acts.   protocol: of `wamkit.protocols`; how pictures are
    made is then as in the data, if these are of the same environment, and results go to run/eval/<protocol>.   note: printed with success.
    """

    env: str
    tasks: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    robot: str = ""
    protocol: str = ""
    note: str = ""

    @property
    def words(self) -> str:
        """What the command line says of it."""
        words = ["--protocol", self.protocol] if self.protocol else ["--env", self.env]
        words += ["--tasks", *self.tasks] if self.tasks else []
        words += ["--options", *(f"{k}={json.dumps(v)}" for k, v in self.options.items())] if self.options else []
        return shlex.join([*words, *(["--robot", self.robot] if self.robot else [])])

    def source(self, trained: Mapping[str, Any]) -> dict[str, Any]:
        """As `wamkit.training.source` describes the data's own world. Raises WamkitError for unknown names."""
        known = ENVIRONMENTS.get(self.env).tasks()
        if unknown := set(self.tasks) - set(known):
            name = min(unknown)
            raise WamkitError(f"{self.env} has no task '{name}'{nearest(name, known)}; it has {', '.join(known)}")
        seen = trained["options"] if self.protocol and trained["env"] == self.env else {}
        options = {**{k: seen[k] for k in _SEEN if k in seen}, **self.options}
        return {**trained, "env": self.env, "tasks": list(self.tasks or known), "options": options}


def held_out_frames(
    run: Path, config: dict[str, Any], episodes: int, processes: int = 2, folder: Path | None = None, seed: int = 0
) -> Frames:
    """Recordings from reset states that training never saw, made once and kept in `folder`, or run/eval.

    A third of `episodes` each has no, little and much action noise, as in training; one more a task is off-expert.
    """
    source = config["source"]
    if not source["env"]:
        raise WamkitError(
            f"{run} was trained on data that no environment of wamkit made; name one to evaluate it in: wamkit eval {run} --env NAME"
        )
    store = collect(
        CollectConfig(
            env=source["env"],
            options=source["options"],
            tasks=tuple(source["tasks"]),
            out=(folder or run / "eval") / (f"held-out-{episodes}" + (f"-seed-{seed}" if seed else "")),
            episodes=episodes,
            off_expert=1,
            held_out=True,
            seed=seed,
            processes=processes,
        )  # fmt: skip
    )
    if shared := {m.seed for m in store.episodes} & set(source["seeds"]):
        raise WamkitError(
            f"held-out recordings share the seeds {sorted(shared)[:5]} with training; remove {store.root}"
        )
    return open_frames(store.root)[0]


def evaluate(
    run: Path,
    *,
    episodes: int = 20,
    replan_every: int = 8,
    steps: int | None = None,
    query: str = "policy",
    held_out: int = 6,
    processes: int = 2,
    recordings: Path | None = None,
    report: bool = True,
    world: World | None = None,
    suite: Literal["main", "full"] = "main",
) -> dict[str, Any]:
    """Evaluates `run`, writes run/eval/{summary.json, episodes.parquet, report.html}, prints the table, returns the summary.

    A model that gives no actions is not played in closed loop. world: where to evaluate, if not in the environment that the data came
    from; what is written goes to run/eval/<its name> then. suite: `full` adds counterfactuals, and what the model's own actions do.
    held_out: recordings a task on which imagination is scored; with 0, and where no scripted expert records any, closed loop alone.

    recordings: a folder where several runs on the same data share their held-out recordings.   report: whether to write
    the page. Every part is kept when it is done, so that an evaluation which was cut short continues. Raises WamkitError, before
    any work starts, for an argument that is out of range, a query that the model doesn't know, or a damaged run.
    """
    within(SimpleNamespace(held_out=held_out, processes=processes), held_out=(0, inf), processes=(1, inf))
    robot, out = (world.robot, run / "eval" / (world.protocol or world.env)) if world else ("", run / "eval")
    model, saved = load(run, robot=robot or None), load_checkpoint(run)
    if model.robot is None and (robots := saved.config.get("robots")):
        raise WamkitError(
            f"{run} knows several robots; say where and which one acts: --env NAME --robot {'|'.join(robots)}"
        )
    source = world.source(saved.config["source"]) if world else saved.config["source"]
    options = tuple(source["options"].items())
    protocol = Protocol(
        source["env"], tuple(source["tasks"]), options, episodes, replan_every, query, steps, robot=robot
    )
    acts = any(q in model.queries for q in (Query.POLICY, Query.JOINT))
    if not held_out and (suite == "full" or not acts):
        raise WamkitError(
            "held_out = 0 leaves closed loop alone: the full suite, and a model that gives no actions, need recordings"
        )
    if acts:
        Policy(model, replan_every=replan_every, query=query)
    history = _history(run)
    if shared := set(held_out_seeds(episodes)) & set(source["seeds"]):
        raise WamkitError(f"the evaluation seeds {sorted(shared)[:5]} were trained on")
    frames = held_out_frames(run, {"source": source}, held_out, processes, recordings or out) if held_out else None
    records = closed_loop(run, protocol, processes=processes) if acts else []
    if acts:
        write_records(records, out / "episodes.parquet")
    tables = [success_table(records, world.note if world else "")] if acts else []
    if frames is not None:
        result = imagine(model, frames, steps=steps)
        tables += [fidelity_table(model, result), coupling_table(result)]
    if suite == "full":
        setting = Setting.of(source, model.spec)
        tables += action_tables(run, model, setting, robot=robot, episodes=held_out, processes=processes)
        if {Query.FORWARD, Query.JOINT} & model.queries:
            others = held_out_frames(run, {"source": source}, 2 * held_out, processes, recordings or out, seed=1)
            tables.append(inverse_table(model, frames, others))
        if Query.JOINT in model.queries and replan_every in model.spec.frame_offsets:
            tables.append(foresight_table(run, protocol, processes))
    tables = [t for t in tables if t.rows]
    summary = {
        "run": str(run),
        "family": model.name,
        "step": saved.step,
        "training_seconds": saved.extra.get("elapsed_s"),
        "weights": weights_hash(run),
        "protocol": asdict(protocol)
        | {"seeds": held_out_seeds(episodes), "held_out": held_out, "suite": suite}
        | ({"name": world.protocol} if world and world.protocol else {}),
        "made_by": made_by(),
        "rows": [_json_row(t.title, r) for t in tables for r in t.rows],
    }
    make_folder(out)
    atomic_write(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    print(text_table(tables))
    if report:
        page = _report(run, model, saved, source, history, protocol, records, frames, tables, processes, world)
        print(f"report: {write_report(page, out / 'report.html')}")
    return summary


# ------------------------------------------------------------------------------------------------------------------ tables


def success_table(records: Sequence[Record], note: str = "") -> Table:
    """Success per task and pooled, with intervals and what went wrong, and the latency of queries. note: on the protocol."""
    rows = []
    for task in dict.fromkeys(r.task for r in records):
        own = [r for r in records if r.task == task]
        rate = wilson(sum(r.success for r in own), len(own))
        rows.append(Row(task, rate.value, rate, "at least 85 %", rate.value >= 0.85, ".0%", note=outcomes(own)))
    rate = clopper_pearson(sum(r.success for r in records), len(records))
    latency = np.percentile([x for r in records for x in r.latency_ms], (50, 95))
    rows.append(
        Row(
            "all tasks",
            rate.value,
            rate,
            "at least 95 %",
            rate.value >= 0.95,
            ".1%",
            note="; ".join(filter(None, [outcomes(records), "Clopper-Pearson interval over episodes; tasks: Wilson"])),
        )
    )
    rows.append(
        Row(
            "one query, median",
            latency[0],
            None,
            "at most 25",
            latency[0] <= 25,
            ".1f",
            "ms",
            f"one core, while the other one works too; 95 % took less than {latency[1]:.1f} ms",
        )
    )
    return Table(
        SOLVES,
        " ".join(
            filter(
                None,
                ["Episodes from reset states never trained on, solved if the task's condition held at any step.", note],
            )
        ),
        tuple(rows),
    )


def _figure(name: str, interval: Interval, least: float, unit: str, note: str, fmt: str) -> Row:
    """A row whose target is at least `least`."""
    return Row(name, interval.value, interval, f"at least {least:g}", interval.value >= least, fmt, unit, note)


def fidelity_table(model: Family, result: Imagination) -> Table:
    """How good imagined futures of demonstrations are, for each query and horizon, and the codec's own ceiling."""
    rows = []
    for query in (q for q in ("joint", "video", "forward", "ceiling") if q in result.fidelity):
        part, episode = result.demonstrations(query)
        for offset in model.spec.frame_offsets:
            s = part.score(offset, episode, seed=0)
            if query == "ceiling":
                note = "the truth, written down and read back"
                rows.append(
                    Row(
                        f"ceiling of the codec, +{offset}", s.psnr, None, "at least 30", s.psnr >= 30, ".1f", "dB", note
                    )
                )
                rows.append(_sharpness("ceiling", s))
                continue
            note = "true actions given" if query == "forward" else "nothing given"
            note += f"; copying in brackets: PSNR {s.psnr:.1f} ({s.psnr_copy:.1f}) dB, SSIM {s.ssim:.3f} ({s.ssim_copy:.3f})"
            rows.append(_figure(f"{query}, +{offset}: skill over copying", s.skill, 0.65, "", note, ".3f"))
            note = f"better than copying; {s.moving_share:.0%} of pixels move; {s.windows} windows"
            rows.append(_figure(f"{query}, +{offset}: on moving pixels", s.moving_gain, 6, "dB", note, ".1f"))
            rows.append(_sharpness(query, s))
    for k, offset in enumerate(model.spec.frame_offsets if result.points is not None else ()):
        ratio = result.points_over_still(k)
        note = f"of points that move, in a policy query: {1000 * result.point_error(k):.1f} mm off on average"
        name = f"scene points, +{offset}: error / standing still"
        rows.append(Row(name, ratio.value, ratio, "at most 0.50", ratio.value <= 0.5, ".3f", note=note))
    how = "Skill is 1 for a perfect picture and 0 for a copy of the current frame. Demonstrations only."
    return Table("Is what it imagines right?", how, tuple(rows))


def _sharpness(query: str, s: Score) -> Row:
    note = "edges of what moves, imagined / real: 1 is as sharp, less is blurred"
    return Row(f"{query}, +{s.offset}: sharpness", s.sharpness.value, s.sharpness, fmt=".2f", note=note)


def coupling_table(result: Imagination) -> Table:
    """Whether imagination listens to the action, and whether actions are read off the future."""
    rows = []
    if result.listening is not None:
        ratio = result.true_over_shuffled()
        note, met = "error on moving pixels, same noise; below 1 it listens", ratio.value <= 0.8 and ratio.excludes(1)
        rows.append(
            Row("forward dynamics, true / shuffled actions", ratio.value, ratio, "at most 0.80", met, ".3f", note=note)
        )
    if {"inverse", "policy"} <= set(result.action_error):
        ratio = result.inverse_over_policy()
        note = "against executed actions; below 1 it reads the future"
        rows.append(
            Row(
                "inverse dynamics / policy, action error",
                ratio.value,
                ratio,
                "below 1",
                ratio.value < 1,
                ".3f",
                note=note,
            )
        )
    how = "Ratios of two errors on the same windows; intervals resample whole episodes."
    return Table("Do picture and action belong together?", how, tuple(rows))


def text_table(tables: Sequence[Table]) -> str:
    """The tables for a terminal."""
    lines = []
    for table in tables:
        lines += ["", table.title]
        for r in table.rows:
            interval = f"[{r.interval.low:{r.fmt}}, {r.interval.high:{r.fmt}}]" if r.interval else ""
            verdict = "" if r.passed is None else "met" if r.passed else "MISSED"
            lines.append(f"  {r.name:<42} {r.value:>8{r.fmt}} {r.unit:<3} {interval:<20} {r.target:<14} {verdict}")
    return "\n".join(lines) + "\n"


def _json_row(table: str, r: Row) -> dict[str, Any]:
    low, high = (float(r.interval.low), float(r.interval.high)) if r.interval else (None, None)
    return {
        "table": table,
        "name": r.name,
        "value": float(r.value),
        "low": low,
        "high": high,
        "unit": r.unit,
        "target": r.target,
        "passed": None if r.passed is None else bool(r.passed),
        "note": r.note,
    }


# ------------------------------------------------------------------------------------------------------------------ report


@dataclass(frozen=True)
class Film:
    """One recording asked at every `stride` steps: frames (T, V, 3, H, W) that were real and imagined, F horizons each, and
    imagined scene points (T, F, K, 3)."""

    now: np.ndarray
    real: np.ndarray
    imagined: np.ndarray | None
    actions: np.ndarray | None
    executed: np.ndarray
    points: np.ndarray | None = None


def film(model: Family, frames: Frames, episode: int, query: Query, *, stride: int = 2, seed: int = 0) -> Film:
    """Asks `query` at every `stride` steps of recording `episode`."""
    reach = max(*model.spec.frame_offsets, model.spec.chunk)
    starts = window_starts(frames, reach, stride)
    starts = starts[frames.episode[starts] == episode]
    if not len(starts):
        raise WamkitError(
            f"there is no recording {episode} longer than {reach} steps; there are {frames.episode[-1] + 1}, numbered from 0"
        )
    batch = Windows(frames, model.spec, seed=0, batch_size=1).gather(starts)
    given = {Query.FORWARD: {"actions": batch.action.numpy()}, Query.INVERSE: {"future": batch.future.numpy()}}.get(
        query, {}
    )
    out = model.sample(observations(batch), query, seed=[seed] * len(starts), **given)
    return Film(batch.obs.numpy(), batch.future.numpy(), out.future, out.actions, batch.action.numpy(), out.points)


def sample_episode(
    run: Path, query: Query, episode: int, *, stride: int = 4, seed: int = 0, out: Path | None = None
) -> list[Path]:
    """What `wamkit sample` does: one query along a held-out recording, as an npz and, where pictures come out, a video.

    Raises WamkitError, before any work starts, for an argument that is out of range, a query that the model doesn't
    know, or an `out` that is no folder and cannot become one.
    """
    given = SimpleNamespace(episode=episode, stride=stride, seed=seed)
    within(given, episode=(0, inf), stride=(1, inf), seed=(0, 2**63 - 1))
    model, saved = load(run), load_checkpoint(run)
    if (query := Query(query)) not in model.queries:
        raise UnsupportedQuery(unsupported(model.name, query))
    folder = out or run / "samples"
    make_folder(folder)
    f = film(model, held_out_frames(run, saved.config, 6), episode, query, stride=stride, seed=seed)
    stem, archive = folder / f"{query}-{episode:03d}", io.BytesIO()
    np.savez_compressed(archive, **{k: v for k, v in vars(f).items() if v is not None})
    atomic_write(stem.with_suffix(".npz"), archive.getvalue())
    paths = [stem.with_suffix(".npz")]
    if f.imagined is not None:
        views = range(f.real.shape[2])
        columns = [
            x
            for k in range(f.real.shape[1])
            for v in views
            for x in (f.real[:, k, v], f.imagined[:, k, v], difference(f.real[:, k, v], f.imagined[:, k, v]))
        ]
        paths.append(save_video(stem.with_suffix(".mp4"), side_by_side(columns), 20 / stride, scale=4))
    return paths


def _history(run: Path) -> tuple[list[dict[str, Any]], str | None]:
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


def _report(
    run: Path,
    model: Family,
    saved: Any,
    source: Mapping[str, Any],
    history: tuple[list[dict[str, Any]], str | None],
    protocol: Protocol,
    records: Sequence[Record],
    frames: Frames | None,
    tables: list[Table],
    processes: int,
    world: World | None,
) -> Report:
    rows = {r.name: r for t in tables for r in t.rows}
    last = model.spec.frame_offsets[-1]
    head = [
        "all tasks",
        f"joint, +{last}: skill over copying",
        "forward dynamics, true / shuffled actions",
        "one query, median",
    ]
    metrics, trained = history
    losses = sorted({k for m in metrics for k in m} - {"step", "stage", "lr", "grad_norm", "seconds", "wait"})
    played = clips(run, protocol, records, processes=processes) if records else []
    imagined, stills = _imagined(model, frames) if frames is not None else ((), ())
    minutes = saved.extra["elapsed_s"] / 60
    return Report(
        title=f"{model.name}: {run.name}",
        subtitle=f"{source['episodes']} recorded episodes of {len(source['tasks'])} tasks, {saved.step} training steps in {minutes:.1f} minutes",
        headline=tuple(rows[n] for n in head if n in rows),
        tables=tuple(tables),
        closed_loop=(
            ClosedLoop(
                f"{protocol.episodes} held-out reset states a task",
                tuple(_task_result(t, records) for t in protocol.tasks),
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
        curves=(Curves("Losses", metrics, {k: (k,) for k in losses}),),
        commands=(
            *([trained] if trained else []),
            f"wamkit eval {run} {f'{world.words} ' if world else ''}--episodes {protocol.episodes} --replan-every {protocol.replan_every}",
        ),
        versions=versions(),
        config={k: v for k, v in saved.config.items() if k != "source"}
        | {"source": {k: v for k, v in source.items() if k != "seeds"}},
    )


def _task_result(task: str, records: Sequence[Record]) -> TaskResult:
    own = [r for r in records if r.task == task]
    steps = [r.steps for r in own if r.success]
    p50, p95 = np.percentile([x for r in own for x in r.latency_ms], (50, 95))
    return TaskResult(task, len(steps), len(own), float(np.median(steps)) if steps else None, float(p50), float(p95))


def _imagined(model: Family, frames: Frames) -> tuple[tuple[Imagined, ...], tuple[Still, ...]]:
    """Videos of the first demonstration of every task, and of one off-expert episode, with a still from each."""
    clips_, stills = [], []
    texts = list(dict.fromkeys(frames.text))
    chosen = [(t, next(e for e, x in enumerate(frames.text) if x == t and frames.imitate[e])) for t in texts]
    queries = [q for q in PICTURED[:2] if q in model.queries]
    jobs = [(t, e, q) for t, e in chosen for q in queries]
    off = np.flatnonzero(~frames.imitate)
    if len(off) and Query.FORWARD in model.queries:
        jobs.append(("random actions", int(off[0]), Query.FORWARD))
    for text, episode, query in jobs:
        f = film(model, frames, episode, query)
        name = f"{text}: {'given the actions' if query is Query.FORWARD else 'imagined with its own actions'}"
        for k, offset in enumerate(model.spec.frame_offsets):
            clips_.append(Imagined(name, offset, f.real[:, k, 0], f.imagined[:, k, 0]))
        middle = len(f.now) // 2
        stills.append(
            Still(name, f.now[middle, 0], f.real[middle, :, 0], f.imagined[middle, :, 0], model.spec.frame_offsets)
        )
    return tuple(clips_), tuple(stills)

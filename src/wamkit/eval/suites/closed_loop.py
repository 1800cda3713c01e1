"""Closed loop: success in a simulator from fixed held-out reset states, one record per episode, resumable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wamkit import old_names
from wamkit.config import digest, from_dict, sealed, unsealed
from wamkit.envs.base import held_out_seeds
from wamkit.eval.metrics.intervals import clopper_pearson, clustered_median, mean_rate
from wamkit.eval.protocols import Protocol
from wamkit.eval.registry import EVALUATIONS, Context, Evaluation
from wamkit.eval.results import CLOSED_LOOP, EvalResult, Row, Table
from wamkit.eval.suites.latency import Load, load_note, machine_load
from wamkit.files import StoreError, atomic_write, read_json
from wamkit.inference.model import opened
from wamkit.inference.policy import Session
from wamkit.rollout.loop import rollout
from wamkit.runs.run import Run
from wamkit.types import Episode, Query
from wamkit.workers import run_parallel

SEEDS_PER_JOB = 5


Outcome = Literal[
    "",
    "solved",
    "lost it again",
    "did not move",
    "terminated",
    "never touched",
    "nearly",
    "touched and lost",
    "ran out of time",
    "stopped",
]
OUTCOMES = get_args(Outcome)[1:]
"""Values of `outcome`."""


@dataclass(frozen=True)
class Record:
    """One closed-loop episode.

    steps: up to the first success, or all of them.
    latency_ms: milliseconds of each model query.
    outcome: see the function `outcome`; "" in records of early versions.
    load: of the machine when the episode ended; None in records of earlier versions.
    """

    task: str
    seed: int
    text: str
    success: bool
    steps: int
    latency_ms: tuple[float, ...]
    outcome: Outcome = ""
    load: Load | None = None


@dataclass(frozen=True)
class _Job:
    run: Run
    protocol: Protocol
    task: str
    seeds: tuple[int, ...]


def play(run: Run, protocol: Protocol, task: str, seeds: Sequence[int], images: bool = False) -> list[Episode]:
    """Episodes of `task` from the reset states `seeds`, in this process. The same every time on the same machine.

    images: record images too, and four steps after success.
    """
    policy, env = protocol.make_policy(run), protocol.env.make(task)
    try:
        return [
            rollout(
                env,
                policy,
                seed=s,
                session=Session(s),
                record_images=images,
                steps_after_success=4 if images else 0,
                text=dict(protocol.text).get(task),
            )
            for s in seeds
        ]
    finally:
        env.close()


def _work(job: _Job) -> list[Record]:
    return [_record(e) for e in play(job.run, job.protocol, job.task, job.seeds)]


def _record(e: Episode) -> Record:
    steps = int(e.success.argmax()) + 1 if e.succeeded else len(e)
    latency_ms = tuple(1000 * s for s in e.latency_s)
    return Record(e.task, e.seed, e.text, e.succeeded, steps, latency_ms, outcome(e), machine_load())


STILL = 0.005
"""Largest change of any proprioceptive value, in its own unit (5 mm, 0.3 degrees), of a robot that did not move."""


NEARLY = 1 / 3
"""Share of what there was to do, of which a failure that is called "nearly" leaves no more."""


def outcome(episode: Episode, still: float = STILL) -> Outcome:
    """The course of an episode, one of `OUTCOMES`. The first that holds, of which some only show where the environment
    tells of contact (`touched`) or of what is left to do (`remaining`), see `Environment`:

    solved: success held after the last step.
    lost it again: success held once, but not after the last step. Evaluation stops at the first success, so this is
        seen only where play goes on.
    did not move: no proprioceptive value was ever more than `still` from its first one, up to the last recorded row.
    terminated: the environment ended the episode.
    never touched: the robot did not touch what the task has it move.
    nearly: at the end at most `NEARLY` was left to do of what was left after the first step.
    touched and lost: the robot had touched it, and did not at the end.
    ran out of time: the steps were used up.
    stopped: the caller ended the episode.
    """
    if episode.succeeded:
        return "solved" if episode.success[-1] else "lost it again"
    moved = np.abs(episode.proprio - episode.proprio[:1])
    if len(episode) > 1 and moved.size and (moved <= still).all():
        return "did not move"
    if episode.ended == "terminated":
        return "terminated"
    touched, left = episode.touched, episode.remaining
    if touched is not None and not touched.any():
        return "never touched"
    if left is not None and 0 < left[0] and left[-1] <= NEARLY * left[0]:
        return "nearly"
    if touched is not None and not touched[-1]:
        return "touched and lost"
    return "ran out of time" if episode.ended == "truncated" else "stopped"


def outcomes(records: Sequence[Record]) -> str:
    """Failures counted in words, "3 ran out of time, 1 did not move"; "" if there are none or none were recorded."""
    counts = {kind: sum(r.outcome == kind for r in records) for kind in OUTCOMES[1:]}
    return ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)


def closed_loop(run: Run, protocol: Protocol, *, processes: int = 2, desc: str = "evaluate") -> list[Record]:
    """Plays every task from every held-out reset state and returns the records, task by task. See `closed_loops`."""
    return closed_loops(run, [protocol], processes=processes, desc=desc)[0]


def closed_loops(
    run: Run, protocols: Sequence[Protocol], *, processes: int = 2, desc: str = "evaluate"
) -> list[list[Record]]:
    """Plays every protocol with the same worker processes, and returns the records of each, task by task.

    Finished pieces are kept in run/eval/parts under a key of weights and protocol, so that an evaluation which was cut
    short continues, and a repeated one is read. A damaged piece is played again.
    """
    protocols = [replace(p.replanning(run), steps=p.steps or _default_steps(run, p)) for p in protocols]
    jobs = [
        _Job(run, p, t, held_out_seeds(p.episodes)[i : i + SEEDS_PER_JOB])
        for p in protocols
        for t in p.env.tasks
        for i in range(0, p.episodes, SEEDS_PER_JOB)
    ]
    parts = [_part(job) for job in jobs]
    done = {part: _read_part(part, job) for job, part in zip(jobs, parts, strict=True)}
    todo = [(job, part) for job, part in zip(jobs, parts, strict=True) if done[part] is None]
    work = run_parallel(
        [j for j, _ in todo],
        _work,
        processes=processes,
        desc=desc,
        unit="job",
        describe=lambda j: f"{j.task} seeds {j.seeds}",
    )
    with closing(work):
        for (_, part), records in zip(todo, work, strict=True):
            atomic_write(part, json.dumps(sealed({"records": [asdict(r) for r in records]})).encode())
            done[part] = records
    return [
        [record for job, part in zip(jobs, parts, strict=True) if job.protocol is p for record in done[part] or ()]
        for p in protocols
    ]


def _read_part(path: Path, job: _Job) -> list[Record] | None:
    """The records of a finished piece; None if there is none, or if it is not that of `job`, one record a seed."""
    try:
        data = read_json(path)
        rows = data if isinstance(data, list) else unsealed(data, path)["records"]  # earlier versions: a bare list
        records = [from_dict(Record, row) for row in rows]
    except (StoreError, ValueError, LookupError, TypeError):
        return None
    return records if [(r.task, r.seed) for r in records] == [(job.task, s) for s in job.seeds] else None


def _default_steps(run: Run, protocol: Protocol) -> int:
    return opened(run, protocol.env.embodiment).default_steps(Query(protocol.query))


def _part(job: _Job) -> Path:
    """The file of a piece: that of an earlier version, whose keys hold the digest of the manifest, if there is one."""
    now, before = (
        job.run.home / "eval" / "parts" / f"{_key(job, d)}.json" for d in (job.run.digest, job.run.manifest.digest)
    )
    return before if before.is_file() and not now.is_file() else now


def _key(job: _Job, weights: str) -> str:
    """A key of weights, protocol, task and reset states. Other tasks and episodes do not matter to a piece."""
    p = job.protocol.replanning(job.run)
    played = {
        "env": p.env.env,
        "tasks": None,
        "options": list(old_names.options(p.env.options).items()),
        "episodes": None,
        "replan_every": p.replan_every,
        "query": p.query,
        "steps": p.steps,
        "text": dict(p.text).get(job.task),
        "robot": p.env.embodiment,
    }
    return digest([weights, played, job.task, job.seeds])


def _clip(job: _Job) -> Episode:
    return play(job.run, job.protocol, job.task, job.seeds, images=True)[0]


def clips(
    run: Run, protocol: Protocol, records: Sequence[Record], *, processes: int = 2, failures: int = 1
) -> list[Episode]:
    """One success and up to `failures` failures a task, replayed with images from the same seeds."""
    jobs = []
    for task in protocol.env.tasks:
        own = [r for r in records if r.task == task]
        chosen = [r for r in own if r.success][:1] + [r for r in own if not r.success][:failures]
        jobs += [_Job(run, protocol, task, (r.seed,)) for r in chosen]
    return list(
        run_parallel(
            jobs,
            _clip,
            processes=processes,
            desc="clips",
            unit="clip",
            describe=lambda j: f"{j.task} seed {j.seeds[0]}",
        )
    )


def records_file(records: Sequence[Record]) -> bytes:
    """The per-episode records as the content of a parquet file."""
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist([{**asdict(r), "latency_ms": list(r.latency_ms)} for r in records])
    pq.write_table(table, sink, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def success_table(records: Sequence[Record], note: str = "", groups: Sequence[tuple[str, Sequence[str]]] = ()) -> Table:
    """Success per task and pooled, with intervals and counts of outcomes, and the latency of a query.

    note: on the protocol, added to the table's description.
    groups: names and tasks of groups, each with a row of its own, and a row of their mean where all were played.
    """
    rows = []
    for task in dict.fromkeys(r.task for r in records):
        own = [r for r in records if r.task == task]
        rate = clopper_pearson(sum(r.success for r in own), len(own))
        rows.append(Row(f"success.{task}", task, rate.value, rate, fmt=".0%", note=outcomes(own)))
    rate = clopper_pearson(sum(r.success for r in records), len(records))
    note_pooled = "; ".join(filter(None, [outcomes(records), "intervals are those of Clopper and Pearson"]))
    rows.append(Row("success", "all tasks", rate.value, rate, fmt=".1%", note=note_pooled))
    rows += _group_rows(records, groups)
    times = np.array([x for r in records for x in r.latency_ms])
    episode = np.arange(len(records)).repeat([len(r.latency_ms) for r in records])
    median = clustered_median(times, episode, seed=0)
    loads = [r.load for r in records if r.load is not None]
    took = f"95 % took less than {np.percentile(times, 95):.1f} ms; {load_note(loads)}"
    rows.append(Row("latency.median", "one query, median", median.value, median, fmt=".1f", unit="ms", note=took))
    how = (
        "Episodes from reset states never trained on. An episode is a success if the task's condition held at any step."
    )
    how = f"{how} {note}" if note else how
    return Table("closed_loop", "Does it solve the tasks?", how, tuple(rows), CLOSED_LOOP)


def _group_rows(records: Sequence[Record], groups: Sequence[tuple[str, Sequence[str]]]) -> list[Row]:
    """Success of each group of which every task was played, and the mean over groups where that is all of them."""
    rows, played = list[Row](), {r.task for r in records}
    whole = [(name, tasks) for name, tasks in groups if played.issuperset(tasks)]
    rates = []
    for name, tasks in whole:
        own = [r for r in records if r.task in tasks]
        rates.append(clopper_pearson(sum(r.success for r in own), len(own)))
        note = f"{len(tasks)} tasks"
        rows.append(Row(f"group_success.{name}", f"{name} tasks", rates[-1].value, rates[-1], fmt=".1%", note=note))
    if rates and len(rates) == len(groups):
        mean, note = mean_rate(rates), f"each of the {len(groups)} weighs the same, whatever its number of tasks"
        rows.append(Row("group_success", "mean over groups", mean.value, mean, fmt=".1%", note=note))
    return rows


def evaluated_records(context: Context) -> list[Record]:
    """Records of the evaluation's protocol, played once per context."""
    play = partial(closed_loop, context.run, context.protocol, processes=context.options.processes)
    return context.shared("closed_loop", play)


@EVALUATIONS.register("closed_loop")
class ClosedLoopSuccess(Evaluation):
    """Success in closed loop."""

    order, needs_episodes, cached = 0, False, False

    def needs(self, context: Context) -> bool:
        return context.acts

    def check(self, context: Context) -> None:
        context.protocol.make_policy(context.run)

    def run(self, context: Context) -> EvalResult:
        return EvalResult((success_table(evaluated_records(context), context.protocol.note, context.protocol.groups),))

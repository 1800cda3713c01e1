"""`wamkit eval X Y --paired`: the better of two runs, the certainty, and the episodes that a decision still needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from wamkit.envs.base import held_out_seeds
from wamkit.eval.held_out import check_unseen
from wamkit.eval.metrics.intervals import holm, mcnemar, paired_difference, wilson
from wamkit.eval.metrics.sequential_tests import PairedEProcess
from wamkit.eval.outputs import results_folder, write_result
from wamkit.eval.protocols import Protocol
from wamkit.eval.suites.closed_loop import Record, closed_loop
from wamkit.runs.run import Run
from wamkit.types import EvaluationError, Interval, WamkitError
from wamkit.workers import kept_workers


@dataclass(frozen=True)
class TaskPair:
    """One task.

    first, second: success rates with Wilson's intervals.
    first_only, second_only: reset states in which only one of the runs succeeds.
    p_value: McNemar's, after Holm's correction over tasks.
    """

    task: str
    first: Interval
    second: Interval
    first_only: int
    second_only: int
    p_value: float


@dataclass(frozen=True)
class PairedResult:
    """Two runs on the same reset states.

    difference: success of the second minus the first, in [-1, 1], the mean over tasks.
    interval: the same of all pairs together (`paired_difference`), which is right for a number of episodes that was
        fixed beforehand.
    e, p_value: see `PairedEProcess`; they may be read after any number of episodes.
    winner: "first" or "second" where that is decided at 5 %, else None.
    episodes_left: further episodes, over all tasks, after which a decision is likely (80 %) if the rates stay as they
        are; 0 once decided, None if no number of episodes is in sight.
    """

    runs: tuple[str, str]
    episodes: int
    tasks: tuple[TaskPair, ...]
    difference: float
    interval: Interval
    e: float
    p_value: float
    winner: str | None
    episodes_left: int | None


@kept_workers()
def paired(runs: Sequence[Run], protocol: Protocol, *, processes: int = 2) -> PairedResult:
    """Plays both runs from the same held-out reset states, in the environment that their data came from.

    Prints and returns the result, and writes it to the second run's eval folder. Episodes that were played before are
    read. Raises WamkitError unless the runs are two, of the same environment, tasks and options.
    """
    if len(runs) != 2 or runs[0].path == runs[1].path:
        raise WamkitError(f"a paired comparison is of two runs, got {', '.join(str(r.path) for r in runs)}")
    check_same_env(*runs, ("env", "tasks", "options"))
    if not runs[0].provenance.env.env:
        raise WamkitError(
            f"{runs[0].path} was trained on data that no environment of wamkit made; there is nothing to play in"
        )
    for run in runs:
        check_unseen(run.path, run.learned_from, held_out_seeds(protocol.episodes), "the evaluation seeds")
    played = [
        closed_loop(run, replace(protocol, env=run.provenance.env), processes=processes, desc=run.name) for run in runs
    ]
    result = evidence((str(runs[0].path), str(runs[1].path)), *played)
    name = f"paired-with-{runs[0].name}"
    content = asdict(result) | {"weights": [run.digest for run in runs], "protocol": protocol.to_dict()}
    with results_folder(runs[1].home / "eval", f"{name}.json", protocol.to_dict(), name) as folder:
        path = folder / f"{name}.json"
        write_result(path, content)
    print(text(result))
    print(f"written: {path}")
    return result


def check_same_env(run: Run, other: Run, fields: Sequence[str]) -> None:
    """Raises WamkitError unless the data of both runs agree in these fields of their environment."""
    for name in fields:
        one, two = (getattr(r.provenance.env, name) for r in (run, other))
        if one != two:
            raise WamkitError(
                f"{run.label} and {other.label} were made for different environments: {name} is {one!r} and {two!r}"
            )


def evidence(runs: tuple[str, str], first: Sequence[Record], second: Sequence[Record]) -> PairedResult:
    """The comparison of two lists of records. Raises EvaluationError unless both are of the same tasks and seeds."""
    outcomes = [{(r.task, r.seed): r.success for r in records} for records in (first, second)]
    if outcomes[0].keys() != outcomes[1].keys() or not outcomes[0]:
        odd = sorted(outcomes[0].keys() ^ outcomes[1].keys())[:3]
        raise EvaluationError(f"the runs were not played from the same reset states: {odd or 'there are none'}")
    tasks = list(dict.fromkeys(r.task for r in first))
    pairs = {t: np.array([[o[t, s] for o in outcomes] for u, s in outcomes[0] if u == t]) for t in tasks}
    tests = [mcnemar(p[:, 0], p[:, 1]) for p in pairs.values()]
    rows = []
    for (task, p), test, corrected in zip(pairs.items(), tests, holm([t.p_value for t in tests]), strict=True):
        rates = (wilson(int(p[:, k].sum()), len(p)) for k in (0, 1))
        rows.append(TaskPair(task, *rates, test.first_only, test.second_only, float(corrected)))
    # Reset state by reset state through all tasks: an order that no outcome chose.
    order = sorted(outcomes[0], key=lambda k: (k[1], tasks.index(k[0])))
    both = [np.array([o[k] for k in order], bool) for o in outcomes]
    process, interval = PairedEProcess().update(*both), paired_difference(*both)
    difference = float(np.mean([p[:, 1].mean() - p[:, 0].mean() for p in pairs.values()]))
    try:
        left = process.episodes_left()
    except EvaluationError:  # the runs are so alike that no feasible number of episodes decides
        left = None
    sure = (process.e, process.p_value, process.winner)
    return PairedResult(runs, len(order), tuple(rows), difference, interval, *sure, left)


def text(r: PairedResult) -> str:
    """The result as text for a terminal."""
    lines = [
        f"first   {r.runs[0]}",
        f"second  {r.runs[1]}",
        "",
        f"{'':<28} first  second  only first  only second  p (Holm)",
    ]
    for t in r.tasks:
        lines.append(
            f"{t.task:<28} {t.first.value:>5.0%}  {t.second.value:>6.0%}  {t.first_only:>10}  {t.second_only:>11}  "
            f"{t.p_value:>8.3f}"
        )
    low, high = (100 * x for x in (r.interval.low, r.interval.high))
    gap = f"{100 * r.difference:+.1f} points [{low:+.1f}, {high:+.1f}]"
    lines += ["", f"{r.episodes} pairs; success of the second less that of the first: {gap}"]
    lines.append(f"evidence against equality: e = {r.e:.3g}, anytime-valid p = {r.p_value:.3g}")
    if r.winner:
        lines.append(
            f"decided: the {r.winner} is better (wrong in 5 % of comparisons of equals, however often one looks)"
        )
    elif r.episodes_left is None:
        lines.append("not decided, and nothing seen so far favours either run")
    else:
        lines.append(f"not decided; at these rates likely after {r.episodes_left} more pairs (--episodes)")
    return "\n".join(lines)

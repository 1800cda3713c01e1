"""`wamkit robustness`: whether a run still works under another light, camera, colours, clutter or start; curves, a page and JSON."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

from wamkit.config import check_bounds, without_nan
from wamkit.envs.base import held_out_seeds
from wamkit.envs.spec import EnvSpec
from wamkit.eval.held_out import acting_model, evaluation_env
from wamkit.eval.protocols import Protocol
from wamkit.eval.report.page import write_report
from wamkit.eval.results import Report, Row, Sweep, Table, made_by, versions
from wamkit.eval.suites.robustness import SEVERITIES, Curve, looks, plan, robustness
from wamkit.files import atomic_write
from wamkit.runs.run import Run
from wamkit.types import WamkitError

PICTURED = 2
"""Reset states on the page, of the first task."""


@dataclass(frozen=True)
class Robustness:
    """Plays a run while one thing of the world differs more and more: light, camera, colours, clutter, the hand's start.

    Writes eval/robustness.html and eval/robustness.json. What `wamkit eval` played under the same options is read.
    """

    run: Path
    """Run folder."""
    factors: tuple[str, ...] = ()
    """Factors of variation; all that the environment has if not given."""
    severities: tuple[float, ...] = SEVERITIES
    """From 0, the plain environment, to 1; 0 is always played."""
    episodes: int = 20
    """Held-out reset states a task, the same at every severity."""
    replan_every: int = 8
    """Actions taken of each chunk before the model is asked again."""
    steps: int | None = None
    """Denoising steps a query; the model's own if not given."""
    query: str = "policy"
    """What the policy asks the model: policy, or joint."""
    processes: int = 2
    """Worker processes."""
    env: str = ""
    """Environment to play in, if not the one that the data came from; `tasks`, `options` and `embodiment` as in `wamkit eval`."""
    tasks: tuple[str, ...] = ()
    """Tasks to play; all of the run's, or with `env` all of that environment's, if not given."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """With `env`: fields of the environment's configuration, KEY=VALUE."""
    embodiment: str = ""
    """With `env`: of a model that a mixture trained, the embodiment (a data set) that acts."""

    def __post_init__(self) -> None:
        check_bounds(self, processes=(1, inf))
        if not self.env and (self.options or self.embodiment):
            raise WamkitError("--options and --embodiment say more of an environment: name it, --env NAME")


def sweep(args: Robustness) -> tuple[tuple[Curve, ...], Path]:
    """Prints the table, writes page and JSON, returns the curves and the page.

    Raises WamkitError before anything is played: for an argument out of range, an environment without factors, an unknown factor or
    task, a query that the model doesn't know, or seeds that it was trained on.
    """
    run = Run.open(args.run)
    model, env = acting_model(run, args.embodiment), _env(args, run)
    if not model.spec.point_grid:  # the depth option has no effect on this model, and cannot show distractors
        env = replace(env, options={k: v for k, v in env.options.items() if k != "point_grid"})
    protocol = Protocol(env, args.episodes, args.replan_every, args.query, args.steps)
    plan(protocol, args.factors, args.severities)
    protocol.make_policy(run)
    seeds = held_out_seeds(args.episodes)
    if shared := set(seeds) & set(run.provenance.seeds):
        raise WamkitError(f"the evaluation seeds {sorted(shared)[:5]} were trained on")
    varied = {"factors": args.factors, "severities": args.severities}
    curves = robustness(run, protocol, processes=args.processes, **varied)
    out = args.run / "eval" / args.env
    facts = {
        "run": str(args.run),
        "family": model.name,
        "step": run.step,
        "weights": run.digest,
        "protocol": protocol.to_dict() | {"seeds": seeds},
        "made_by": made_by(),
        "curves": [asdict(c) for c in curves],
    }
    atomic_write(out / "robustness.json", (json.dumps(without_nan(facts), indent=2) + "\n").encode())
    print(text(curves))
    strips = [looks(protocol, protocol.env.tasks[0], seed, **varied) for seed in seeds[:PICTURED]]
    page = Report(
        title=f"{model.name}: {run.name}, varied",
        subtitle=f"{args.episodes} held-out reset states of each of {len(protocol.env.tasks)} tasks, the same at every severity",
        tables=tables(curves),
        sweeps=tuple(
            Sweep(
                c.factor,
                c.meaning,
                tuple(p.severity for p in c.points),
                tuple(p.success for p in c.points),
                tuple(s[c.factor] for s in strips),
            )
            for c in curves
        ),
        commands=(_command(args),),
        versions=versions(),
        config=facts["protocol"] | {"weights": facts["weights"]},
    )
    path = write_report(page, out / "robustness.html")
    print(f"report: {path}")
    return curves, path


def _env(args: Robustness, run: Run) -> EnvSpec:
    """The environment to play in: the one that is named, or the data's own, with all or some of its tasks."""
    if args.env:
        return evaluation_env(run, EnvSpec(args.env, args.tasks, args.options, args.embodiment))
    env = evaluation_env(run, EnvSpec())
    return evaluation_env(run, replace(env, tasks=args.tasks)) if args.tasks else env


def _command(args: Robustness) -> str:
    words = ["wamkit", "robustness", str(args.run), "--episodes", str(args.episodes)]
    words += ["--replan-every", str(args.replan_every), "--query", args.query]
    words += ["--steps", str(args.steps)] * (args.steps is not None)
    for name in ("env", "embodiment"):
        words += [f"--{name}", getattr(args, name)] * bool(getattr(args, name))
    for name in ("factors", "severities", "tasks"):
        values = getattr(args, name)
        words += [f"--{name}", *(f"{v:g}" if isinstance(v, float) else v for v in values)] if values else []
    words += ["--options", *(f"{k}={json.dumps(v)}" for k, v in args.options.items())] if args.options else []
    return shlex.join(words)


def tables(curves: Sequence[Curve]) -> tuple[Table, ...]:
    """What the page says in figures: areas first, then every severity."""
    areas = [
        Row(f"area.{c.factor}", c.factor, c.area.value, c.area, fmt=".2f", note=f"at severity 1: {c.meaning}")
        for c in curves
    ]
    rows = []
    for c in curves:
        for p in c.points:
            rows.append(
                Row(
                    f"success.{c.factor}.{p.severity:g}",
                    f"{c.factor} {p.severity:g}",
                    p.success.value,
                    p.success,
                    fmt=".0%",
                    note=_note(p),
                )
            )
    return (
        Table(
            "robustness",
            "Does it still work when the world differs?",
            "Success to be expected at a severity drawn evenly between 0 and the largest, relative to success at severity 0: 1 if "
            "nothing is lost. Intervals resample reset states.",
            tuple(areas),
        ),
        Table(
            "robustness_success",
            "Success at every severity",
            "Wilson's intervals; pairs are the same reset state at 0.",
            tuple(rows),
        ),
    )


def _note(p: Any) -> str:
    if not p.severity:
        return "the plain environment"
    low, high = (100 * x for x in (p.change.low, p.change.high))
    change = f"{100 * p.change.value:+.0f} points [{low:+.0f}, {high:+.0f}]; solved at 0 alone {p.lost}, here alone {p.gained}"
    return change + "".join(f"; {task} {rate:.0%}" for task, rate in p.by_task.items() if len(p.by_task) > 1)


def text(curves: Sequence[Curve]) -> str:
    """For a terminal."""
    lines = [f"{'factor':<16} severity  success          change to 0, points  lost  gained", ""]
    for c in curves:
        for p in c.points:
            s, d = p.success, p.change
            change = f"{100 * d.value:+4.0f} [{100 * d.low:+.0f}, {100 * d.high:+.0f}]" if p.severity else ""
            row = f"{c.factor:<16} {p.severity:>8g}  {s.value:>4.0%} [{s.low:.0%}, {s.high:.0%}]"
            lines.append((f"{row:<44}  {change:<19} {p.lost:>5} {p.gained:>7}" if p.severity else row).rstrip())
        a = c.area
        area = "undefined: nothing is solved at severity 0" if math.isnan(a.value) else ""
        lines += [f"{'':<16} area over success at 0: {area or f'{a.value:.2f} [{a.low:.2f}, {a.high:.2f}]'}", ""]
    return "\n".join(lines)

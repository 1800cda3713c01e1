"""Tables and the page of a robustness sweep."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from wamkit.envs.base import held_out_seeds
from wamkit.eval.outputs import results_folder, write_result
from wamkit.eval.report.card import arguments
from wamkit.eval.report.page import write_report
from wamkit.eval.results import Report, Row, Sweep, Table, made_by, versions
from wamkit.eval.suites.robustness import Curve, Point, RobustnessSweep, example_images

SHOWN = 2
"""Reset states on the page, of the first task."""


def write_robustness(sweep: RobustnessSweep) -> Path:
    """Prints the table and writes robustness.json and robustness.html into run/eval or run/eval/<env>.

    Returns the path of the page.
    """
    run, protocol, seeds = sweep.run, sweep.protocol, held_out_seeds(sweep.protocol.episodes)
    base = run.home / "eval" / sweep.requested.env.env
    asked = {"factors": list(sweep.factors), "severities": list(sweep.severities)}
    content = {
        "run": run.label,
        "family": run.config.family,
        "step": run.step,
        "weights": run.digest,
        "command": _command(sweep),
        "protocol": protocol.to_dict() | {"seeds": seeds} | asked,
        "made_by": made_by(),
        "curves": [asdict(c) for c in sweep.curves],
    }
    with results_folder(base, "robustness.json", content["protocol"], "robustness") as out:
        write_result(out / "robustness.json", content)
    print(text(sweep.curves))
    task, varied = protocol.env.tasks[0], {"factors": sweep.factors, "severities": sweep.severities}
    strips = [example_images(protocol, task, seed, **varied) for seed in seeds[:SHOWN]]
    page = Report(
        title=f"{run.config.family}: {run.name}, varied",
        subtitle=f"{protocol.episodes} held-out reset states of each of {len(protocol.env.tasks)} tasks, the same at "
        "every severity",
        tables=tables(sweep.curves),
        sweeps=tuple(
            Sweep(
                c.factor,
                c.meaning,
                tuple(p.severity for p in c.points),
                tuple(p.success for p in c.points),
                tuple(s[c.factor] for s in strips),
            )
            for c in sweep.curves
        ),
        commands=(content["command"],),
        versions=versions(),
        config=content["protocol"] | {"weights": content["weights"]},
    )
    path = write_report(page, out / "robustness.html")
    print(f"report: {path}")
    return path


def _command(sweep: RobustnessSweep) -> str:
    p = sweep.requested
    words = ["wamkit", "robustness", sweep.run.label, "--episodes", str(p.episodes)]
    words += ["--replan-every", str(p.replan_every), "--query", p.query]
    words += ["--steps", str(p.steps)] * (p.steps is not None)
    words += ["--factors", *sweep.factors] if sweep.factors else []
    words += ["--severities", *(f"{s!r}" for s in sweep.severities)]
    return " ".join(filter(None, [shlex.join(words), arguments(p)]))


def tables(curves: Sequence[Curve]) -> tuple[Table, ...]:
    """Areas under the curves, and success at every severity."""
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
            "Expected success at a severity drawn evenly between 0 and the largest, relative to success at severity 0: "
            "1 if nothing is lost. Intervals resample reset states.",
            tuple(areas),
        ),
        Table(
            "robustness_success",
            "Success at every severity",
            "Wilson's intervals; pairs are the same reset state at 0.",
            tuple(rows),
        ),
    )


def _note(p: Point) -> str:
    if not p.severity:
        return "the plain environment"
    low, high = (100 * x for x in (p.change.low, p.change.high))
    change = f"{100 * p.change.value:+.0f} points [{low:+.0f}, {high:+.0f}]; "
    change += f"success at 0 alone {p.lost}, here alone {p.gained}"
    return change + "".join(f"; {task} {rate:.0%}" for task, rate in p.by_task.items() if len(p.by_task) > 1)


def text(curves: Sequence[Curve]) -> str:
    """Text for a terminal."""
    lines = [f"{'factor':<16} severity  success          change to 0, points  lost  gained", ""]
    for c in curves:
        for p in c.points:
            s, d = p.success, p.change
            change = f"{100 * d.value:+4.0f} [{100 * d.low:+.0f}, {100 * d.high:+.0f}]" if p.severity else ""
            row = f"{c.factor:<16} {p.severity:>8g}  {s.value:>4.0%} [{s.low:.0%}, {s.high:.0%}]"
            lines.append((f"{row:<44}  {change:<19} {p.lost:>5} {p.gained:>7}" if p.severity else row).rstrip())
        a = c.area
        area = "undefined: no success at severity 0" if math.isnan(a.value) else ""
        lines += [f"{'':<16} area over success at 0: {area or f'{a.value:.2f} [{a.low:.2f}, {a.high:.2f}]'}", ""]
    return "\n".join(lines)

"""`wamkit drive`: a run in its simulator as on a robot, where time goes on while the model computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from wamkit.cli.parse import COMMANDS, Options
from wamkit.config import AtMost, Between, Count, Processes
from wamkit.errors import WamkitError

Milliseconds = Annotated[float, Between(0, 60_000)]


@dataclass(frozen=True)
class Drive(Options):
    """Measure success while every query takes its time, in a simulator whose time does not wait.

    Compares loops under delays, from the same held-out reset states: "wait" stands still during a query, "switch" asks
    while the arm moves and takes the newest chunk, "ensemble" the mean of all that reach a step, and "rtc" the newest,
    asked to go on from what the arm does meanwhile. Writes drive/summary.json into the run folder.
    """

    run: Path
    """Run folder, or file of `wamkit export`."""
    _: KW_ONLY
    latency: tuple[Milliseconds, ...] = (0.0, 50.0, 100.0, 200.0)
    """Milliseconds that a query takes."""
    jitter: Milliseconds = 0.0
    """Standard deviation of these, in milliseconds."""
    loops: tuple[Literal["wait", "switch", "ensemble", "rtc"], ...] = ()
    """Loops to compare; all that the model can run in, if not given."""
    episodes: Annotated[int, Between(1, inf), AtMost(10**6)] = 20
    """Held-out reset states a task."""
    replan_every: Count | None = None
    """Steps between two queries; half of the chunk if not given."""
    steps: Count | None = None
    """Denoising steps a query; the model's own number if not given."""
    query: str = "policy"
    """Query that the policy asks: policy or joint."""
    processes: Processes = 2
    """Worker processes."""
    env: str = ""
    """Environment to play in, if not the one of the data; `tasks`, `options` and `embodiment` as in `wamkit eval`."""
    tasks: tuple[str, ...] = ()
    """Tasks to play; all of the run's, or with `env` all of that environment's, if not given."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `env`, KEY=VALUE: fields of the environment's configuration."""
    embodiment: str = ""
    """Data set of a mixture whose embodiment acts in `env`."""


@COMMANDS.register("drive")
def run(args: Drive) -> None:
    """Plays the loops under the delays, prints the table and writes it.

    Raises WamkitError for a model with history, whose earlier observations come at other steps under a delay.
    """
    from dataclasses import replace

    from wamkit.envs.spec import EnvSpec
    from wamkit.eval.protocols import Protocol
    from wamkit.files import check_place
    from wamkit.runs.config import home, require_run
    from wamkit.types import Query

    if not args.env and (args.options or args.embodiment):
        raise WamkitError("--options and --embodiment describe an environment: name it, --env NAME")
    if not args.latency:
        raise WamkitError("name at least one delay: --latency MILLISECONDS")
    env = EnvSpec(args.env, args.tasks, args.options, args.embodiment)
    if env.env:
        env.check()
    path = require_run(args.run)
    place = home(path) / "drive/summary.json"
    check_place(place)
    from wamkit.envs.base import held_out_seeds
    from wamkit.eval.held_out import check_unseen, evaluation_env
    from wamkit.eval.outputs import write_result
    from wamkit.inference.model import load
    from wamkit.runs.run import Run
    from wamkit.serving.drive import Delay, drives, table

    opened = Run.open(path)
    if opened.spec.past_offsets:
        raise WamkitError(f"{opened.label} looks back at earlier steps, which a delayed loop does not have")
    loops = args.loops or ("wait", "switch", "ensemble", "rtc")
    if "rtc" in loops and load(opened).family.denoised is None:
        unable = f"the family {opened.config.family!r} does not denoise its actions, so 'rtc' cannot join its chunks"
        if args.loops:
            raise WamkitError(f"{unable}: leave it out of --loops")
        loops = tuple(loop for loop in loops if loop != "rtc")
        print(unable)
    where = evaluation_env(opened, env)
    if args.tasks and not args.env:
        where = replace(where, tasks=args.tasks)
        where.check()
    check_unseen(path, opened.sources, held_out_seeds(args.episodes), "the evaluation seeds")
    protocol = Protocol(where, args.episodes, args.replan_every, str(Query(args.query)), args.steps)
    delays = [Delay(ms / 1e3, args.jitter / 1e3) for ms in args.latency]
    rows = table(drives(opened, protocol, loops, delays, processes=args.processes))
    names = ("success", "interval", "stood still", "largest jump", "at seams")
    print(f"{'loop':<10} {'delay':>8} {names[0]:>8} {names[1]:>16} {names[2]:>12} {names[3]:>13} {names[4]:>9}")
    for row in rows:
        interval = f"[{row['low']:.1%}, {row['high']:.1%}]"
        print(
            f"{row['loop']:<10} {row['latency_ms']:>5.0f} ms {row['success']:>8.1%} {interval:>16} "
            f"{row['stood']:>12.0%} {row['jump']:>13.2f} {0 if row['seam'] is None else row['seam']:>9.2f}"
        )
    told = {"run": opened.label, "weights": opened.digest, "protocol": protocol.replanning(opened).to_dict()}
    write_result(place, {**told, "rows": rows})
    print(place)

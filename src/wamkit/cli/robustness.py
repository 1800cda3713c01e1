"""`wamkit robustness`: success under variations of the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from math import inf
from pathlib import Path
from typing import Annotated, Any

from wamkit.cli.parse import COMMANDS, Options
from wamkit.config import AtMost, Between, Count, Processes, Share
from wamkit.errors import WamkitError


@dataclass(frozen=True)
class Robustness(Options):
    """Measure success while light, camera, colours, clutter or the start vary more and more.

    Writes eval/robustness.html and eval/robustness.json into the run folder. Episodes that `wamkit eval` played under
    the same options are reused.
    """

    run: Path
    """Run folder."""
    _: KW_ONLY
    factors: tuple[str, ...] = ()
    """Factors of variation; all that the environment has if not given."""
    severities: tuple[Share, ...] = (0.0, 0.25, 0.5, 1.0)
    """Severities of each factor, from 0, the plain environment, to 1; 0 is always played."""
    episodes: Annotated[int, Between(1, inf), AtMost(10**6)] = 20
    """Held-out reset states a task, the same at every severity."""
    replan_every: Count | None = None
    """Actions taken of each chunk before the model is queried again; half of the chunk if not given."""
    steps: Count | None = None
    """Denoising steps a query; the model's own number if not given."""
    query: str = "policy"
    """Query that the policy asks: policy or joint."""
    processes: Processes = 2
    """Worker processes."""
    executor: str = "local"
    """Executor of the jobs: local, processes of this machine; or ray, the cluster that RAY_ADDRESS names, else one
    that is started on this machine. The figures are the same."""
    env: str = ""
    """Environment to play in, if not the one of the data; `tasks`, `options` and `embodiment` as in `wamkit eval`."""
    tasks: tuple[str, ...] = ()
    """Tasks to play; all of the run's, or with `env` all of that environment's, if not given."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `env`, KEY=VALUE: fields of the environment's configuration."""
    embodiment: str = ""
    """Data set of a mixture whose embodiment acts in `env`."""


@COMMANDS.register("robustness")
def run(args: Robustness) -> None:
    """Plays the variations, prints the table and writes the page."""
    from wamkit.envs.spec import EnvSpec
    from wamkit.eval.protocols import Protocol
    from wamkit.executors.base import executing_on
    from wamkit.files import check_place
    from wamkit.runs.config import home, require_run
    from wamkit.types import Query

    if not args.env and (args.options or args.embodiment):
        raise WamkitError("--options and --embodiment describe an environment: name it, --env NAME")
    env = EnvSpec(args.env, args.tasks, args.options, args.embodiment)
    if env.env:
        env.check()
    protocol = Protocol(env, args.episodes, args.replan_every, str(Query(args.query)), args.steps)
    path = require_run(args.run)
    check_place(home(path) / "eval/robustness.html")
    varied = {"factors": args.factors, "severities": args.severities}
    with executing_on(args.executor):
        from wamkit.eval.report.robustness import write_robustness
        from wamkit.eval.suites.robustness import sweep
        from wamkit.runs.run import Run

        write_robustness(sweep(Run.open(path), protocol, processes=args.processes, **varied))

"""`wamkit eval`: closed loop, imagination and a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from wamkit.cli.parse import COMMANDS, Options
from wamkit.cli.recordings import trained_on
from wamkit.config import AtMost, Between, Count, Episodes, Processes
from wamkit.errors import WamkitError

if TYPE_CHECKING:
    from wamkit.eval.protocols import Protocol
    from wamkit.eval.registry import EvalOptions


@dataclass(frozen=True)
class Eval(Options):
    """Evaluate runs on held-out reset states, in closed loop and in imagination, or on recorded episodes (--data).

    Writes eval/report.html, eval/summary.json and eval/episodes.parquet into the run folder. An evaluation with other
    options than one that is there goes to a folder of its own in eval/, which is printed.
    """

    runs: tuple[Path, ...]
    """Run folders, files of `wamkit export`, or runs on the Hub (USER/NAME), each evaluated by itself; two of them with
    --paired."""
    _: KW_ONLY
    paired: bool = False
    """Compare two runs in closed loop: the better one, the certainty, and the episodes that a decision still needs."""
    offline: bool = False
    """Evaluate on recorded episodes, where there is no environment: those of --data, or those that training left out of
    its own data."""
    data: Path | None = None
    """Data set, or hf://USER/NAME, to evaluate on, where there is no environment: its episodes that the run was not
    trained on, as `wamkit train --episodes.held-out` leaves them out. Actions and imagined frames are compared with
    recorded ones."""
    protocol: str = ""
    """Named protocol of a benchmark; `wamkit list` names all. Sets the environment, its tasks, and the options below
    that are not given."""
    episodes: Annotated[int, Between(1, inf), AtMost(10**6)] | None = None
    """Held-out reset states a task; 20, or the protocol's."""
    replan_every: Count | None = None
    """Actions taken of each chunk before the model is queried again; half of the chunk, or the protocol's."""
    steps: Count | None = None
    """Denoising steps a query; the model's own number if not given."""
    query: str = "policy"
    """Query that the policy asks: policy or joint."""
    held_out: Episodes | None = None
    """Validation episodes a task (one more of them off-expert) on which imagination is scored; 6, or 0 with a protocol,
    which is closed loop only."""
    processes: Processes = 2
    """Worker processes."""
    executor: str = "local"
    """Executor of the jobs: local, processes of this machine; or ray, the cluster that RAY_ADDRESS names, else one
    that is started on this machine. The figures are the same."""
    suite: Literal["main", "full"] = "main"
    """Set of evaluations. full adds physics, counterfactuals, and forecast against execution."""
    encoder: tuple[str, ...] = ()
    """Pretrained encoders for further metrics, by file or hub id: lpips-alex=TRUNK,HEADS lpips-vgg=TRUNK,HEADS
    dinov2=MODEL videomae=MODEL i3d=FILE."""
    env: str = ""
    """Environment to evaluate in, if not the one of the data: for imported data, or for one embodiment of a mixture."""
    tasks: tuple[str, ...] = ()
    """Tasks of `env` or `protocol`; all if not given."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `env` or `protocol`, KEY=VALUE, as for `wamkit collect`: fields of the environment's configuration."""
    embodiment: str = ""
    """Data set of a mixture whose embodiment acts in `env` or `protocol`, or recorded `data`."""
    trackers: tuple[str, ...] = ()
    """Trackers that show the figures as well, beside those of training: tensorboard, csv, trackio, wandb."""
    cache_dir: Path | None = None
    """Folder of all caches; beside the data if not given, or in the user's cache where that cannot be written."""


@COMMANDS.register("eval")
def run(args: Eval) -> None:
    """Evaluates each run, or compares two with --paired."""
    from wamkit.files import caching_in

    _check(args)
    with caching_in(args.cache_dir):
        if args.offline or args.data is not None:
            _evaluate_recorded(args)
        else:
            _evaluate(args)


def _evaluate(args: Eval) -> None:
    """Evaluates each run in an environment, or compares two."""
    from wamkit.executors.base import executing_on
    from wamkit.files import check_place
    from wamkit.runs.config import home, require_run

    protocol = _protocol(args)
    folders = [require_run(path) for path in args.runs]
    for folder in folders:
        check_place(home(folder) / "eval/summary.json")
    with executing_on(args.executor):
        from wamkit.eval.evaluate import evaluate
        from wamkit.eval.suites.paired import paired
        from wamkit.eval.tracked import track
        from wamkit.runs.run import Run

        runs = [Run.open(folder) for folder in folders]
        if args.paired:
            paired(runs, protocol, processes=args.processes)
            return
        for opened in runs:
            track(opened, evaluate(opened, protocol, _options(args)), args.trackers)


def _evaluate_recorded(args: Eval) -> None:
    """Evaluates each run on the episodes that it was not trained on."""
    from wamkit.data.format.hub import data_folder
    from wamkit.files import check_place
    from wamkit.runs.config import home, require_run

    folders = [require_run(path) for path in args.runs]
    from wamkit.eval.recorded import evaluate_recorded

    stores = [data_folder(args.data or trained_on(folder)) for folder in folders]
    for folder in folders:
        check_place(home(folder) / "eval/recorded/summary.json")
    from wamkit.eval.tracked import track
    from wamkit.runs.run import Run

    for opened, data in zip(map(Run.open, folders), stores, strict=True):
        track(opened, evaluate_recorded(opened, data, args.embodiment, steps=args.steps), args.trackers)


def _protocol(args: Eval) -> Protocol:
    """The protocol that the options describe. Raises WamkitError for a name that is unknown."""
    from wamkit.envs.spec import EnvSpec
    from wamkit.eval.encoder_names import encoder_names
    from wamkit.eval.protocols import Protocol, named_protocol
    from wamkit.types import Query

    encoder_names(args.encoder)
    where = (args.tasks, args.options, args.embodiment)
    protocol = named_protocol(args.protocol, *where) if args.protocol else Protocol(EnvSpec(args.env, *where))
    if protocol.env.env:
        protocol.env.check()
    given = {k: getattr(args, k) for k in ("episodes", "replan_every", "steps")}
    given = {k: v for k, v in given.items() if v is not None}
    return replace(protocol, query=str(Query(args.query)), **given)


def _options(args: Eval) -> EvalOptions:
    """The other options. `eval.report.card.command` writes them and the protocol as a command line."""
    from wamkit.eval.registry import EvalOptions

    held_out = args.held_out if args.held_out is not None else 0 if args.protocol else 6
    return EvalOptions(held_out, args.processes, args.suite, args.encoder)


def _check(args: Eval) -> None:
    if not args.runs:
        raise WamkitError("name the run folder to evaluate: wamkit eval RUN")
    if args.offline or args.data is not None:
        unused = {"env", "protocol", "paired", "tasks", "options", "episodes", "replan_every", "held_out", "encoder"}
        if given := sorted(k for k in unused if getattr(args, k)):
            raise WamkitError(
                f"--{'data' if args.data else 'offline'} evaluates on recordings, without an environment: "
                f"leave out --{given[0].replace('_', '-')}"
            )
        return
    if args.env and args.protocol:
        raise WamkitError("--protocol names an environment: leave out --env")
    if not args.env and not args.protocol and (args.tasks or args.options or args.embodiment):
        raise WamkitError("--tasks, --options and --embodiment describe an environment: name it, --env NAME")
    if args.paired and args.trackers:
        raise WamkitError("--paired has no figures of one run alone: leave out --trackers")
    if args.paired and (args.env or args.protocol or args.suite != "main" or args.encoder):
        raise WamkitError(
            "--paired evaluates both runs in the environment of their data; "
            "leave out --env and --suite, --protocol and --encoder"
        )

"""`wamkit eval`: closed loop, imagination and a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wamkit.cli.parse import COMMANDS, Options
from wamkit.errors import WamkitError

if TYPE_CHECKING:
    from wamkit.eval.protocols import Protocol
    from wamkit.eval.registry import EvalOptions


@dataclass(frozen=True)
class Eval(Options):
    """Evaluate runs on held-out reset states, in closed loop and in imagination.

    Writes eval/report.html, eval/summary.json and eval/episodes.parquet into the run folder. An evaluation with other
    options than one that is there goes to a folder of its own in eval/, which is printed.
    """

    runs: tuple[Path, ...]
    """Run folders, each evaluated by itself; two of them with --paired."""
    _: KW_ONLY
    paired: bool = False
    """Compare two runs in closed loop: the better one, the certainty, and the episodes that a decision still needs."""
    protocol: str = ""
    """Named protocol of a benchmark; `wamkit list` names all. Sets the environment, its tasks, and the options below
    that are not given."""
    episodes: int | None = None
    """Held-out reset states a task; 20, or the protocol's."""
    replan_every: int | None = None
    """Actions taken of each chunk before the model is queried again; 8, or the protocol's."""
    steps: int | None = None
    """Denoising steps a query; the model's own number if not given."""
    query: str = "policy"
    """Query that the policy asks: policy or joint."""
    held_out: int | None = None
    """Validation episodes a task (one more of them off-expert) on which imagination is scored; 6, or 0 with a protocol,
    which is closed loop only."""
    processes: int = 2
    """Worker processes."""
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
    """Data set of a mixture whose embodiment acts in `env` or `protocol`."""


@COMMANDS.register("eval")
def run(args: Eval) -> None:
    """Evaluates each run, or compares two with --paired."""
    from wamkit.eval.evaluate import evaluate
    from wamkit.eval.suites.paired import paired
    from wamkit.runs.run import Run

    _check(args)
    protocol, options = asked_for(args)
    runs = [Run.open(folder) for folder in args.runs]
    if args.paired:
        paired(runs, protocol, processes=args.processes)
        return
    for opened in runs:
        evaluate(opened, protocol, options)


def asked_for(args: Eval) -> tuple[Protocol, EvalOptions]:
    """The protocol and the options that the command line describes. `eval.report.card.command` is the inverse."""
    from wamkit.envs.spec import EnvSpec
    from wamkit.eval.protocols import Protocol, named_protocol
    from wamkit.eval.registry import EvalOptions

    where = (args.tasks, args.options, args.embodiment)
    protocol = named_protocol(args.protocol, *where) if args.protocol else Protocol(EnvSpec(args.env, *where))
    given = {k: getattr(args, k) for k in ("episodes", "replan_every", "steps", "query")}
    protocol = replace(protocol, **{k: v for k, v in given.items() if v is not None})
    held_out = args.held_out if args.held_out is not None else 0 if args.protocol else 6
    return protocol, EvalOptions(held_out, args.processes, args.suite, args.encoder)


def _check(args: Eval) -> None:
    if not args.runs:
        raise WamkitError("name the run folder to evaluate: wamkit eval RUN")
    if args.env and args.protocol:
        raise WamkitError("--protocol names an environment: leave out --env")
    if not args.env and not args.protocol and (args.tasks or args.options or args.embodiment):
        raise WamkitError("--tasks, --options and --embodiment describe an environment: name it, --env NAME")
    if args.paired and (args.env or args.protocol or args.suite != "main" or args.encoder):
        raise WamkitError(
            "--paired evaluates both runs in the environment of their data; "
            "leave out --env and --suite, --protocol and --encoder"
        )

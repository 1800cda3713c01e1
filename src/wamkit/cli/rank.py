"""`wamkit rank`: policies ordered inside a world model, beside their order in the simulator."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from math import inf
from pathlib import Path
from typing import Annotated

from wamkit.cli.parse import COMMANDS, Options
from wamkit.config import AtMost, Between, Count, NotNegative, Processes


@dataclass(frozen=True)
class Rank(Options):
    """Rank policies inside a world model and in the simulator, and measure the agreement.

    A success classifier reads the outcome from the imagined frames. Writes eval/rank.html and eval/rank.json into the
    folder of the world model. Policies must be trained apart from each other: checkpoints of one run are not.
    """

    world: Path
    """Run folder of the model that replaces the simulator; it must support `forward`."""
    policies: tuple[Path, ...]
    """Run folders of the policies, four at least."""
    _: KW_ONLY
    episodes: Annotated[int, Between(1, inf), AtMost(10**6)] = 10
    """Held-out reset states a task."""
    replan_every: Count = 8
    """Actions taken of each chunk; the world model must predict that many steps ahead."""
    max_steps: Annotated[int, Between(1, inf), AtMost(10**6)] = 200
    """Steps of an imagined rollout; more than an episode of the simulator has gives it more time there."""
    recordings: Annotated[int, Between(2, inf), AtMost(10**6)] = 12
    """Validation demonstrations a task that train the classifier, and as many perturbed-expert episodes; half as many
    others calibrate it."""
    failure_policies: tuple[Path, ...] = ()
    """Run folders of other policies, none of the ranked ones. Their episodes also train the classifier on failures."""
    classifier_steps: Annotated[int, Between(1, inf), AtMost(10**5)] = 800
    """Training steps of the classifier."""
    candidates: Count = 8
    """Chunks among which the best policy takes the one that the world model scores highest, to measure exploitability;
    1 leaves the test out."""
    spread: NotNegative = 1.0
    """Spread of these candidates, in standard deviations of the actions."""
    processes: Processes = 2
    """Worker processes."""
    executor: str = "local"
    """Executor of the jobs: local, processes of this machine; or ray, the cluster that RAY_ADDRESS names, else one
    that is started on this machine. The figures are the same."""


@COMMANDS.register("rank")
def run(args: Rank) -> None:
    """Prints the tables and writes the page."""
    from wamkit.eval.ranked import check_policies
    from wamkit.executors.base import executing_on
    from wamkit.files import check_place
    from wamkit.runs.config import home, require_run

    check_policies(args.policies, args.failure_policies)
    places = {"world": require_run(args.world)}
    places |= {k: tuple(require_run(p) for p in getattr(args, k)) for k in ("policies", "failure_policies")}
    check_place(home(places["world"]) / "eval/rank.html")
    options = {k: v for k, v in vars(args).items() if k != "executor"} | places
    with executing_on(args.executor):
        from wamkit.eval.report.ranking import write_ranking
        from wamkit.eval.suites import policy_ranking

        write_ranking(policy_ranking.rank(policy_ranking.Rank(**options)))

"""`wamkit check-env`: the environment contract as a test."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial

from wamkit.cli.parse import COMMANDS, Options


@dataclass(frozen=True)
class CheckEnv(Options):
    """Check that an environment keeps the contract: determinism, spaces, images, snapshots."""

    name: str
    """Name of the environment."""
    _: KW_ONLY
    task: str | None = None
    """Task to check; the first if not given."""


@COMMANDS.register("check-env")
def run(args: CheckEnv) -> None:
    """Runs the checker. Raises WamkitError for the first rule that is broken."""
    from wamkit.envs import ENVIRONMENTS, make_env
    from wamkit.envs.spec import EnvSpec

    EnvSpec(args.name, () if args.task is None else (args.task,)).check()
    from wamkit.envs.check import check_env

    task = args.task or ENVIRONMENTS.get(args.name).tasks()[0]
    passed = check_env(partial(make_env, args.name, task=task))
    print(f"{args.name}, {task}: all checks passed ({', '.join(passed)})")
    if "snapshot" not in passed:
        print("note: it takes no snapshots; what compares actions from one state, such as --suite full, leaves it out")

"""`wamkit check-env`: the environment contract as a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

from wamkit.cli.parse import COMMANDS, Options


@dataclass(frozen=True)
class CheckEnv(Options):
    """Check that an environment keeps the contract: determinism, spaces, images, snapshots."""

    name: str
    """Name of the environment."""
    _: KW_ONLY
    task: str | None = None
    """Task to check; the first if not given."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the environment's configuration, KEY=VALUE, as for `wamkit collect`."""


@COMMANDS.register("check-env")
def run(args: CheckEnv) -> None:
    """Runs the checker. Raises WamkitError for the first rule that is broken."""
    from wamkit.envs import make_env
    from wamkit.envs.spec import EnvSpec

    spec = EnvSpec(args.name, () if args.task is None else (args.task,), args.options)
    spec.check()
    from wamkit.envs.check import LEFT_OUT, check_env

    task = args.task or spec.known_tasks()[0]
    passed = check_env(partial(make_env, args.name, **{**spec.options, "task": task}))
    print(f"{args.name}, {task}: all checks passed ({', '.join(passed)})")
    for lack, (checks, meaning) in LEFT_OUT.items():
        if not set(checks) & set(passed):
            print(f"note: {lack}, so these checks are left out: {', '.join(checks)}; {meaning}")

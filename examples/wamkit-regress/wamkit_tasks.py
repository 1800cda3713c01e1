"""A command of wamkit that lives in a package of its own: `wamkit tasks ENV`.

wamkit imports this module for `wamkit --help`, so what is slow to import is imported where it is used.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from wamkit.cli.parse import COMMANDS, Options


@dataclass(frozen=True)
class Tasks(Options):
    """List the tasks of an environment, one a line."""

    env: str
    """Name of the environment."""
    _: KW_ONLY
    containing: str = ""
    """Part of the name, to list only tasks that have it."""


@COMMANDS.register("tasks")
def run(args: Tasks) -> None:
    """Prints the names of the tasks."""
    from wamkit.envs import ENVIRONMENTS

    for task in ENVIRONMENTS.get(args.env).tasks():
        if args.containing in task:
            print(task)

"""An environment as data: its name, its tasks, its options, and the embodiment that acts in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from wamkit.envs.base import ENVIRONMENTS, Environment, check_task, env_config, make_env
from wamkit.types import WamkitError


@dataclass(frozen=True)
class EnvSpec:
    """An environment that is recorded from, played in or evaluated in. JSON-able.

    env: registered name; "" where no environment is named (imported data do not know theirs).
    tasks: names of tasks.
    options: fields of the environment's Config other than the task.
    embodiment: for a model trained on a mixture, the embodiment that acts; "" for the model's own.

    Examples:
        >>> spec = EnvSpec("pusht", ("push-t",))
        >>> spec.tasks
        ('push-t',)
    """

    env: str = ""
    tasks: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    embodiment: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "options", json.loads(json.dumps(dict(self.options))))  # equal after a round trip

    def check(self) -> None:
        """Raises WamkitError for an unknown environment, or a task or an option that it does not have. Builds nothing.

        The message names the nearest.
        """
        known = self.known_tasks()
        for task in self.tasks:
            check_task(self.env, task, known)
        if twice := next((task for task in self.tasks if self.tasks.count(task) > 1), ""):
            raise WamkitError(f"the task {twice!r} is named twice, and would count twice: name it once")
        env_config(self.env, **{**self.options, "task": (self.tasks or known)[0]})

    def known_tasks(self) -> tuple[str, ...]:
        """All tasks of the environment. Raises RegistryError for an unknown environment."""
        return ENVIRONMENTS.get(self.env).tasks_under(self.options)

    @property
    def takes_snapshots(self) -> bool:
        """True if the environment has snapshots."""
        return ENVIRONMENTS.get(self.env).takes_snapshots()

    @property
    def seeded(self) -> bool:
        """True if resets follow their seed, which an option `seeded` may deny."""
        return bool(self.options.get("seeded", ENVIRONMENTS.get(self.env).seeded))

    def make(self, task: str, **more: Any) -> Environment:
        """A new environment of `task`. more: options that replace those of the spec.

        Raises RegistryError for an unknown name and ConfigError for an unknown option or a wrong type.
        """
        return make_env(self.env, **{**self.options, "task": task, **more})

    def shared(self, task: str) -> Environment:
        """The environment of `task`, built once a process: building one takes as long as twenty steps."""
        return _shared(self.env, json.dumps({**self.options, "task": task}, sort_keys=True))


@lru_cache(maxsize=8)
def _shared(env: str, options: str) -> Environment:
    return make_env(env, **json.loads(options))

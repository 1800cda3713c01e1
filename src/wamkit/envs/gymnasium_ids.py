"""Gymnasium ids of environments: `wamkit/CLASS-TASK`, as in `wamkit/MetaWorld-drawer-open-v3`.

Ids of wamkit's own environments are known as soon as both packages are imported. They come from the lists of tasks,
so that nothing of an environment is loaded before it is made. Those of a plug-in are known once its module is imported,
which Gymnasium does itself for `gymnasium.make("wamkit_dot:wamkit/Dot-reach")`.

Gymnasium's version 1.0 dropped entry points for ids; packages register theirs when they are imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from wamkit.envs.libero_tasks import suites
from wamkit.envs.metaworld_tasks import INSTRUCTIONS
from wamkit.envs.physics_scenes import TEXTS
from wamkit.errors import WamkitError

_OWN = {
    "MetaWorld": ("metaworld", INSTRUCTIONS),
    "Physics": ("physics", TEXTS),
    "PushT": ("pusht", ("push-t",)),
    "Reacher": ("reacher", ("reach",)),
}


def gymnasium_id(cls: str, task: str) -> str:
    """The id of a task of the environment class called `cls`; signs that Gymnasium does not allow become hyphens.

    Examples:
        >>> gymnasium_id("MetaWorld", "drawer-open-v3")
        'wamkit/MetaWorld-drawer-open-v3'
    """
    return f"wamkit/{cls}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', task)}"


def register_ids(cls: str, env: str, tasks: Iterable[str]) -> None:
    """Registers an id for each task of the environment `env`, of the class called `cls`, unless it is registered."""
    from gymnasium.envs.registration import EnvSpec, registry

    for task in tasks:
        name = gymnasium_id(cls, task)
        kwargs = {"env": env, "task": task}
        registry.setdefault(name, EnvSpec(name, "wamkit.envs.gymnasium_env:GymnasiumEnv", kwargs=kwargs))


def register_own_ids() -> None:
    """Registers the ids of wamkit's own environments; those of LIBERO where its package is installed."""
    for cls, (env, tasks) in _OWN.items():
        register_ids(cls, env, tasks)
    try:
        libero = [task for tasks in suites().values() for task in tasks]
    except WamkitError:  # not installed
        return
    register_ids("Libero", "libero", libero)

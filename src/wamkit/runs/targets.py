"""Targets of figures, as a recipe or a protocol declares them, and the runs that they are of.

A target belongs to what it was set for: a recipe's to its own budget in its own tasks. Another robot, other tasks or
another way of acting have figures without verdicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from wamkit.envs.spec import EnvSpec
from wamkit.types import Target


@dataclass(frozen=True)
class Targets:
    """Targets by figure.

    env: the environment and tasks that they are for; any where none is named. Its options do not matter.
    figures: key of a figure ("closed_loop.success", as in summary.json), or pattern of keys ("open_loop.skill.*"),
        to its target; the first that fits counts.
    """

    env: EnvSpec = field(default_factory=EnvSpec)
    figures: Mapping[str, Target] = field(default_factory=dict)

    def of(self, figure: str) -> Target | None:
        """The target of a figure; None where it has none."""
        return next((target for pattern, target in self.figures.items() if fnmatchcase(figure, pattern)), None)

    def within(self, env: EnvSpec) -> Targets:
        """These targets where they are for `env`: its environment, and no other tasks. Else none."""
        fits = not self.env.env or (self.env.env == env.env and set(env.tasks) <= set(self.env.tasks))
        return self if fits else replace(self, figures={})

"""Evaluation protocols by name: which tasks, from where, for how long. `wamkit eval RUN --protocol NAME` runs one.

A protocol says what is done, not what a model must have been trained on: one that learned four tasks can be asked for fifty. What is
easily got wrong, and which published numbers a result can stand beside, is part of it, and printed with the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wamkit.envs.libero import MAX_STEPS, suites
from wamkit.envs.metaworld_tasks import INSTRUCTIONS
from wamkit.eval.held_out import World
from wamkit.registry import Registry


@dataclass(frozen=True)
class NamedProtocol:
    """One way of evaluating that others can repeat.

    env, tasks, options: where, as `wamkit collect` is told; how pictures are made is left to the model's own data.
    episodes: reset states a task.   replan_every: actions taken of each chunk; None where the protocol leaves it to the model.
    compares: which published numbers a result can stand beside.   traps: what makes numbers look alike that are not.
    """

    env: str
    tasks: tuple[str, ...]
    episodes: int
    options: Mapping[str, Any] = field(default_factory=dict)
    replan_every: int | None = None
    compares: str = ""
    traps: tuple[str, ...] = ()

    @property
    def usual(self) -> dict[str, int]:
        """What `wamkit eval` takes where the command says nothing. Closed loop alone: imagination is no part of a protocol."""
        replan = {} if self.replan_every is None else {"replan_every": self.replan_every}
        return {"episodes": self.episodes, "held_out": 0} | replan

    def world(
        self, name: str, tasks: tuple[str, ...] = (), options: Mapping[str, Any] | None = None, robot: str = ""
    ) -> World:
        """Where to evaluate; `tasks` restrict, `options` win over the protocol's, and the note says which."""
        changed = [f"{k}={v}" for k, v in (options or {}).items() if k not in self.options or self.options[k] != v]
        less = [f"{len(tasks)} of its {len(self.tasks)} tasks"] if tasks and set(tasks) != set(self.tasks) else []
        departs = ", ".join([*less, *changed])
        note = f"Protocol {name}{f', but for {departs}' if departs else ''}: compares with {self.compares}. Note: {'; '.join(self.traps)}."
        return World(self.env, tasks or self.tasks, {**self.options, **(options or {})}, robot, name, note)


PROTOCOLS: Registry[Callable[[], NamedProtocol]] = Registry("protocol", "wamkit.protocols")

MT10 = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)

_METAWORLD = {"max_steps": 500, "goal_markers": True}
# reach, push and pick-place have random goals that are seen in no other way.

_METAWORLD_TRAPS = (
    "success is held at any step, and play stops there; success at the last step is another, lower number",
    "500 steps, as MetaWorld plays; v1 and many papers stopped at 150 or 200",
    "goals are drawn afresh from the tasks' ranges; MetaWorld's own evaluation takes the 50 goals that were trained on",
    "goal markers are drawn, as by default; a model that learned without them sees them for the first time",
    "a policy that is given the goal's coordinates, as in multi-task reinforcement learning, solves an easier task",
    "v2 and v3 rewards differ, success does not; a mean over tasks is not the mean of the four groups by difficulty",
)


@PROTOCOLS.register("metaworld-mt10")
def metaworld_mt10() -> NamedProtocol:
    """MetaWorld's ten tasks of MT10, 50 unseen goals each, 500 steps."""
    compares = "policies that act on pictures, with 50 goals a task and success at any step"
    return NamedProtocol("metaworld", MT10, 50, _METAWORLD, None, compares, _METAWORLD_TRAPS)


@PROTOCOLS.register("metaworld-mt50")
def metaworld_mt50() -> NamedProtocol:
    """All fifty tasks of MetaWorld, 10 unseen goals each, 500 steps."""
    compares = "LeRobot's evaluation of MT50, as a mean over tasks: 10 episodes each, the same camera and markers"
    return NamedProtocol("metaworld", tuple(INSTRUCTIONS), 10, _METAWORLD, None, compares, _METAWORLD_TRAPS)


_LIBERO_TRAPS = (
    "the k-th episode of a task starts from its k-th published initial state, after ten steps of doing nothing that are not counted",
    "fixtures stand where seed 7 puts them, as in openpi; OpenVLA takes seed 0 (--options seed=0)",
    "pictures are flipped upright; a model of data that was turned by half a turn needs --options turn=rotated",
    "steps are capped by suite, 220 to 520; without the caps success is higher",
    "one model of all four suites and one for each are different claims, and libero_90 is in neither mean",
    "four suites of 500 episodes cannot tell 98.5 % from 99 %",
)


def _libero(suite: str) -> Callable[[], NamedProtocol]:
    def protocol() -> NamedProtocol:
        options = {"max_steps": MAX_STEPS[suite]}
        compares = (
            "openpi's and OpenVLA's evaluation of this suite, 50 trials a task, for models of one demonstration set"
        )
        return NamedProtocol("libero", suites()[suite], 50, options, 5, compares, _LIBERO_TRAPS)

    protocol.__doc__ = f"LIBERO's suite {suite}: its published initial states, {MAX_STEPS[suite]} steps."
    protocol.__module__ = __name__
    return PROTOCOLS.register(suite.replace("_", "-"))(protocol)


for _suite in MAX_STEPS:
    _libero(_suite)


@PROTOCOLS.register("pusht")
def pusht() -> NamedProtocol:
    """PushT, 50 unseen starts, 300 steps, solved at 95 % coverage."""
    compares = "success rates of gym-pusht (LeRobot); Diffusion Policy reports the mean of the greatest coverage, which is higher"
    traps = (
        "published policies saw 96x96 pictures, two at a time",
        "coverage at any step counts, and play stops there",
    )
    return NamedProtocol("pusht", ("push-t",), 50, {"max_steps": 300}, 8, compares, traps)

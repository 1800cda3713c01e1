"""Evaluation protocols by name: which tasks, from which reset states, for how many steps.

`wamkit eval RUN --protocol NAME` runs one. A protocol says how a policy is evaluated, not what it must have been
trained on: a policy that learned four tasks can be evaluated on fifty. Its note names the published results that it
compares with and the usual traps, and is printed with the result. Protocols are closed loop alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Annotated, Any

from wamkit.config import AtMost, Between, Checked, Count
from wamkit.envs.base import HELD_OUT_SEEDS
from wamkit.envs.libero import MAX_STEPS, suites
from wamkit.envs.metaworld_tasks import DIFFICULTY, INSTRUCTIONS
from wamkit.envs.spec import EnvSpec
from wamkit.registry import Registry
from wamkit.runs.recipes import targets_of
from wamkit.runs.targets import Targets
from wamkit.types import half_chunk

if TYPE_CHECKING:
    from wamkit.inference.policy import Policy
    from wamkit.runs.run import Run


@dataclass(frozen=True)
class Protocol(Checked):
    """One way of evaluating a policy in closed loop.

    env: where it acts. Without a name it stands for the environment that a run's data came from; see `evaluation_env`.
    episodes: reset states a task, the first so many held-out seeds.
    replan_every, query, steps: see `Policy`. `replanning` fills in the first.
    text: an instruction in place of each task's own, by task, to test what words do.
    name: of a registered protocol; results then go to run/eval/<name>.
    note: printed with success.
    targets: of figures under this protocol as it is registered; none by default.
    groups: names of groups of tasks, with their tasks: success is then also given of each, and as their mean.
    """

    env: EnvSpec = field(default_factory=EnvSpec)
    episodes: Annotated[int, Between(1, inf), AtMost(HELD_OUT_SEEDS)] = 20
    replan_every: Count | None = None
    query: str = "policy"
    steps: Count | None = None
    text: tuple[tuple[str, str], ...] = ()
    name: str = ""
    note: str = ""
    targets: Targets = field(default_factory=Targets)
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the fields of `env` beside the protocol's own, and without its targets and groups."""
        return asdict(self.env) | {k: v for k, v in asdict(self).items() if k not in ("env", "targets", "groups")}

    def replanning(self, run: Run) -> Protocol:
        """The protocol with what `run` replans after, half of its chunk, if it names nothing itself."""
        return replace(self, replan_every=self.replan_every or half_chunk(run.config.window.chunk))

    def make_policy(self, run: Run) -> Policy:
        """The policy that acts. Raises WamkitError for a query or a horizon that the model does not have."""
        from wamkit.inference.model import opened
        from wamkit.inference.policy import Policy

        model = opened(run, self.env.embodiment)
        return Policy(model, replan_every=self.replan_every, query=self.query, steps=self.steps)


PROTOCOLS: Registry[Callable[[], Protocol]] = Registry("protocol", "wamkit.protocols")


def named_protocol(
    name: str, tasks: tuple[str, ...] = (), options: Mapping[str, Any] | None = None, embodiment: str = ""
) -> Protocol:
    """The protocol registered as `name`, restricted to `tasks`, with `options` that replace its own.

    Its note says where it departs from the registered one. Raises RegistryError for an unknown name.
    """
    own, options = PROTOCOLS.get(name)(), options or {}
    changed = [f"{k}={v}" for k, v in options.items() if k not in own.env.options or own.env.options[k] != v]
    fewer = bool(tasks) and set(tasks) != set(own.env.tasks)
    less = [f"{len(tasks)} of its {len(own.env.tasks)} tasks"] if fewer else []
    departs = ", ".join([*less, *changed])
    env = EnvSpec(own.env.env, tasks or own.env.tasks, {**own.env.options, **options}, embodiment)
    note = f"Protocol {name}{f', but for {departs}' if departs else ''}: {own.note}"
    return replace(own, env=env, name=name, note=note, targets=Targets() if departs else own.targets)


def targets_under(run: Run, requested: Protocol, env: EnvSpec) -> Targets:
    """The targets of an evaluation: the protocol's own, or those of the run's recipe where it acts as recipes do.

    requested: the protocol as it was asked for.   env: where it acts.   None apply to another way of acting, to another
    environment than the recipe's, and to a registered protocol whose options were changed.
    """
    if requested.name in PROTOCOLS:
        own = PROTOCOLS.get(requested.name)()
        same = all(getattr(requested, k) == getattr(own, k) for k in ("replan_every", "query", "steps", "text"))
        return requested.targets if same else Targets()
    if requested.targets.figures or requested != Protocol(episodes=requested.episodes):
        return requested.targets
    return targets_of(run.config).within(env)


def _note(compares: str, traps: tuple[str, ...]) -> str:
    """compares: published results that a result compares with.   traps: ways in which unlike results look alike."""
    return f"compares with {compares}. Note: {'; '.join(traps)}."


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
# The random goals of reach, push and pick-place are visible by their markers alone.

_METAWORLD_TRAPS = (
    "success counts at any step, and play stops there; success at the last step is a lower figure",
    "500 steps, as MetaWorld plays; v1 and many papers stopped at 150 or 200",
    "goals are drawn afresh from the tasks' ranges; MetaWorld's own evaluation takes the 50 goals that were trained on",
    "goal markers are drawn, as by default; a model that learned without them sees them for the first time",
    "a policy that is given the goal's coordinates, as in multi-task reinforcement learning, solves an easier task",
    "v2 and v3 rewards differ, success does not; a mean over tasks is not the mean of the four groups by difficulty",
)


@PROTOCOLS.register("metaworld-mt10")
def metaworld_mt10() -> Protocol:
    """MetaWorld's ten tasks of MT10, 50 unseen goals each, 500 steps."""
    compares = "policies that act on images, with 50 goals a task and success at any step"
    return Protocol(EnvSpec("metaworld", MT10, _METAWORLD), 50, note=_note(compares, _METAWORLD_TRAPS))


@PROTOCOLS.register("metaworld-mt50")
def metaworld_mt50() -> Protocol:
    """All fifty tasks of MetaWorld, 10 unseen goals each, 500 steps."""
    compares = (
        "LeRobot's evaluation of MT50, 10 episodes a task with the same camera and markers: as a mean over tasks, and "
        "as the mean of four groups by difficulty, which most papers print"
    )
    env = EnvSpec("metaworld", tuple(INSTRUCTIONS), _METAWORLD)
    return Protocol(env, 10, note=_note(compares, _METAWORLD_TRAPS), groups=tuple(DIFFICULTY.items()))


_LIBERO_TRAPS = (
    "the k-th episode of a task starts from its k-th published initial state, after ten uncounted steps without action",
    "fixtures stand where seed 7 puts them, as in openpi; OpenVLA takes seed 0 (--options seed=0)",
    "images are flipped upright; a model of data rotated by 180 degrees needs --options turn=rotated",
    "steps are capped by suite, 220 to 520; without the caps success is higher",
    "one model of all four suites and one for each are different claims, and libero_90 is in neither mean",
    "four suites of 500 episodes cannot tell 98.5 % from 99 %",
)


def _libero(suite: str) -> Callable[[], Protocol]:
    def protocol() -> Protocol:
        env = EnvSpec("libero", suites()[suite], {"max_steps": MAX_STEPS[suite]})
        compares = (
            "openpi's and OpenVLA's evaluation of this suite, 50 trials a task, for models of one demonstration set"
        )
        return Protocol(env, 50, replan_every=5, note=_note(compares, _LIBERO_TRAPS))

    protocol.__doc__ = f"LIBERO's suite {suite}: its published initial states, {MAX_STEPS[suite]} steps."
    protocol.__module__ = __name__
    return PROTOCOLS.register(suite.replace("_", "-"))(protocol)


for _suite in MAX_STEPS:
    _libero(_suite)


@PROTOCOLS.register("pusht")
def pusht() -> Protocol:
    """PushT, 50 unseen starts, 300 steps, success at 95 % coverage."""
    compares = (
        "success rates of gym-pusht (LeRobot); Diffusion Policy reports the mean of the greatest coverage, "
        "which is higher"
    )
    traps = (
        "published policies saw 96x96 images, two at a time",
        "coverage at any step counts, and play stops there",
    )
    return Protocol(EnvSpec("pusht", ("push-t",), {"max_steps": 300}), 50, note=_note(compares, traps))

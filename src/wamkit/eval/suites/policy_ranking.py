"""Policy ranking: policies ordered by their success inside a world model, and by their success in the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated

import numpy as np

from wamkit.config import AtMost, Between, Checked, Count, NotNegative, Processes, digest
from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.windows import Frames
from wamkit.envs.base import held_out_seeds
from wamkit.envs.spec import EnvSpec
from wamkit.eval.held_out import check_unseen
from wamkit.eval.metrics.rank_correlation import Agreement, agreement
from wamkit.eval.ranked import check_policies
from wamkit.eval.suites.dual_rollouts import PairedRollouts, PolicyOutcome, starts
from wamkit.eval.suites.paired import check_same_env
from wamkit.imagination.success_classifier import SuccessClassifier, train_success_classifier
from wamkit.inference.checks import unsupported
from wamkit.inference.model import Model, load, opened
from wamkit.rollout.collect import CollectConfig, collect
from wamkit.runs.config import home
from wamkit.runs.run import Run
from wamkit.types import EvaluationError, Query, UnsupportedQuery, WamkitError
from wamkit.workers import kept_workers


@dataclass(frozen=True)
class Rank(Checked):
    """A ranking to make: which world model, which policies, and how.

    world: run folder of the model that replaces the simulator; it must support `forward`.
    policies: run folders of the policies, `LEAST` at least, with separate training: checkpoints of one run do not
    count.
    episodes: held-out reset states a task.
    replan_every: executed actions of each chunk; the world model must imagine that many steps ahead.
    max_steps: of an imagined rollout; more than an episode in the simulator has gives it more time there.
    recordings: validation demonstrations a task that train the classifier, and as many perturbed-expert episodes; half
        as many others calibrate it.
    failure_policies: run folders of other policies, whose episodes also train the classifier.
    classifier_steps: training steps of the classifier.
    candidates: chunks among which the best policy takes the most promising one, to measure exploitability; 1 leaves
        that out.
    spread: of these candidates, in standard deviations of its actions; see `imagined_rollout`.
    processes: worker processes.
    """

    world: Path
    policies: tuple[Path, ...]
    episodes: Annotated[int, Between(1, inf), AtMost(10**6)] = 10
    replan_every: Count = 8
    max_steps: Annotated[int, Between(1, inf), AtMost(10**6)] = 200
    recordings: Annotated[int, Between(2, inf), AtMost(10**6)] = 12
    failure_policies: tuple[Path, ...] = ()
    classifier_steps: Annotated[int, Between(1, inf), AtMost(10**5)] = 800
    candidates: Count = 8
    spread: NotNegative = 1.0
    processes: Processes = 2


@dataclass(frozen=True)
class Exploit:
    """Success of a policy that chooses among `candidates` chunks by the world model's promise.

    imagined: bool (R,), inside the world model.   executed: bool (R,), of the same actions in the simulator.
    """

    run: Run
    candidates: int
    imagined: np.ndarray
    executed: np.ndarray


@dataclass(frozen=True)
class Ranking:
    """Outcomes of all policies, and their agreement.

    rollouts: world model, classifier and reset states.   outcomes: one per policy, in the order of the options.
    agreement: of imagined with real success; None where it is undefined.   undefined: the reason, else "".
    classifier_agreement: of success as the classifier reads it off the simulator's images with real success.
    exploits: of the best policy, as it acts and with a choice; empty where that was left out.
    """

    options: Rank
    world: Run
    failure_policies: tuple[Run, ...]
    rollouts: PairedRollouts
    outcomes: tuple[PolicyOutcome, ...]
    agreement: Agreement | None
    undefined: str
    classifier_agreement: Agreement | None
    exploits: tuple[Exploit, ...]


@kept_workers()
def rank(options: Rank) -> Ranking:
    """Plays every policy inside the world model and in the simulator.

    Finished rollouts are cached, so that an interrupted ranking continues. Raises WamkitError for fewer policies than
    `LEAST`, for models of other shapes or another environment, and where a classifier cannot be trained.
    """
    check_policies(options.policies, options.failure_policies)
    run = Run.open(options.world)
    policies, failing = (tuple(map(Run.open, paths)) for paths in (options.policies, options.failure_policies))
    world, env = load(run), run.provenance.env
    _check_world(options, world)
    for policy in (*policies, *failing):
        _check_policy(run, world, policy)
    for ranked in (run, *policies):
        check_unseen(ranked.path, ranked.learned_from, held_out_seeds(options.episodes), "the evaluation seeds")
    classifier = _classifier(options, env, failing, world)
    training = {"recordings": options.recordings, "classifier_steps": options.classifier_steps}
    weights = {"world": run.digest, "failure_policies": [p.digest for p in failing]}
    rollouts = PairedRollouts(
        home(options.world) / "eval",
        (training, weights, options.episodes, options.replan_every),
        world,
        classifier,
        env,
        starts(env, options.episodes, options.processes),
        options.replan_every,
        options.max_steps,
        options.processes,
    )
    outcomes = []
    for policy in policies:
        real, classified = rollouts.simulated(policy)
        imagined, _ = rollouts.imagined(policy)
        outcomes.append(PolicyOutcome(policy, imagined, real, classified))
    agreed, undefined = agreement_or_reason([o.imagined for o in outcomes], [o.real for o in outcomes])
    limit, _ = agreement_or_reason([o.classified for o in outcomes], [o.real for o in outcomes])
    exploits = _exploits(options, outcomes, rollouts)
    return Ranking(options, run, failing, rollouts, tuple(outcomes), agreed, undefined, limit, exploits)


def agreement_or_reason(predicted: Sequence[np.ndarray], real: Sequence[np.ndarray]) -> tuple[Agreement | None, str]:
    """Agreement of outcomes with real ones, or None and the reason why it is undefined: the outcomes still count."""
    try:
        return agreement(np.stack(predicted), np.stack(real), seed=0), ""
    except EvaluationError as error:
        return None, str(error)


def _check_world(options: Rank, world: Model) -> None:
    if Query.FORWARD not in world.queries:
        raise UnsupportedQuery(unsupported(world.name, Query.FORWARD))
    if options.replan_every not in world.spec.frame_offsets:
        raise WamkitError(
            f"{options.world} imagines {world.spec.frame_offsets} steps ahead, and not {options.replan_every}: "
            "replan_every must be one of them"
        )


def _check_policy(world_run: Run, world: Model, run: Run) -> None:
    """Raises WamkitError for a policy that cannot act inside `world`: other images, values or tasks."""
    model, name = opened(run), world_run.label
    shapes = ("proprio_dim", "action_dim") if run.image else ("height", "width", "proprio_dim", "action_dim")
    for key in ("cameras", *shapes):
        own, other = getattr(model.spec, key), getattr(world.spec, key)
        if own != other:
            raise WamkitError(f"{run.label} cannot act inside of {name}: its {key} is {own}, not {other}")
    if model.spec.point_grid:
        raise WamkitError(f"{run.label} needs the point cloud of a depth camera, which {name} does not imagine")
    if Query.POLICY not in model.queries:
        raise UnsupportedQuery(unsupported(model.name, Query.POLICY))
    if model.spec.chunk < world.spec.chunk:
        raise WamkitError(f"{run.label} gives {model.spec.chunk} actions, and {name} needs {world.spec.chunk}")
    check_same_env(run, world_run, ("env", "tasks"))


def recorded_outcomes(
    options: Rank, env: EnvSpec, failing: Sequence[Run], episodes: int, seed: int, size: tuple[int, int] | None = None
) -> tuple[Frames, np.ndarray]:
    """Validation episodes, and success after every step, bool (N,).

    size: (H, W) to resize images to; None for the recorded size.

    Most are of perturbed experts and of failure policies, so that there is failure to learn from.
    """
    recorded_by = digest([p.digest for p in failing])
    store = collect(
        CollectConfig(
            env=env.env,
            options=env.options,
            tasks=env.tasks,
            out=home(options.world) / "eval" / f"classified-{episodes}-seed-{seed}-{recorded_by}",
            episodes=episodes,
            off_expert=0,
            perturbed_experts=episodes,
            policies=options.failure_policies,
            policy_episodes=2 * episodes if options.failure_policies else 0,
            held_out=True,
            seed=seed,
            processes=options.processes,
        )
    )
    return open_frames(store.root, size)[0], store.numeric()["next.success"]


def _classifier(options: Rank, env: EnvSpec, failing: Sequence[Run], world: Model) -> SuccessClassifier:
    size = world.spec.height, world.spec.width
    train = recorded_outcomes(options, env, failing, options.recordings, seed=11, size=size)
    calibrate = recorded_outcomes(options, env, failing, max(2, options.recordings // 2), seed=12, size=size)
    steps, every = options.classifier_steps, options.replan_every
    return train_success_classifier(*train, *calibrate, world.spec, steps=steps, every=every)


def _exploits(options: Rank, outcomes: Sequence[PolicyOutcome], rollouts: PairedRollouts) -> tuple[Exploit, ...]:
    """Success of the best policy as it acts, and of its search for the world model's favour."""
    if options.candidates == 1:
        return ()
    best = max(outcomes, key=lambda o: float(o.real.mean())).run
    found = []
    for candidates in (1, options.candidates):
        imagined, actions = rollouts.imagined(best, candidates, options.spread if candidates > 1 else 0.0)
        found.append(Exploit(best, candidates, imagined, rollouts.executed(actions)))
    return tuple(found)

"""Robustness: success against the severity of every factor of variation.

Each factor is swept alone, from the plain environment outwards, on the same held-out reset states. A reset state varies
in the same direction at every severity (see `wamkit.envs.variation`). So differences are paired, and need few episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from types import SimpleNamespace

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from wamkit.config import check_bounds, from_dict
from wamkit.envs import ENVIRONMENTS
from wamkit.envs.base import Environment, held_out_seeds
from wamkit.envs.spec import EnvSpec
from wamkit.errors import nearest
from wamkit.eval.held_out import acting_model, check_playable, check_unseen, evaluation_env
from wamkit.eval.metrics.intervals import bootstrap_ratio, clopper_pearson, mcnemar, paired_difference, wilson
from wamkit.eval.protocols import Protocol
from wamkit.eval.suites.closed_loop import Record, closed_loops
from wamkit.runs.run import Run
from wamkit.types import UNDEFINED, EvaluationError, Interval

SEVERITIES = (0.0, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Point:
    """One factor at one severity.

    success: over all episodes, in [0, 1], with Wilson's interval.   by_task: the rate of each task.
    change: of success against severity 0, paired by reset state (`paired_difference`).
    lost, gained: number of reset states with success at severity 0 alone, and here alone.
    """

    severity: float
    success: Interval
    by_task: Mapping[str, float]
    change: Interval
    lost: int
    gained: int


@dataclass(frozen=True)
class Curve:
    """Success under one factor.

    meaning: of severity 1.   points: by ascending severity, 0 first.   area: see `area`.
    """

    factor: str
    meaning: str
    points: tuple[Point, ...]
    area: Interval


@dataclass(frozen=True)
class RobustnessSweep:
    """Curves of a run, and the sweep that made them.

    requested: the protocol as the caller gave it.   protocol: the same with its environment resolved.
    """

    run: Run
    requested: Protocol
    protocol: Protocol
    factors: tuple[str, ...]
    severities: tuple[float, ...]
    curves: tuple[Curve, ...]


def sweep(
    run: Run,
    protocol: Protocol,
    *,
    factors: Sequence[str] = (),
    severities: Sequence[float] = SEVERITIES,
    processes: int = 2,
) -> RobustnessSweep:
    """`robustness` of `run` in the environment that `protocol` names, or in that of its data.

    Raises WamkitError before anything is played: for an environment without factors, an unknown factor or task, a query
    that the model does not support, or seeds of the training.
    """
    check_bounds(SimpleNamespace(processes=processes), processes=(1, inf))
    protocol = protocol.replanning(run)
    env = _env(run, protocol.env)
    if not acting_model(run, env.embodiment).spec.point_grid:
        # The depth option has no effect on this model, and cannot show distractors.
        env = replace(env, options={k: v for k, v in env.options.items() if k != "point_grid"})
    resolved = replace(protocol, env=env)
    plan(resolved, factors, severities)
    resolved.make_policy(run)
    check_playable(run, env)
    check_unseen(run.path, run.learned_from, held_out_seeds(protocol.episodes), "the evaluation seeds")
    curves = robustness(run, resolved, factors=factors, severities=severities, processes=processes)
    return RobustnessSweep(run, protocol, resolved, tuple(factors), tuple(severities), curves)


def _env(run: Run, given: EnvSpec) -> EnvSpec:
    """The environment to play in. Tasks without an environment are those of the data's own."""
    if given.env or not given.tasks:
        return evaluation_env(run, given)
    return evaluation_env(run, replace(evaluation_env(run, EnvSpec()), tasks=given.tasks))


def robustness(
    run: Run,
    protocol: Protocol,
    *,
    factors: Sequence[str] = (),
    severities: Sequence[float] = SEVERITIES,
    processes: int = 2,
) -> tuple[Curve, ...]:
    """Plays `run` under every factor and severity; returns one curve per factor, of all factors if none is named.

    Episodes that were played before are read, those of the plain evaluation under the same protocol included. Factors
    in the options of `protocol` are set aside: a curve begins in the plain environment even if training did not.
    Raises EvaluationError as `plan`, before anything is played.
    """
    settings = plan(protocol, factors, severities)
    meaning = environment(protocol.env.env).factors
    records = closed_loops(run, list(settings.values()), processes=processes, desc="robustness")
    played = dict(zip(settings, records, strict=True))
    return tuple(
        curve(f, meaning[f], {s: own for (g, s), own in played.items() if g == f or s == 0})
        for f in dict.fromkeys(f for f, s in settings if s)
    )


def environment(name: str) -> type[Environment]:
    """The class of an environment with factors. Raises EvaluationError, with the names of those, for one without."""
    cls = ENVIRONMENTS.get(name)
    if not cls.factors:
        known = [n for n in ENVIRONMENTS.names() if ENVIRONMENTS.get(n).factors]
        raise EvaluationError(f"environment {name!r} has no factors of variation; those that have: {', '.join(known)}")
    return cls


def plan(
    protocol: Protocol, factors: Sequence[str] = (), severities: Sequence[float] = SEVERITIES
) -> dict[tuple[str, float], Protocol]:
    """The protocol of every factor and severity; the plain one, which all share, comes first as ("", 0.0).

    Raises EvaluationError for an environment without factors, an unknown factor, severities outside [0, 1] or none
    above 0, and ConfigError where the environment refuses a factor along with the protocol's other options.
    """
    cls = environment(protocol.env.env)
    if unknown := [f for f in factors if f not in cls.factors]:
        known = ", ".join(cls.factors)
        raise EvaluationError(
            f"{protocol.env.env} has no factor {unknown[0]!r}{nearest(unknown[0], cls.factors)}; it has: {known}"
        )
    above = sorted({float(s) for s in severities} - {0.0})
    if not above or not all(0 < s <= 1 for s in above):
        raise EvaluationError(
            f"severities lie in [0, 1], one at least above 0; got {', '.join(f'{s:g}' for s in severities) or 'none'}"
        )
    env = replace(protocol.env, options={k: v for k, v in protocol.env.options.items() if k not in cls.factors})
    settings = {("", 0.0): replace(protocol, env=env)}
    for factor in dict.fromkeys(factors or cls.factors):
        for severity in above:
            from_dict(cls.Config, {"task": env.tasks[0], **env.options, factor: severity})
            varied = replace(env, options={**env.options, factor: severity})
            settings[factor, severity] = replace(protocol, env=varied)
    return settings


def curve(factor: str, meaning: str, played: Mapping[float, Sequence[Record]]) -> Curve:
    """Curve of one factor. played: severity -> records.

    Raises EvaluationError where severity 0 is missing, or reset states differ.
    """
    outcomes = {s: {(r.task, r.seed): r.success for r in played[s]} for s in sorted(played)}
    states = list(outcomes.get(0.0, ()))
    if not states or any(set(own) != set(states) for own in outcomes.values()):
        raise EvaluationError(f"{factor}: need the same reset states at severity 0 and at every other one")
    success_SN = np.array([[own[k] for k in states] for own in outcomes.values()], bool)
    task_N = np.array([task for task, _ in states])
    points = []
    for severity, success_N in zip(outcomes, success_SN, strict=True):
        pairs = mcnemar(success_SN[0], success_N)
        by_task = {str(t): float(success_N[task_N == t].mean()) for t in dict.fromkeys(task_N)}
        change = paired_difference(success_SN[0], success_N) if severity else Interval(0.0, 0.0, 0.0)
        success = wilson(int(success_N.sum()), len(success_N))
        points.append(Point(severity, success, by_task, change, pairs.first_only, pairs.second_only))
    return Curve(factor, meaning, tuple(points), area(np.array(list(outcomes)), success_SN))


def area(severities: Float64[np.ndarray, " S"], success: Bool[np.ndarray, "S N"], seed: int = 0) -> Interval:
    """Area under the curve of success, over that of a policy that keeps its success at severity 0.

    It is the expected success at a severity drawn evenly between 0 and the largest, with straight lines between those
    played (trapezoids), relative to success at severity 0: 1 if nothing is lost, 0 if all is, above 1 for a policy that
    does better varied, NaN without success at severity 0.
    severities: ascending from 0.   success: row = severity, column = reset state.

    In the interval reset states vary, with all their outcomes. Where no outcome differs from that at severity 0 this
    shows no spread; the interval is then as wide as the share of states (Clopper and Pearson) that might have differed
    unseen. Blind spot: the severity at which success is lost.
    """
    success_SN = np.asarray(success, np.float64)
    plain_N = success_SN[0]
    if not plain_N.any():
        return UNDEFINED
    area_N = np.trapezoid(success_SN, severities, axis=0) / (severities[-1] - severities[0])
    if (success_SN == plain_N).all():
        unseen = clopper_pearson(0, len(plain_N)).high / plain_N.mean()
        return Interval(1.0, max(0.0, 1 - unseen), 1 + unseen)
    most = 1 / float(plain_N.mean())  # of a policy that fails plain and always succeeds varied
    return bootstrap_ratio(area_N, plain_N, np.arange(len(plain_N)), seed, bounds=(0.0, most))


def example_images(
    protocol: Protocol, task: str, seed: int, *, factors: Sequence[str] = (), severities: Sequence[float] = SEVERITIES
) -> dict[str, UInt8[np.ndarray, "S 3 VH W"]]:
    """Images of the reset state `seed` by factor, at severity 0 and at every other one, with views one below the other.

    Raises as `plan`.
    """
    seen: dict[tuple[str, float], np.ndarray] = {}
    for key, setting in plan(protocol, factors, severities).items():
        env = setting.env.make(task)
        try:
            seen[key] = np.concatenate(env.reset(seed=seed)[0]["images"], axis=1)
        finally:
            env.close()
    names = dict.fromkeys(f for f, s in seen if s)
    return {f: np.stack([p for (g, s), p in seen.items() if g == f or s == 0]) for f in names}

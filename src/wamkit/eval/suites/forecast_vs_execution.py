"""Forecast errors, policy errors and inconsistency: a model's prediction, its executed actions, and an expert's,
compared.

From a state of an expert's episode the model predicts actions and a future together, and the simulator executes the
actions.
Three comparisons of the frames separate faults that success alone mixes: predicted with demonstrated (forecast),
executed with demonstrated (policy), and predicted with executed (consistency): "the video is right, the arm is wrong".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from jaxtyping import UInt8

from wamkit.data.image_transform import ImageTransform
from wamkit.envs.spec import EnvSpec
from wamkit.eval.held_out import check_unseen
from wamkit.eval.metrics.image import TAU
from wamkit.eval.metrics.intervals import bootstrap_ratio
from wamkit.eval.registry import EVALUATIONS, Context, Evaluation
from wamkit.eval.results import ACTION, EvalResult, Row, Table, Worst
from wamkit.eval.suites.counterfactuals import FIRST_SEED
from wamkit.inference.checks import row_seeds
from wamkit.inference.model import opened
from wamkit.rollout.replay import expert_episode, observed, rollout_from, shown_at
from wamkit.runs.run import Run
from wamkit.types import UNDEFINED, EvaluationError, Interval, Query
from wamkit.workers import run_parallel


@dataclass(frozen=True)
class Execution:
    """One state and three continuations of F frames each.

    now: uint8 (V, 3, H, W), the image at the state.
    demonstrated: uint8 (F, V, 3, H, W), under the expert's actions.   executed: under the model's actions.
    imagined: as the model predicts; None for a model that predicts no frames with its actions.
    """

    task: str
    seed: int
    step: int
    now: UInt8[np.ndarray, "V 3 H W"]
    demonstrated: UInt8[np.ndarray, "F V 3 H W"]
    executed: UInt8[np.ndarray, "F V 3 H W"]
    imagined: UInt8[np.ndarray, "F V 3 H W"] | None


@dataclass(frozen=True)
class ExecutionScore:
    """Skills, 1 - error / error of a frame in which nothing moves, on pixels that move in any of the three
    continuations.

    1 is best, 0 no motion. Intervals resample episodes. NaN where the model predicts no frames, or nothing moved. Blind
    spot: tasks have several good solutions, and policy and forecast are scored against the expert's alone; consistency
    is not.
    """

    states: int
    episodes: int
    forecast: Interval
    policy: Interval
    consistency: Interval


def _work(job: tuple[Run, EnvSpec, str, int, int]) -> list[Execution]:
    run, where, task, seed, stride = job
    model, env, spec = opened(run, where.embodiment), where.shared(task), run.spec
    query = Query.JOINT if Query.JOINT in model.queries else Query.POLICY
    episode, reach, out = shown_at(expert_episode(env, seed), spec), max(*spec.frame_offsets, spec.chunk), []
    assert episode.images is not None and episode.snapshots is not None  # an expert's episode is recorded whole
    for t in range(0, max(1, len(episode) - reach), stride):
        answer = model.sample([observed(episode, t, spec.past_offsets)], query, seed=row_seeds(7919 * seed + t, 1))
        low, high = env.action_space.low, env.action_space.high
        chunk = np.zeros((spec.chunk, len(low)), np.float32)
        taken = episode.action[t : t + spec.chunk]
        chunk[: len(taken)] = taken  # after success the expert holds still
        chunks = np.stack([chunk, np.clip(answer.actions[0], low, high)])
        futures, _ = rollout_from(env, episode.snapshots[t], chunks, spec.frame_offsets)
        demonstrated, executed = ImageTransform.of(spec)(futures)
        imagined = None if answer.future is None else answer.future[0]
        out.append(Execution(task, seed, t, episode.images[t], demonstrated, executed, imagined))
    return out


def _seeds(first: int, episodes: int) -> range:
    return range(FIRST_SEED + first, FIRST_SEED + first + episodes)


def executions(
    run: Run, env: EnvSpec, *, first: int = 0, episodes: int = 3, stride: int = 8, processes: int = 2
) -> list[Execution]:
    """Queries the run at every `stride` steps of `episodes` of an expert's episodes a task, from unseen reset states.

    The same on any number of processes. Raises WamkitError for a model that gives no actions, and one that was trained
    on these reset states.
    """
    seeds = _seeds(first, episodes)
    check_unseen(run.path, run.learned_from, seeds, "the evaluation seeds")
    jobs = [(run, env, task, seed, stride) for task in env.tasks for seed in seeds]
    work = run_parallel(
        jobs, _work, processes=processes, desc="execute", unit="episode", describe=lambda j: f"{j[2]}, seed {j[3]}"
    )
    with closing(work):
        return [state for states in work for state in states]


def execution_score(states: Sequence[Execution], seed: int = 0) -> ExecutionScore:
    """Skills pooled over states. Raises EvaluationError for no states."""
    if not states:
        raise EvaluationError("there are no states with executed actions")
    cluster = np.unique([f"{s.task} {s.seed}" for s in states], return_inverse=True)[1]
    rows = np.array([_errors(s) for s in states])

    def skill(error: int, still: int) -> Interval:
        if np.isnan(rows[:, error]).any() or not rows[:, still].sum():
            return UNDEFINED
        r = bootstrap_ratio(rows[:, error], rows[:, still], cluster, seed, bounds=(0.0, inf))
        return Interval(1 - r.value, 1 - r.high, 1 - r.low, r.level)

    return ExecutionScore(len(states), int(cluster.max()) + 1, skill(0, 3), skill(1, 3), skill(2, 4))


def _errors(s: Execution) -> tuple[float, float, float, float, float]:
    """Squared errors of forecast, policy and consistency, and of no motion against the demonstrated and the executed
    frames."""
    flat = lambda x: torch.from_numpy(np.ascontiguousarray(x)).float().div(255)  # noqa: E731
    now, demo, executed = flat(s.now).unsqueeze(0), flat(s.demonstrated), flat(s.executed)
    frames = [demo, executed] + ([] if s.imagined is None else [flat(s.imagined)])
    moves = torch.stack([((x - now).abs() > TAU).any(-3, keepdim=True) for x in frames]).any(0)
    error = lambda a, b: float(((a - b).square() * moves).sum())  # noqa: E731
    nan = float("nan")
    imagined = (nan, nan) if s.imagined is None else (error(frames[2], demo), error(frames[2], executed))
    return imagined[0], error(executed, demo), imagined[1], error(now, demo), error(now, executed)


def diagnosis(score: ExecutionScore) -> str:
    """The fault in words, by `judged`. Where the intervals do not decide, as those of one episode, it says so first."""
    skills = score.forecast, score.policy, score.consistency
    right, words = judged(*skills)
    if right is not None or score.policy.undefined:
        return words
    few = "one episode: no interval" if score.episodes == 1 else f"{score.episodes} episodes do not decide"
    signs = (math.nan if s.undefined else np.sign(s.value) for s in skills)
    return f"{few}; the figures alone would say: {judged(*(Interval(x, x, x) for x in signs))[1]}"


def judged(forecast: Interval, policy: Interval, consistency: Interval) -> tuple[bool | None, str]:
    """True if the intervals of the three skills show no fault, False for a fault, None if they do not decide; in words.

    A comparison is right where its interval lies above 0, the skill of frames in which nothing moves, and wrong where
    it lies below. Of two right ones, one is worse where their intervals do not meet.
    """
    if policy.undefined:
        return None, "nothing moved, so faults cannot be told apart"
    video, arm = _is_right(forecast), _is_right(policy)
    if forecast.undefined and arm is not None:
        return arm, f"it predicts no frames; its actions {'do' if arm else 'do not do'} what the expert's did"
    if video and (arm is False or policy.high < forecast.low):
        said = "it predicts what the expert did, and its actions do something else"
        return False, f"the video is right, the arm is wrong: {said}"
    if arm and (video is False or forecast.high < policy.low):
        return False, "forecast error: the arm is right, the video is wrong"
    if video and arm:
        return True, "no fault found: it predicts what the expert did, and does it"
    if video is False and arm is False and _is_right(consistency) is not None:
        if _is_right(consistency):
            return False, "policy error: it does what it predicts, and that is not what the expert did"
        said = "it predicts something else than the expert did, and does something else again"
        return False, f"both are wrong: {said}"
    return None, "whether its video or its arm is wrong does not show"


def _is_right(skill: Interval) -> bool | None:
    """True above the skill of no motion, False below; None where the interval holds it."""
    return True if skill.low > 0 else False if skill.high <= 0 else None


def execution_videos(states: Sequence[Execution], view: int = 0) -> dict[str, UInt8[np.ndarray, "T 3 H W"]]:
    """The farthest frame of each state, by name: demonstrated, imagined (black if there is none) and executed."""
    blank = np.zeros_like(states[0].demonstrated)
    parts = [(s.demonstrated, blank if s.imagined is None else s.imagined, s.executed) for s in states]
    names = ("demonstrated", "imagined", "executed")
    return {name: np.stack([p[k][-1, view] for p in parts]) for k, name in enumerate(names)}


def execution_table(states: Sequence[Execution]) -> Table:
    """Skills of forecast, policy and consistency; those without a case are left out."""
    score = execution_score(states)
    figures = (
        ("forecast", score.forecast, "imagined against the expert"),
        ("policy", score.policy, "executed against the expert"),
        ("consistency", score.consistency, "imagined against executed"),
    )
    rows = [Row(name, name, x.value, x, fmt=".3f", note=note) for name, x, note in figures if not x.undefined]
    how = (
        f"{len(states)} states of experts' episodes. Its actions are executed, and the imagined future, the executed "
        "one and the expert's are compared. 1 is the same image, 0 as far as one in which nothing moves."
    )
    return Table("forecast_vs_execution", "The video, the arm, or both?", how, tuple(rows), ACTION)


def _worst(states: Sequence[Execution], count: int = 1) -> list[Worst]:
    """Videos of the episodes with the least consistency or, for a model that imagines nothing, the worst policy."""
    episodes: dict[tuple[str, int], list[Execution]] = {}
    for s in states:
        episodes.setdefault((s.task, s.seed), []).append(s)
    scores = {k: execution_score(v) for k, v in episodes.items()}
    skill = {k: (s.policy if s.consistency.undefined else s.consistency).value for k, s in scores.items()}
    worst = sorted((v, k) for k, v in skill.items() if not np.isnan(v))[:count]
    return [
        Worst(
            ACTION,
            f"{task}: its own actions",
            execution_videos(episodes[task, seed]),
            3.0,
            f"seed {seed}, skill {value:.2f}",
        )
        for value, (task, seed) in worst
    ]


def _episodes(context: Context) -> int:
    return max(1, context.options.held_out // 2)


@EVALUATIONS.register("forecast_vs_execution")
class ForecastVsExecution(Evaluation):
    """Comparison of the imagined future, the executed one, and the expert's."""

    suite, order, needs_snapshots = "full", 60, True

    def needs(self, context: Context) -> bool:
        return context.acts

    def check(self, context: Context) -> None:
        context.check_unseen(_seeds(0, _episodes(context)), "the evaluation seeds")

    def run(self, context: Context) -> EvalResult:
        processes = context.options.processes
        states = executions(context.run, context.env, episodes=_episodes(context), processes=processes)
        return EvalResult((execution_table(states),), tuple(_worst(states)))

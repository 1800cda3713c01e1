"""Expectations of metrics of actions, forecasts, rankings and differences, as data (see `judge`); functions without
any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wamkit.eval.metatest.judge import NOISE, Metric, Suite
from wamkit.eval.metatest.reference_actions import EDITS, SQUARE, EditedFutures, moving_square
from wamkit.eval.metatest.reference_actions import noisy as noisy_future
from wamkit.eval.metatest.reference_branches import MODELS, noisy
from wamkit.eval.metrics import rank_correlation as ranking
from wamkit.eval.metrics.intervals import barnard, mcnemar, paired_ratio
from wamkit.eval.metrics.sequential_tests import PairedEProcess, iqm, mean_success, probability_of_improvement
from wamkit.eval.probes.inverse_dynamics import action_recoverability, train_inverse
from wamkit.eval.suites.counterfactuals import Counterfactuals, score
from wamkit.eval.suites.forecast_consistency import LEAST, ForecastEpisode, auc, success_prediction
from wamkit.eval.suites.forecast_vs_execution import Execution, ExecutionScore, execution_score
from wamkit.rollout.replay import STILL
from wamkit.types import EvaluationError


def counterfactual_suite(
    states: Sequence[Counterfactuals], levels: Sequence[float] = (5.0, 10.0, 20.0, 40.0, 80.0)
) -> Suite:
    """Metrics of snapshot counterfactuals (`suites.counterfactuals`)."""
    models = MODELS | {f"{NOISE}{level:g}": noisy(level) for level in levels}
    answers = {name: score(states, model) for name, model in models.items()}
    how = f"{len(states)} states. From each the simulator carries out about {len(states[0].names)} chunks of actions."

    def metric(name: str, best: float, **more: Any) -> Metric:
        return Metric(name, ("suites.counterfactuals.score",), lambda a: getattr(a, name).value, best, **more)

    metrics = (
        metric(
            "identified",
            1.0,
            order=(("noisy oracle", "action-blind"), ("action-blind", "opposite")),
            varies={"noisy oracle": "noise below the differences"},
        ),
        metric("direction", 1.0, order=(("noisy oracle", "action-blind"), ("action-blind", "opposite"))),
        metric("gain", 1.0, tolerance=1e-3, order=(("noisy oracle", "action-blind"), ("action-blind", "opposite"))),
        metric("skill", 1.0, order=(("noisy oracle", "copy"),)),
        metric("drift", 0.0, blind={"still": "change imagined where nothing is done"}),
        metric(
            "regret",
            0.0,
            varies={"noisy oracle": "noise below the differences"},
            order=(("noisy oracle", "action-blind"),),
        ),
    )
    return Suite(
        "Does it imagine what its actions do?",
        how,
        answers,
        metrics,
        tuple(n for n in models if n.startswith(NOISE)),
    )


def execution_suite(states: Sequence[Counterfactuals]) -> Suite:
    """Metrics of imagined, executed and demonstrated futures (`suites.forecast_vs_execution`), made of branches."""

    def put(done: int | str, imagined: int | str) -> ExecutionScore:
        pick = lambda s, i: s.future[i] if isinstance(i, int) else s.future[s.names.index(i)]  # noqa: E731
        rows = [
            Execution(s.task, s.seed, s.step, s.obs.images, s.future[0], pick(s, done), pick(s, imagined))
            for s in states
        ]
        return execution_score(rows)

    def noise(level: float) -> ExecutionScore:
        rows = [
            Execution(s.task, s.seed, s.step, s.obs.images, *(s.future[0],) * 2, noisy(level)(s)[0]) for s in states
        ]
        return execution_score(rows)

    left, up = (next(n for n in states[0].names if n.startswith(sign)) for sign in "-+")
    answers = {
        "both right": put(0, 0),
        "video right, arm wrong": put(left, 0),
        "video wrong, arm right": put(0, left),
        "wrong alike": put(left, left),
        "wrong apart": put(left, up),
        "nothing moves": put(STILL, STILL),
    }
    answers |= {f"{NOISE}{level:g}": noise(level) for level in (5.0, 20.0, 80.0)}

    def metric(name: str, **more: Any) -> Metric:
        return Metric(
            name, ("suites.forecast_vs_execution.execution_score",), lambda a: getattr(a, name).value, 1.0, **more
        )

    metrics = (
        metric("forecast", blind={"video right, arm wrong": "predicted with demonstrated (forecast)"}),
        metric("policy", blind={"video wrong, arm right": "executed with demonstrated (policy)"}),
        metric(
            "consistency",
            blind=dict.fromkeys(("wrong alike", "nothing moves"), "predicted with executed (consistency)"),
        ),
    )
    how = f"{len(states)} states; imagined and executed futures are branches of the simulator."
    return Suite("The video, the arm, or both", how, answers, metrics, tuple(n for n in answers if n.startswith(NOISE)))


def recoverability_suite(steps: int = 150, levels: Sequence[float] = (10.0, 30.0, 100.0)) -> Suite:
    """Metrics of action recoverability (`probes.inverse_dynamics`), in a world whose images show the actions."""
    inverse = train_inverse(moving_square(24, 0), SQUARE, steps=steps, batch=32, progress=False)
    frames, models = moving_square(8, 1), EDITS | {f"{NOISE}{level:g}": noisy_future(level) for level in levels}
    answers = {
        name: action_recoverability(EditedFutures(frames, edit), inverse, frames, stride=3)  # type: ignore[arg-type]
        for name, edit in models.items()
    }
    functions = (
        "probes.inverse_dynamics.action_recoverability",
        "probes.inverse_dynamics.train_inverse",
    )
    metrics = tuple(
        Metric(f"read off frames, {name} / real", functions, lambda a, name=name: a.over(name, "real").value, 1.0)
        for name in ("forward", "joint")
    )
    how = "A square that its actions move; errors of actions read off imagined frames over those off real ones."
    return Suite(
        "Can actions be read off its frames?", how, answers, metrics, tuple(n for n in models if n.startswith(NOISE))
    )


def forecast_suite(episodes: int = 60) -> Suite:
    """Metrics of the prediction of success by the forecast (`suites.forecast_consistency`)."""
    rng = np.random.default_rng(0)
    success, draw = np.arange(episodes) % 3 > 0, rng.standard_normal(episodes)
    fine = 0.9 * success + 0.02 * np.abs(draw)  # skill of the forecast: better where the episode succeeds

    def episodes_of(skill: np.ndarray) -> Sequence[ForecastEpisode]:
        one = np.ones(1)
        return [
            ForecastEpisode(f"task {i % 2}", i, bool(s), one - k, one)
            for i, (s, k) in enumerate(zip(success, skill, strict=True))
        ]

    answers = {
        "predicts": episodes_of(fine),
        "constant": episodes_of(fine * 0),
        "opposite": episodes_of(-fine),
        "another's": episodes_of(np.roll(fine, 1)),
    }
    ladder = {f"{NOISE}{k:g}": episodes_of(fine + k * draw) for k in (0.25, 0.5, 1.0, 2.0, 4.0)}
    order = (("constant", "opposite"),)

    def area(found: Sequence[ForecastEpisode]) -> float:
        task = np.array([int(e.task[-1]) for e in found])
        return auc(np.array([e.skill for e in found]), np.array([e.success for e in found]), task)

    metrics = (
        Metric("area under the ROC curve", ("suites.forecast_consistency.auc",), area, 1.0, order=order),
        Metric(
            "prediction by skill",
            ("suites.forecast_consistency.success_prediction",),
            lambda e: success_prediction(e, draws=2).skill.value,
            1.0,
            order=order,
        ),
    )
    failures = int((~success).sum())
    how = f"{episodes} made-up episodes of two tasks, {failures} of them failures (at least {LEAST} are needed)."
    return Suite("Does the forecast predict success?", how, answers | ladder, metrics, tuple(ladder))


def ranking_suite(policies: int = 10) -> Suite:
    """Metrics of the order of policies by imagined success (`metrics.rank_correlation`)."""
    rng, real = np.random.default_rng(0), np.linspace(0.08, 0.93, policies)
    draw = rng.standard_normal(policies)
    answers = {
        "exact": real,
        "flatters": real**0.5,
        "on a line": 0.3 + 0.4 * real,
        "all the same": np.full(policies, 0.5),
        "shuffled": real[rng.permutation(policies)],
        "reversed": real[::-1],
    }
    ladder = {f"{NOISE}{k:g}": np.clip(real + k * draw, 0, 1) for k in (0.03, 0.1, 0.2, 0.4)}

    def metric(name: str, figure: Callable[[np.ndarray], float], best: float, **more: Any) -> Metric:
        def measure(s: np.ndarray) -> float:
            try:
                return figure(s)
            except EvaluationError:
                return float("nan")

        return Metric(name, (f"metrics.rank_correlation.{name.split()[0]}",), measure, best, **more)

    line = "orders all pairs right"
    metrics = (
        metric(
            "pearson",
            lambda s: ranking.pearson(s, real),
            1.0,
            undefined={"all the same": "all the same, which have no correlation"},
            blind={"on a line": "blind to bias and to slope"},
            order=(("shuffled", "reversed"),),
        ),
        metric(
            "spearman",
            lambda s: ranking.spearman(s, real),
            1.0,
            undefined={"all the same": "Raises as `pearson`"},
            blind=dict.fromkeys(("flatters", "on a line"), "blind to all but the order"),
            order=(("shuffled", "reversed"),),
        ),
        metric(
            "mmrv",
            lambda s: ranking.mmrv(predicted=s, real=real),
            0.0,
            blind={"flatters": line, "on a line": line},
            order=(("all the same", "reversed"),),
        ),
        metric(
            "agreement (bias)",
            lambda s: ranking.agreement(s[:, None], real[:, None], 0, draws=2).bias,
            0.0,
            undefined={"all the same": "Raises EvaluationError as the parts do"},
            blind={"shuffled": "says nothing of order", "reversed": "says nothing of order"},
            varies={"on a line": "its bias is what this line has in the middle"},
            rises=False,
        ),
    )
    how = f"{policies} policies with known real success, and predictions of it."
    return Suite("Can it stand in for the simulator?", how, answers | ladder, metrics, tuple(ladder))


@dataclass(frozen=True)
class Two:
    """Outcomes of two policies from the same reset states: bool (seeds, states)."""

    first: np.ndarray
    second: np.ndarray


def difference_suite(states: int = 40) -> Suite:
    """Tests and intervals of the difference of two policies, of which equal ones are the best."""
    hard = np.linspace(0, 1, states, endpoint=False)
    seeds = 4

    def successes(rate: float) -> np.ndarray:
        return np.stack([np.roll(hard, 7 * s) < rate for s in range(seeds)])

    rates = {"equal": 0.5, "5 points": 0.55, "10 points": 0.6, "20 points": 0.7, "40 points": 0.9}
    answers = {name: Two(successes(0.5), successes(rate)) for name, rate in rates.items()}

    def metric(name: str, function: str, figure: Callable[[Two], float], best: float, **more: Any) -> Metric:
        return Metric(name, (function,), figure, best, **more)

    def rate(x: np.ndarray) -> float:
        return mean_success({"a": x, "b": x}, 0, draws=2).value

    def middle(x: np.ndarray) -> float:
        return iqm(x.reshape(seeds, 4, -1).mean(-1), 0, draws=2).value

    def improvement(t: Two) -> float:
        a, b = (x.reshape(seeds, 4, -1).mean(-1) for x in (t.second, t.first))
        return probability_of_improvement(a, b, 0, draws=2).value

    def ratio(t: Two) -> float:
        a, b = (1.0 - x.mean(0) for x in (t.second, t.first))
        return paired_ratio(a, b, np.arange(states), 0, draws=2).value

    metrics = (
        metric(
            "McNemar's p",
            "metrics.intervals.mcnemar",
            lambda t: mcnemar(t.first.ravel(), t.second.ravel()).p_value,
            1.0,
        ),
        metric(
            "Barnard's p",
            "metrics.intervals.barnard",
            lambda t: barnard(int(t.first.sum()), t.first.size, int(t.second.sum()), t.second.size),
            1.0,
        ),
        metric(
            "e",
            "metrics.sequential_tests.log_e_value",
            lambda t: PairedEProcess().update(t.first.ravel(), t.second.ravel()).e,
            1.0,
            below=True,
        ),
        metric("error of the second / first", "metrics.intervals.paired_ratio", ratio, 1.0),
        metric(
            "difference of mean success",
            "metrics.sequential_tests.mean_success",
            lambda t: rate(t.second) - rate(t.first),
            0.0,
        ),
        metric(
            "difference of interquartile means",
            "metrics.sequential_tests.iqm",
            lambda t: middle(t.second) - middle(t.first),
            0.0,
        ),
        metric("probability of improvement", "metrics.sequential_tests.probability_of_improvement", improvement, 0.5),
    )
    how = f"Two made-up policies on {states} reset states and {seeds} training seeds; the second is never worse."
    return Suite("Is one better?", how, answers, metrics, tuple(answers)[1:])


HELPERS: Mapping[str, str] = {
    "metrics.action_baselines.holding": "says what holds a robot still; known answers in test_offline_actions",
    "metrics.action_baselines.standing_still": "chunks of a baseline; no figure",
    "metrics.action_baselines.nearest": "finds a baseline's chunks; known answers in test_offline_actions",
    "metrics.action_baselines.previous": "finds a baseline's actions; known answers in test_offline_actions",
    "metrics.action_baselines.nominal": "the best value of `coverage`",
    "metrics.image.unit": "checks and scales images; no figure",
    "metrics.perceptual.read_weights": "reads a file; no figure",
    "metrics.perceptual.clip_features": "features for `polynomial_mmd` and `frechet_distance`; no figure",
    "probes.object_state.train_probe": "trains a reader; its error is `probe_error`",
    "probes.object_state.read_states": "reads states; its error is `probe_error`",
    "probes.object_state.probe_error": "errors of a reader on real frames; known answers in test_object_state",
    "probes.segmentation.train_segmenter": "trains a reader; its overlap is in test_physics_suite",
    "probes.segmentation.read_masks": "reads masks; its overlap is in test_physics_suite",
    "metrics.image.decibel": "a change of units, of `psnr` and `masked_psnr`",
    "metrics.physics.depth_tolerance": "a percentile of real depths, which `penetration` is given",
    "metrics.physics.mechanical_energy": "what `energy_gain` adds up; closed forms in test_physics_metrics",
    "suites.counterfactuals.counterfactuals": "replays chunks; no figure",
    "suites.counterfactuals.imagined_by": "queries a model; no figure",
    "suites.forecast_vs_execution.executions": "plays episodes; no figure",
    "suites.forecast_vs_execution.judged": "a verdict on three intervals; every case in test_symptoms",
    "suites.forecast_vs_execution.diagnosis": "text for `execution_score`; every case in test_counterfactuals",
    "suites.forecast_consistency.forecast_episodes": "plays episodes; no figure",
    "metrics.rank_correlation.drop_one": "another figure without each policy in turn",
    "metrics.rank_correlation.nested_bootstrap": "an interval; its coverage is in test_rank_correlation",
    "metrics.intervals.wilson": "an interval; its coverage is in test_intervals",
    "metrics.intervals.clopper_pearson": "an interval; its coverage is in test_intervals",
    "metrics.intervals.bootstrap_ratio": "an interval; its coverage is in test_intervals",
    "metrics.intervals.resample_counts": "draws of a bootstrap",
    "metrics.intervals.percentile_interval": "ends of an interval",
    "metrics.intervals.unseen": "ends of an interval; known answers are in test_intervals",
    "metrics.intervals.mean_rate": "a mean of rates; its coverage is in test_intervals",
    "metrics.intervals.clustered_median": "a median of times; known answers are in test_intervals",
    "metrics.intervals.holm": "corrects p-values; known answers and its guarantee are in test_intervals",
    "metrics.sequential_tests.outcome_tables": "puts records in order; no figure",
    "metrics.sequential_tests.episodes_needed": "a forecast; checked by simulation in test_sequential_tests",
    "suites.forecast_vs_execution.execution_videos": "videos for a report",
    "metrics.intervals.paired_difference": "an interval; its coverage is in test_intervals",
    "metrics.intervals.two_sample_ratio": "an interval; its coverage is in test_intervals",
    "metrics.intervals.sign_flip": "a p-value; known answers and its guarantee are in test_intervals",
    "suites.counterfactuals.counterfactual_table": "a table of figures that are here",
    "suites.forecast_vs_execution.execution_table": "a table of figures that are here",
    "suites.forecast_consistency.consistency_table": "a table of figures that are here",
}
"""Public functions of the metrics' modules that are not in any suite, and why."""

"""What is expected of each metric, as data: which wrong models it must find worse, and which it cannot, in words of its documentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wamkit.eval import EvaluationError, motion, physical, ranking, visual
from wamkit.eval.action import ActionScore, score
from wamkit.eval.branches import STILL, Counterfactuals
from wamkit.eval.consistency import LEAST, Foreseen, auc, foretelling
from wamkit.eval.distribution import ClipFeatures, frechet_distance, gaussian_frechet, polynomial_mmd
from wamkit.eval.evidence import PairedEProcess, iqm, mean_success, probability_of_improvement
from wamkit.eval.execution import Execution, execution_score
from wamkit.eval.meta import NOISE, Metric, Suite
from wamkit.eval.physics_suite import errors
from wamkit.eval.sanity import MODELS, noisy
from wamkit.eval.sanity_clips import CLIP_MODELS, LEVELS, Clip, Imagined
from wamkit.eval.sanity_clips import noisy as noisy_clip
from wamkit.eval.stats import barnard, mcnemar, paired_ratio

Pairs = Sequence[tuple[Clip, Imagined]]
"""Clips, and what a model makes of each."""

# ------------------------------------------------------------------------------------------- clips: pictures, masks, places


def clip_suite(all_clips: Sequence[Clip], levels: Sequence[float] = LEVELS) -> Suite:
    """Metrics of pictures, masks, paths and physics, and of sets of clips."""
    models = CLIP_MODELS | {f"{NOISE}{level:g}": noisy_clip(level) for level in levels}
    answers = {name: [(c, m(all_clips, i)) for i, c in enumerate(all_clips)] for name, m in models.items()}
    how = (
        f"{len(all_clips)} clips of {len(all_clips[0].real.frames)} pictures of the physics suite. A perfect probe reads places and "
        "areas, the simulator gives the masks."
    )
    ladder = tuple(f"{NOISE}{level:g}" for level in levels)
    metrics = PICTURES + MASKS + PATHS + PHYSICS + SETS
    return Suite("Pictures, masks, places", how, answers, metrics, ladder, _same, _enlarged)


def _same(a: Pairs, b: Pairs, reads: tuple[str, ...]) -> bool:
    def read(x: Imagined, name: str) -> np.ndarray:
        return getattr(x if name in ("frames", "mask") else x.states, name)

    return all(
        np.array_equal(read(x, name), read(y, name), equal_nan=name == "position")
        for (_, x), (_, y) in zip(a, b, strict=True)
        for name in reads
    )


def _enlarged(pairs: Pairs) -> Pairs:
    def twice(x: np.ndarray) -> np.ndarray:
        return x.repeat(2, -1).repeat(2, -2)

    def large(x: Imagined) -> Imagined:
        return replace(x, frames=twice(x.frames), mask=twice(x.mask))

    return [(replace(c, real=large(c.real), truth=replace(c.truth, mask=twice(c.truth.mask))), large(x)) for c, x in pairs]


def each(figure: Callable[[Clip, Imagined], float]) -> Callable[[Pairs], float]:
    """The mean over clips for which there is a figure; NaN for none."""

    def measure(pairs: Pairs) -> float:
        values = np.array([figure(c, x) for c, x in pairs], np.float64)
        return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else float("nan")

    return measure


def _future(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Given pictures (B, 3, H, W), what happened and what is imagined after them (B, F, 3, H, W)."""
    real = torch.from_numpy(np.stack([c.real.frames for c, _ in pairs]))
    return real[:, 0], real[:, 1:], torch.from_numpy(np.stack([x.frames for _, x in pairs]))[:, 1:]


def _psnr(pairs: Pairs) -> float:
    _, real, made = _future(pairs)
    return float(visual.psnr(real.flatten(0, 2), made.flatten(0, 2)))  # as one picture of many channels: of the pooled error


def _masked_psnr(pairs: Pairs) -> float:
    now, real, made = _future(pairs)
    mask = visual.moving_mask(now, real, made).flatten(0, 2)
    real, made = (x.transpose(1, 2).transpose(0, 1).flatten(1, 3) for x in (real, made))
    return float(visual.masked_psnr(real, made, mask))


def _score(name: str) -> Callable[[Pairs], float]:
    def measure(pairs: Pairs) -> float:
        now, real, made = _future(pairs)
        at = 3 * real.shape[1] // 4  # in the middle a clip and its reverse are the same
        found = visual.fidelity(now, real[:, at : at + 1], made[:, at : at + 1], [at + 1])
        return getattr(found.score(at + 1, np.arange(len(now)), seed=0), name).value

    return measure


_FRAMES = ("frames",)
_NOISE = (("slight noise", "noise"),)
_PIXELS = (*_NOISE, ("wrong action", "copy"), ("copy", "shuffled"), ("deleted", "copy"))  # the last pair is their known trap
_NO_ORDER = "nearly blind to order: only the first frame, which never moves, is another"


def _pictures(figure: Callable[..., Tensor]) -> Callable[[Pairs], float]:
    return each(lambda c, x: float(figure(torch.from_numpy(c.real.frames[1:]), torch.from_numpy(x.frames[1:])).mean()))


PICTURES = (
    Metric("mse", ("visual.mse",), _pictures(visual.mse), 0.0, 1e-9, _FRAMES, order=_PIXELS, scale=True),
    Metric("psnr, dB", ("visual.psnr",), _psnr, np.inf, reads=_FRAMES, order=_PIXELS, scale=True, fmt=".1f"),
    Metric("ssim", ("visual.ssim",), _pictures(visual.ssim), 1.0, reads=_FRAMES, order=_PIXELS, scale=False),
    Metric(
        "masked psnr, dB", ("visual.masked_psnr", "visual.moving_mask"), _masked_psnr, np.inf, reads=_FRAMES,
        order=(*_NOISE, ("wrong action", "copy")), scale=True, fmt=".1f",
    ),
    Metric("skill", ("visual.fidelity",), _score("skill"), 1.0, reads=_FRAMES, order=_PIXELS, scale=True),
    Metric(
        "moving gain, dB", ("visual.fidelity", "visual.moving_errors", "visual.masked_error"), _score("moving_gain"), np.inf,
        reads=_FRAMES, order=(*_NOISE, ("wrong action", "copy"), ("deleted", "copy")), scale=True, fmt=".1f",
    ),
    Metric(
        "sharpness", ("visual.edge_strength",), _score("sharpness"), 1.0, 0.05, _FRAMES, order=_NOISE,
        blind={"brighter": "Blind to brightness", "wrong action": "Blind to where the edges are"},
        varies={"copy": "it has edges, elsewhere"},
    ),
)  # fmt: skip


def _moved(c: Clip, x: Imagined) -> tuple[np.ndarray, np.ndarray]:
    real, made = (motion.motion_mask(y.mask, y.states.position, c.dt) for y in (c.real, x))
    return real, made


def _physics_iq(pairs: Pairs) -> float:
    def figures(c: Clip, x: Imagined) -> motion.PhysicsIQ:
        real, made = _moved(c, x)
        return motion.physics_iq(real, made, c.real.frames, x.frames)

    return motion.physics_iq_score([figures(c, x) for c, x in pairs], [figures(c, c.real) for c, _ in pairs])[0]


def _mask(name: str, f: Callable[..., Any], **more: Any) -> Metric:
    def measure(c: Clip, x: Imagined) -> float:
        value = f(*_moved(c, x))
        return value.value if isinstance(value, motion.Figure) else value

    functions = (f"motion.{f.__name__}", "motion.motion_mask")
    return Metric(name, functions, each(measure), 1.0, reads=("mask", "position"), order=_NOISE, scale=True, **more)


MASKS = (
    _mask("spatial iou", motion.spatial_iou, varies={"backwards": _NO_ORDER}),
    _mask("spatiotemporal iou", motion.spatiotemporal_iou),
    _mask("weighted iou", motion.weighted_spatial_iou, varies={"backwards": _NO_ORDER}),
    _mask("area ratio", motion.area_ratio, tolerance=0.05, blind={"backwards": "Blind to where"}, varies={"shuffled": "scenes of a task move about as many pixels"}),
    Metric(
        "Physics-IQ score", ("motion.physics_iq", "motion.physics_iq_score"), _physics_iq, 100.0,
        reads=("mask", "position", "frames"), order=_NOISE, scale=True, fmt=".1f",
    ),
)  # fmt: skip


def _path(name: str, f: Callable[..., float], best: float, together: bool = False, **more: Any) -> Metric:
    """Of the first object's path, at the frames at which it is seen (`together`: in both)."""

    def one(c: Clip, x: Imagined) -> float:
        real, made = c.real.states.position[:, 0], x.states.position[:, 0]
        a, b = np.isfinite(real).all(-1), np.isfinite(made).all(-1)
        if together:
            a = b = a & b
        return f(real[a], made[b]) if min(a.sum(), b.sum()) >= 2 else float("nan")

    unseen = {"deleted": "leave out those frames at which nothing was seen"}
    order = (*_NOISE, ("noise", "copy"), ("wrong action", "copy"))
    more = {"order": order, "undefined": unseen} | more
    return Metric(name, (f"motion.{f.__name__}",), each(one), best, 1e-9, ("position",), **more)


PATHS = (
    _path("ade, m", motion.ade, 0.0, True),
    _path("fde, m", motion.fde, 0.0, True),
    _path("discrete Fréchet, m", motion.discrete_frechet, 0.0),
    _path("Hausdorff, m", motion.hausdorff, 0.0, blind={"backwards": "Blind to order"}),
    _path("ndtw", motion.ndtw, 1.0),
    _path("speed W1", motion.speed_w1, 0.0, blind={"backwards": "Blind to place, direction and order"}, order=_NOISE),
)


@lru_cache(maxsize=512)  # all figures of a pair are made at once
def _errors(clip: Clip, imagined: Imagined) -> Mapping[str, float]:
    env = clip.env()
    try:
        return errors(env, clip.truth, imagined.states, clip.dt)
    finally:
        env.close()


def _physics(name: str, function: str, tolerance: float = 1e-9, reads: str = "position", **more: Any) -> Metric:
    functions = (f"physical.{function}", "physics_suite.errors", "physics_suite.true_states")
    return Metric(name, functions, each(lambda c, x: _errors(c, x)[name]), 0.0, tolerance, (reads,), **more)


_LAWS = "another scene obeys the same laws; only where the truth's contacts or masses are used is it wrong"
_LEFT_OUT = "Frames with NaN are left out"
_FLIGHT = "over objects in flight"
_WITHOUT = "of objects that move in both"
_EARLY = "premature says nothing of what does not move"
_SMALL = "Noise below `epsilon` is not motion"
_PUSHER = "blind to whether the object then moves"
PHYSICS = (
    _physics("lost", "permanence", reads="present", blind={"copy": "Blind to where the object is"}, varies={"backwards": "as scenes are"}),
    _physics(
        "invented", "permanence", reads="present", blind={"deleted": "and the reverse"},
        varies={"backwards": "as scenes are"} | dict.fromkeys(("slight noise", "noise"), "few frames hide anything that noise could show"),
    ),
    _physics(
        "lost_again", "permanence", reads="present", blind={"copy": "Blind to where the object is"},
        varies=dict.fromkeys(("slight noise", "noise"), "few frames come after an object was hidden"),
    ),
    _physics("size_drift", "size_drift", reads="area", order=_NOISE, blind={"deleted": "losing an object is `permanence`'s matter"}),
    _physics("penetration_rate", "penetration", 0.02, below=True, order=_NOISE, blind={"deleted": _LEFT_OUT}),
    _physics("penetration_depth", "penetration", 1e-4, below=True, order=_NOISE, blind={"deleted": _LEFT_OUT}),
    _physics("gravity", "gravity_error", 0.03, order=_NOISE, blind={"wrong action": _FLIGHT}, undefined={"deleted": _LEFT_OUT}, varies={"shuffled": _LAWS}),
    _physics(
        "levitation", "levitation",
        blind={
            "slight noise": "noise hides it", "noise": "noise hides it", "wrong action": "farther than `epsilon` metres from anything",
            "backwards": "farther than `epsilon` metres from anything", "deleted": _LEFT_OUT,
        },
        varies={"shuffled": _LAWS},
    ),
    _physics(
        "energy_gain", "energy_gain", 0.002, below=True, order=(*_NOISE, ("deleted", "backwards")),
        blind={"copy": "Blind to energy that is lost too fast", "wrong action": "passive objects can only lose energy"},
        varies={"shuffled": _LAWS, "deleted": "what the lost object struck gains energy from nothing, where scenes have two"},
    ),
    _physics("momentum", "momentum_error", order=_NOISE, blind={"wrong action": "over the first collision"}, undefined={"deleted": "or NaN"}),
    _physics(
        "premature", "contact_causality", blind={"slight noise": _SMALL, "wrong action": _EARLY, "copy": _EARLY, "deleted": _EARLY},
        varies={"shuffled": _LAWS, "noise": "depends on when noise first passes `epsilon`"},
    ),
    _physics(
        "missed", "contact_causality",
        blind={"slight noise": "of how things move", "noise": "of how things move", "backwards": "of how things move"},
        varies={"shuffled": _LAWS},
    ),
    _physics(
        "lag", "contact_causality", blind={"slight noise": _SMALL},
        undefined={"wrong action": _WITHOUT, "copy": _WITHOUT, "deleted": _WITHOUT},
        varies={"shuffled": _LAWS, "noise": "depends on when noise first passes `epsilon`"},
    ),
    _physics(
        "contact_f1_error", "contact_causality", blind={"slight noise": "within `window` frames", "wrong action": _PUSHER, "copy": _PUSHER},
        varies={"noise": "as scenes are", "backwards": "as scenes are", "shuffled": _LAWS},
    ),
    _physics(
        "teleports", "teleports", order=_NOISE,
        blind=dict.fromkeys(("wrong action", "copy", "backwards", "deleted"), "Blind to what is slower than it should be, to direction"),
        varies={"shuffled": _LAWS},
    ),
    _physics("ade", "permanence", order=_NOISE, blind={"deleted": "of what is seen in both"}),
)  # fmt: skip


def _features(pairs: Pairs) -> tuple[ClipFeatures, ClipFeatures]:
    def encode(frames: Tensor) -> Tensor:
        x = frames.float().mean(1, keepdim=True) / 255
        edges = [F.pad(x.diff(dim=-1).abs(), (0, 1)), F.pad(x.diff(dim=-2).abs(), (0, 0, 0, 1))]
        return F.adaptive_avg_pool2d(torch.cat([x, *(4 * e for e in edges)], 1), 8).flatten(1)

    episode = np.arange(len(pairs))
    _, real, made = _future(pairs)
    a, b = (ClipFeatures.encode(x, encode, "means and edges of 8x8 cells", episode) for x in (real, made))
    return a, b


_PAIRING = "clips are never compared with their own truth"
_ORDER = "the order of frames"
SETS = (
    Metric(
        "mmd", ("distribution.polynomial_mmd",), lambda p: polynomial_mmd(*_features(p), seed=0, draws=2).value.value, 0.0, 2e-6,
        _FRAMES, below=True, order=_NOISE, blind={"shuffled": _PAIRING, "backwards": _ORDER},
    ),
    Metric(
        "Fréchet excess", ("distribution.frechet_distance",), lambda p: frechet_distance(*_features(p), seed=0, dims=4).excess, 0.0,
        2e-5, _FRAMES, below=True, order=_NOISE, blind={"shuffled": _PAIRING, "backwards": _ORDER},
        varies={"wrong action": "only scenes with a pusher differ, and halves hold few of them"},
    ),
    Metric(
        "Fréchet formula", ("distribution.gaussian_frechet",), lambda p: gaussian_frechet(*(f.values for f in _features(p))), 0.0,
        2e-3, _FRAMES, order=_NOISE, blind={"shuffled": _PAIRING},
        varies={"backwards": "nearly blind to the order of frames: the given one, which is not compared, is another"},
    ),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- pictures and actions


def counterfactual_suite(states: Sequence[Counterfactuals], levels: Sequence[float] = (5.0, 10.0, 20.0, 40.0, 80.0)) -> Suite:
    """Metrics of snapshot counterfactuals (`eval.action`)."""
    models = MODELS | {f"{NOISE}{level:g}": noisy(level) for level in levels}
    answers = {name: score(states, model) for name, model in models.items()}
    how = f"{len(states)} states, from each of which the simulator carries out {len(states[0].names)} chunks of actions or so."

    def metric(name: str, best: float, **more: Any) -> Metric:
        return Metric(name, ("action.score",), lambda a: getattr(a, name).value, best, **more)

    metrics = (
        metric("identified", 1.0, order=(("noisy oracle", "blind"), ("blind", "opposite")), varies={"noisy oracle": "noise below the differences"}),
        metric("direction", 1.0, order=(("noisy oracle", "blind"), ("blind", "opposite"))),
        metric("gain", 1.0, tolerance=1e-3, order=(("noisy oracle", "blind"), ("blind", "opposite"))),
        metric("skill", 1.0, order=(("noisy oracle", "copy"),)),
        metric("drift", 0.0, blind={"still": "change imagined where nothing is done"}),
        metric("regret", 0.0, varies={"noisy oracle": "noise below the differences"}, order=(("noisy oracle", "blind"),)),
    )
    return Suite("Whether it imagines what its actions do", how, answers, metrics, tuple(n for n in models if n.startswith(NOISE)))


def execution_suite(states: Sequence[Counterfactuals]) -> Suite:
    """Metrics of what is imagined, carried out and demonstrated (`eval.execution`); branches stand in for the three."""

    def put(done: int | str, imagined: int | str) -> Any:
        pick = lambda s, i: s.future[i] if isinstance(i, int) else s.future[s.names.index(i)]  # noqa: E731
        rows = [Execution(s.task, s.seed, s.step, s.obs.images, s.future[0], pick(s, done), pick(s, imagined)) for s in states]
        return execution_score(rows)

    def noise(level: float) -> Any:
        rows = [Execution(s.task, s.seed, s.step, s.obs.images, *(s.future[0],) * 2, noisy(level)(s)[0]) for s in states]
        return execution_score(rows)

    left, up = (next(n for n in states[0].names if n.startswith(sign)) for sign in "-+")
    answers = {"both right": put(0, 0), "video right, arm wrong": put(left, 0), "video wrong, arm right": put(0, left),
               "wrong alike": put(left, left), "wrong apart": put(left, up), "nothing moves": put(STILL, STILL)}  # fmt: skip
    answers |= {f"{NOISE}{level:g}": noise(level) for level in (5.0, 20.0, 80.0)}

    def metric(name: str, **more: Any) -> Metric:
        return Metric(name, ("execution.execution_score",), lambda a: getattr(a, name).value, 1.0, **more)

    metrics = (
        metric("forecast", blind={"video right, arm wrong": "imagined against demonstrated (forecast)"}),
        metric("policy", blind={"video wrong, arm right": "carried out against demonstrated (policy)"}),
        metric("consistency", blind=dict.fromkeys(("wrong alike", "nothing moves"), "imagined against carried out (consistency)")),
    )
    how = f"{len(states)} states; what is imagined and what is carried out are branches of the simulator."
    return Suite("The video, the arm, or both", how, answers, metrics, tuple(n for n in answers if n.startswith(NOISE)))


# ---------------------------------------------------------------------------------------- policies, judges, differences


def foresight_suite(episodes: int = 60) -> Suite:
    """Metrics of whether foresight foretells success (`eval.consistency`)."""
    rng = np.random.default_rng(0)
    success, draw = np.arange(episodes) % 3 > 0, rng.standard_normal(episodes)
    fine = 0.9 * success + 0.02 * np.abs(draw)  # how well it foresees: better where it succeeds

    def told(skill: np.ndarray) -> Sequence[Foreseen]:
        one = np.ones(1)
        return [Foreseen(f"task {i % 2}", i, bool(s), one - k, one) for i, (s, k) in enumerate(zip(success, skill, strict=True))]

    answers = {"foretells": told(fine), "says always the same": told(fine * 0), "foretells the opposite": told(-fine),
               "another's": told(np.roll(fine, 1))}  # fmt: skip
    ladder = {f"{NOISE}{k:g}": told(fine + k * draw) for k in (0.25, 0.5, 1.0, 2.0, 4.0)}
    order = (("says always the same", "foretells the opposite"),)

    def area(found: Sequence[Foreseen]) -> float:
        task = np.array([int(e.task[-1]) for e in found])
        return auc(np.array([e.skill for e in found]), np.array([e.success for e in found]), task)

    metrics = (
        Metric("area under the ROC curve", ("consistency.auc",), area, 1.0, order=order),
        Metric("foretelling by skill", ("consistency.foretelling",), lambda e: foretelling(e, draws=2).skill.value, 1.0, order=order),
    )
    how = f"{episodes} made-up episodes of two tasks, {int((~success).sum())} of them failures (at least {LEAST} are asked for)."
    return Suite("Does foresight foretell success?", how, answers | ladder, metrics, tuple(ladder))


def judge_suite(policies: int = 10) -> Suite:
    """Metrics of whether imagined success orders policies (`eval.ranking`)."""
    rng, real = np.random.default_rng(0), np.linspace(0.08, 0.93, policies)
    draw = rng.standard_normal(policies)
    answers = {"exact": real, "flatters": real**0.5, "on a line": 0.3 + 0.4 * real, "all the same": np.full(policies, 0.5),
               "shuffled": real[rng.permutation(policies)], "reversed": real[::-1]}  # fmt: skip
    ladder = {f"{NOISE}{k:g}": np.clip(real + k * draw, 0, 1) for k in (0.03, 0.1, 0.2, 0.4)}

    def metric(name: str, figure: Callable[[np.ndarray], float], best: float, **more: Any) -> Metric:
        def measure(s: np.ndarray) -> float:
            try:
                return figure(s)
            except EvaluationError:
                return float("nan")

        return Metric(name, (f"ranking.{name.split()[0]}",), measure, best, **more)

    line = "orders all pairs right"
    metrics = (
        metric("pearson", lambda s: ranking.pearson(s, real), 1.0, undefined={"all the same": "all the same, which have no correlation"},
               blind={"on a line": "blind to bias and to slope"},
               order=(("shuffled", "reversed"),)),
        metric("spearman", lambda s: ranking.spearman(s, real), 1.0, undefined={"all the same": "Raises as `pearson`"},
               blind=dict.fromkeys(("flatters", "on a line"), "blind to all but the order"), order=(("shuffled", "reversed"),)),
        metric("mmrv", lambda s: ranking.mmrv(predicted=s, real=real), 0.0, blind={"flatters": line, "on a line": line},
               order=(("all the same", "reversed"),)),
        metric("agreement (bias)", lambda s: ranking.agreement(s[:, None], real[:, None], 0, draws=2).bias, 0.0,
               undefined={"all the same": "Raises EvaluationError as the parts do"},
               blind={"shuffled": "says nothing of order", "reversed": "says nothing of order"},
               varies={"on a line": "its bias is what this line has in the middle"}, rises=False),
    )  # fmt: skip
    how = f"{policies} policies whose real success is known; what the judge says of them."
    return Suite("Can it stand in for the simulator?", how, answers | ladder, metrics, tuple(ladder))


@dataclass(frozen=True)
class Two:
    """Outcomes of two policies from the same reset states: bool (seeds, states)."""

    first: np.ndarray
    second: np.ndarray


def difference_suite(states: int = 40) -> Suite:
    """Tests and intervals of the difference of two policies (`eval.stats`, `eval.evidence`): equals are the best of them."""
    hard = np.linspace(0, 1, states, endpoint=False)
    seeds = 4

    def solves(rate: float) -> np.ndarray:
        return np.stack([np.roll(hard, 7 * s) < rate for s in range(seeds)])

    rates = {"equal": 0.5, "5 points": 0.55, "10 points": 0.6, "20 points": 0.7, "40 points": 0.9}
    answers = {name: Two(solves(0.5), solves(rate)) for name, rate in rates.items()}

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
        metric("McNemar's p", "stats.mcnemar", lambda t: mcnemar(t.first.ravel(), t.second.ravel()).p_value, 1.0),
        metric("Barnard's p", "stats.barnard",
               lambda t: barnard(int(t.first.sum()), t.first.size, int(t.second.sum()), t.second.size), 1.0),
        metric("e", "evidence.log_e_value", lambda t: PairedEProcess().update(t.first.ravel(), t.second.ravel()).e, 1.0, below=True),
        metric("error of the second / first", "stats.paired_ratio", ratio, 1.0),
        metric("difference of mean success", "evidence.mean_success", lambda t: rate(t.second) - rate(t.first), 0.0),
        metric("difference of interquartile means", "evidence.iqm", lambda t: middle(t.second) - middle(t.first), 0.0),
        metric("probability of improvement", "evidence.probability_of_improvement", improvement, 0.5),
    )  # fmt: skip
    how = f"Two made-up policies on {states} reset states and {seeds} training seeds; the second is better by so much, and never worse."
    return Suite("Is one better?", how, answers, metrics, tuple(answers)[1:])


HELPERS: Mapping[str, str] = {
    "visual.unit": "checks and scales pictures; no figure",
    "visual.decibel": "a change of units, of `psnr` and `masked_psnr`",
    "physical.depth_tolerance": "a percentile of real depths, which `penetration` is given",
    "physical.mechanical_energy": "what `energy_gain` adds up; closed forms in test_physical",
    "action.imagined_by": "asks a model; no figure",
    "execution.executions": "plays episodes; no figure",
    "execution.diagnosis": "words for `execution_score`; every case in test_counterfactuals",
    "consistency.foreseen": "plays episodes; no figure",
    "inverse.reader": "layers",
    "inverse.train_inverse": "training",
    "inverse.readable": "needs a trained model: right, deaf, still and noisy pictures are put in order by test_inverse",
    "ranking.drop_one": "another figure without each policy in turn",
    "ranking.nested_bootstrap": "an interval; its coverage is in test_ranking",
    "stats.wilson": "an interval; its coverage is in test_stats",
    "stats.clopper_pearson": "an interval; its coverage is in test_stats",
    "stats.bootstrap_ratio": "an interval; its coverage is in test_stats",
    "stats.resample_counts": "draws of a bootstrap",
    "stats.percentile_interval": "ends of an interval",
    "stats.holm": "corrects p-values; known answers and its guarantee are in test_stats",
    "evidence.outcome_tables": "puts records in order; no figure",
    "evidence.episodes_needed": "a forecast; held against simulation in test_evidence",
    "plausibility.action_tables": "rows for a report, of figures that are here",
    "plausibility.inverse_table": "rows for a report, of figures that are here",
    "plausibility.foresight_table": "rows for a report, of figures that are here",
}
"""Public functions of the metrics' modules that are not in any suite, and why."""

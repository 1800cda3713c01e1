"""Expectations of metrics of images, masks, paths, physics and sets of clips, as data (see `judge`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wamkit.eval.metatest.judge import NOISE, Metric, Suite
from wamkit.eval.metatest.reference_clips import CLIP_MODELS, LEVELS, Clip, Imagined, noisy
from wamkit.eval.metrics import image as visual
from wamkit.eval.metrics import motion
from wamkit.eval.metrics.video_distribution import ClipFeatures, frechet_distance, gaussian_frechet, polynomial_mmd
from wamkit.eval.suites.physics_scenes import errors

Pairs = Sequence[tuple[Clip, Imagined]]
"""Clips with a model's version of each."""


def clip_suite(all_clips: Sequence[Clip], levels: Sequence[float] = LEVELS) -> Suite:
    """Metrics of images, masks, paths and physics, and of sets of clips."""
    models = CLIP_MODELS | {f"{NOISE}{level:g}": noisy(level) for level in levels}
    answers = {name: [(c, m(all_clips, i)) for i, c in enumerate(all_clips)] for name, m in models.items()}
    how = (
        f"{len(all_clips)} clips of {len(all_clips[0].real.frames)} images of the physics suite. A perfect probe reads "
        "positions and areas, the simulator gives the masks."
    )
    ladder = tuple(f"{NOISE}{level:g}" for level in levels)
    metrics = IMAGES + MASKS + PATHS + PHYSICS + SETS
    return Suite("Images, masks, positions", how, answers, metrics, ladder, _same, _enlarged)


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

    return [
        (replace(c, real=large(c.real), truth=replace(c.truth, mask=twice(c.truth.mask))), large(x)) for c, x in pairs
    ]


def each(figure: Callable[[Clip, Imagined], float]) -> Callable[[Pairs], float]:
    """The mean over clips for which there is a figure; NaN for none."""

    def measure(pairs: Pairs) -> float:
        values = np.array([figure(c, x) for c, x in pairs], np.float64)
        return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else float("nan")

    return measure


def _future(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Given images (B, 3, H, W), true and imagined futures after them (B, F, 3, H, W)."""
    real = torch.from_numpy(np.stack([c.real.frames for c, _ in pairs]))
    return real[:, 0], real[:, 1:], torch.from_numpy(np.stack([x.frames for _, x in pairs]))[:, 1:]


def _psnr(pairs: Pairs) -> float:
    _, real, made = _future(pairs)
    one_image = (x.flatten(0, 2) for x in (real, made))  # of many channels: the PSNR of the pooled error
    return float(visual.psnr(*one_image))


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
_PIXELS = (*_NOISE, ("wrong action", "copy"), ("copy", "shuffled"), ("deleted", "copy"))
"""The last pair is a known trap."""

_NO_ORDER = "nearly blind to order: only the first frame, which never moves, is another"


def _images(figure: Callable[..., Tensor]) -> Callable[[Pairs], float]:
    return each(lambda c, x: float(figure(torch.from_numpy(c.real.frames[1:]), torch.from_numpy(x.frames[1:])).mean()))


IMAGES = (
    Metric("mse", ("metrics.image.mse",), _images(visual.mse), 0.0, 1e-9, _FRAMES, order=_PIXELS, scale=True),
    Metric("psnr, dB", ("metrics.image.psnr",), _psnr, np.inf, reads=_FRAMES, order=_PIXELS, scale=True, fmt="z.1f"),
    Metric("ssim", ("metrics.image.ssim",), _images(visual.ssim), 1.0, reads=_FRAMES, order=_PIXELS, scale=False),
    Metric(
        "masked psnr, dB",
        ("metrics.image.masked_psnr", "metrics.image.moving_mask"),
        _masked_psnr,
        np.inf,
        reads=_FRAMES,
        order=(*_NOISE, ("wrong action", "copy")),
        scale=True,
        fmt="z.1f",
    ),
    Metric("skill", ("metrics.image.fidelity",), _score("skill"), 1.0, reads=_FRAMES, order=_PIXELS, scale=True),
    Metric(
        "moving gain, dB",
        ("metrics.image.fidelity", "metrics.image.moving_errors", "metrics.image.masked_error"),
        _score("moving_gain"),
        np.inf,
        reads=_FRAMES,
        order=(*_NOISE, ("wrong action", "copy"), ("deleted", "copy")),
        scale=True,
        fmt="z.1f",
    ),
    Metric(
        "sharpness",
        ("metrics.image.edge_strength",),
        _score("sharpness"),
        1.0,
        0.05,
        _FRAMES,
        order=_NOISE,
        blind={"brighter": "Blind to brightness", "wrong action": "Blind to where the edges are"},
        varies={"copy": "it has edges, elsewhere"},
    ),
)


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

    functions = (f"metrics.motion.{f.__name__}", "metrics.motion.motion_mask")
    order = (*_NOISE, ("shuffled", "copy"))  # a model that imagines no motion has no overlap with what moves
    return Metric(name, functions, each(measure), 1.0, reads=("mask", "position"), order=order, scale=True, **more)


MASKS = (
    _mask("spatial iou", motion.spatial_iou, varies={"backwards": _NO_ORDER}),
    _mask("spatiotemporal iou", motion.spatiotemporal_iou),
    _mask("weighted iou", motion.weighted_spatial_iou, varies={"backwards": _NO_ORDER}),
    _mask(
        "area ratio",
        motion.area_ratio,
        tolerance=0.05,
        blind={"backwards": "Blind to where"},
        varies={"shuffled": "scenes of a task move about as many pixels"},
    ),
    Metric(
        "Physics-IQ score",
        ("metrics.motion.physics_iq", "metrics.motion.physics_iq_score"),
        _physics_iq,
        100.0,
        reads=("mask", "position", "frames"),
        order=_NOISE,
        scale=True,
        fmt="z.1f",
    ),
)


def _path(name: str, f: Callable[..., float], best: float, together: bool = False, **more: Any) -> Metric:
    """Metric of the first object's path, at the frames at which it is seen (`together`: in both)."""

    def one(c: Clip, x: Imagined) -> float:
        real, made = c.real.states.position[:, 0], x.states.position[:, 0]
        a, b = np.isfinite(real).all(-1), np.isfinite(made).all(-1)
        if together:
            a = b = a & b
        return f(real[a], made[b]) if min(a.sum(), b.sum()) >= 2 else float("nan")

    unseen = {"deleted": "leave out those frames at which nothing was seen"}
    order = (*_NOISE, ("noise", "copy"), ("wrong action", "copy"))
    more = {"order": order, "undefined": unseen} | more
    return Metric(name, (f"metrics.motion.{f.__name__}",), each(one), best, 1e-9, ("position",), **more)


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
    functions = (
        f"metrics.physics.{function}" if function else "metrics.motion.ade",
        "suites.physics_scenes.errors",
        "suites.physics_scenes.true_states",
    )
    return Metric(name, functions, each(lambda c, x: _errors(c, x)[name]), 0.0, tolerance, (reads,), **more)


_LAWS = "another scene obeys the same laws; only where the truth's contacts or masses are used is it wrong"
_LEFT_OUT = "Frames with NaN are left out"
_FLIGHT = "over objects in flight"
_WITHOUT = "of objects that move in both"
_EARLY = "premature says nothing of what does not move"
_SMALL = "Noise below `epsilon` is not motion"
_PUSHER = "blind to whether the object then moves"
PHYSICS = (
    _physics(
        "lost",
        "permanence",
        reads="present",
        blind={"copy": "Blind to where the object is"},
        varies={"backwards": "as scenes are"},
    ),
    _physics(
        "invented",
        "permanence",
        reads="present",
        blind={"deleted": "and the reverse"},
        varies={"backwards": "as scenes are"}
        | dict.fromkeys(("slight noise", "noise"), "few frames hide anything that noise could show"),
    ),
    _physics(
        "lost_again",
        "permanence",
        reads="present",
        blind={"copy": "Blind to where the object is"},
        varies=dict.fromkeys(("slight noise", "noise"), "few frames come after an object was hidden"),
    ),
    _physics(
        "size_drift",
        "size_drift",
        reads="area",
        order=_NOISE,
        blind={"deleted": "losing an object is `permanence`'s matter"},
    ),
    _physics("penetration_rate", "penetration", 0.02, below=True, order=_NOISE, blind={"deleted": _LEFT_OUT}),
    _physics("penetration_depth", "penetration", 1e-4, below=True, order=_NOISE, blind={"deleted": _LEFT_OUT}),
    _physics(
        "gravity",
        "gravity_error",
        0.03,
        order=_NOISE,
        blind={"wrong action": _FLIGHT},
        undefined={"deleted": _LEFT_OUT},
        varies={"shuffled": _LAWS},
    ),
    _physics(
        "levitation",
        "levitation",
        blind={
            "slight noise": "noise hides it",
            "noise": "noise hides it",
            "wrong action": "farther than `epsilon` metres from anything",
            "backwards": "farther than `epsilon` metres from anything",
            "deleted": _LEFT_OUT,
        },
        varies={"shuffled": _LAWS},
    ),
    _physics(
        "energy_gain",
        "energy_gain",
        0.002,
        below=True,
        order=(*_NOISE, ("deleted", "backwards")),
        blind={"copy": "Blind to energy that is lost too fast", "wrong action": "passive objects can only lose energy"},
        varies={
            "shuffled": _LAWS,
            "deleted": "what the lost object struck gains energy from nothing, where scenes have two",
        },
    ),
    _physics(
        "momentum",
        "momentum_error",
        order=_NOISE,
        blind={"wrong action": "over the first collision"},
        undefined={"deleted": "or NaN"},
    ),
    _physics(
        "premature",
        "contact_causality",
        blind={"slight noise": _SMALL, "wrong action": _EARLY, "copy": _EARLY, "deleted": _EARLY},
        varies={"shuffled": _LAWS, "noise": "depends on when noise first passes `epsilon`"},
    ),
    _physics(
        "missed",
        "contact_causality",
        blind={"slight noise": "of how things move", "noise": "of how things move", "backwards": "of how things move"},
        varies={"shuffled": _LAWS},
    ),
    _physics(
        "lag",
        "contact_causality",
        blind={"slight noise": _SMALL},
        undefined={"wrong action": _WITHOUT, "copy": _WITHOUT, "deleted": _WITHOUT},
        varies={"shuffled": _LAWS, "noise": "depends on when noise first passes `epsilon`"},
    ),
    _physics(
        "contact_f1_error",
        "contact_causality",
        blind={"slight noise": "within `window` frames", "wrong action": _PUSHER, "copy": _PUSHER},
        varies={"noise": "as scenes are", "backwards": "as scenes are", "shuffled": _LAWS},
    ),
    _physics(
        "teleports",
        "teleports",
        order=_NOISE,
        blind=dict.fromkeys(
            ("wrong action", "copy", "backwards", "deleted"), "Blind to what is slower than it should be, to direction"
        ),
        varies={"shuffled": _LAWS},
    ),
    _physics("ade", "", order=_NOISE, blind={"deleted": "of what is seen in both"}),
)


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
        "mmd",
        ("metrics.video_distribution.polynomial_mmd",),
        lambda p: polynomial_mmd(*_features(p), seed=0, draws=2).value.value,
        0.0,
        2e-6,
        _FRAMES,
        below=True,
        order=_NOISE,
        blind={"shuffled": _PAIRING, "backwards": _ORDER},
    ),
    Metric(
        "Fréchet excess",
        ("metrics.video_distribution.frechet_distance",),
        lambda p: frechet_distance(*_features(p), seed=0, dims=4).excess,
        0.0,
        2e-5,
        _FRAMES,
        below=True,
        order=_NOISE,
        blind={"shuffled": _PAIRING, "backwards": _ORDER},
        varies={"wrong action": "only scenes with a pusher differ, and halves hold few of them"},
    ),
    Metric(
        "Fréchet formula",
        ("metrics.video_distribution.gaussian_frechet",),
        lambda p: gaussian_frechet(*(f.values for f in _features(p))),
        0.0,
        2e-3,
        _FRAMES,
        order=_NOISE,
        blind={"shuffled": _PAIRING},
        varies={"backwards": "nearly blind to the order of frames: the given one, which is not compared, is another"},
    ),
)

"""Every metric on models whose rank is known beforehand, and its properties: docs/results/meta-tests.md.

Needs scikit-image, which the development environment has. Usage: python benchmarks/meta_tests.py
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import scipy.linalg
import scipy.stats
import torch
import tyro
from scipy.integrate import quad
from scipy.spatial.distance import directed_hausdorff
from skimage import metrics as skimage

from wamkit.envs.spec import EnvSpec
from wamkit.eval.metatest.expectations_action import (
    HELPERS,
    counterfactual_suite,
    difference_suite,
    execution_suite,
    forecast_suite,
    ranking_suite,
    recoverability_suite,
)
from wamkit.eval.metatest.expectations_recorded import recorded_suite
from wamkit.eval.metatest.expectations_video import clip_suite
from wamkit.eval.metatest.judge import BLIND, FAILS, SAME, SEEN, UNDEFINED, VARIES, Judged, Suite, judged
from wamkit.eval.metatest.reference_clips import clips
from wamkit.eval.metrics import image as visual
from wamkit.eval.metrics import motion
from wamkit.eval.metrics import rank_correlation as ranking
from wamkit.eval.metrics.intervals import mcnemar
from wamkit.eval.metrics.sequential_tests import iqm, log_e_value, probability_of_improvement
from wamkit.eval.metrics.video_distribution import ClipFeatures, gaussian_frechet, polynomial_mmd
from wamkit.eval.suites.counterfactuals import counterfactuals
from wamkit.eval.suites.forecast_consistency import auc
from wamkit.experiments.page import table
from wamkit.files import atomic_write
from wamkit.types import Spec


@dataclass(frozen=True)
class Args:
    """How much, and where the page goes."""

    seeds: int = 4
    """Scenes of each task of the physics suite."""
    tasks: tuple[str, ...] = ("drawer-open-v3",)
    """MetaWorld tasks of the counterfactuals."""
    out: Path = Path("docs/results/meta-tests.md")


MARKS = {BLIND: " ○", SAME: " =", VARIES: " ~", FAILS: " **✗**", UNDEFINED: ""}

PARITY: dict[str, tuple[str, Callable[[np.random.Generator], float]]] = {}
"""Metric -> (what it is compared with, the largest difference on random input of this generator)."""


def against(name: str, what: str) -> Callable[[Callable[[np.random.Generator], float]], None]:
    def add(difference: Callable[[np.random.Generator], float]) -> None:
        PARITY[name] = what, difference

    return add


def _images(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    a = rng.random((6, 3, 24, 32)).astype(np.float32)
    return a, np.clip(a + 0.1 * rng.standard_normal(a.shape), 0, 1).astype(np.float32)


def _pixelwise(ours: Callable[..., torch.Tensor], theirs: Callable[..., float], rng: np.random.Generator) -> float:
    a, b = _images(rng)
    found = ours(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    return float(np.abs(found - [theirs(x.astype(float), y.astype(float)) for x, y in zip(a, b, strict=True)]).max())


_WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "channel_axis": 0}
against("mse", "scikit-image")(lambda r: _pixelwise(visual.mse, skimage.mean_squared_error, r))
against("psnr, dB", "scikit-image")(
    lambda r: _pixelwise(visual.psnr, lambda x, y: skimage.peak_signal_noise_ratio(x, y, data_range=1), r)
)
against("ssim", "scikit-image")(
    lambda r: _pixelwise(visual.ssim, lambda x, y: skimage.structural_similarity(x, y, **_WANG), r)
)


def _masks(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.random((5, 8, 9)) < 0.3, rng.random((5, 8, 9)) < 0.3


def _set(mask: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, np.argwhere(mask).tolist()))


@against("spatial iou", "sets of pixels")
def _(rng: np.random.Generator) -> float:
    a, b = _masks(rng)
    x, y = _set(a.any(0)), _set(b.any(0))
    return abs(motion.spatial_iou(a, b) - len(x & y) / len(x | y))


@against("spatiotemporal iou", "sets of pixels")
def _(rng: np.random.Generator) -> float:
    a, b = _masks(rng)
    each = [len(_set(x) & _set(y)) / len(_set(x) | _set(y)) for x, y in zip(a, b, strict=True)]
    return abs(motion.spatiotemporal_iou(a, b).value - sum(each) / len(each))


@against("weighted iou", "the formula on means")
def _(rng: np.random.Generator) -> float:
    a, b = _masks(rng)
    x, y = a.mean(0).ravel().tolist(), b.mean(0).ravel().tolist()
    return abs(motion.weighted_spatial_iou(a, b) - sum(map(min, x, y)) / sum(map(max, x, y)))


def _walks(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.standard_normal((9, 3)).cumsum(0), rng.standard_normal((9, 3)).cumsum(0)


def _recursive(a: np.ndarray, b: np.ndarray, join: Callable[[float, float], float]) -> float:
    """Over all ways of walking both paths, straight from the definition."""

    @cache
    def best(i: int, j: int) -> float:
        here = math.dist(a[i], b[j])
        before = [best(p, q) for p, q in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if p >= 0 and q >= 0]
        return join(here, min(before)) if before else here

    return best(len(a) - 1, len(b) - 1)


@against("ade, m", "the definition")
def _(rng: np.random.Generator) -> float:
    a, b = _walks(rng)
    return abs(motion.ade(a, b) - sum(map(math.dist, a, b)) / len(a))


@against("discrete Fréchet, m", "recursion")
def _(rng: np.random.Generator) -> float:
    a, b = _walks(rng)
    return abs(motion.discrete_frechet(a, b) - _recursive(a, b, max))


@against("ndtw", "recursion")
def _(rng: np.random.Generator) -> float:
    a, b = _walks(rng)
    return abs(motion.ndtw(a, b, 2.0) - math.exp(-_recursive(a, b, lambda x, y: x + y) / (len(a) * 2.0)))


@against("Hausdorff, m", "SciPy")
def _(rng: np.random.Generator) -> float:
    a, b = _walks(rng)
    return abs(motion.hausdorff(a, b) - max(directed_hausdorff(a, b)[0], directed_hausdorff(b, a)[0]))


@against("speed W1", "sorted speeds")
def _(rng: np.random.Generator) -> float:
    a, b = _walks(rng)
    x, y = (sorted(map(math.dist, w[1:], w[:-1])) for w in (a, b))
    return abs(motion.speed_w1(a, b) - sum(abs(p - q) for p, q in zip(x, y, strict=True)) / sum(x))


@against("mmd", "the double sum")
def _(rng: np.random.Generator) -> float:
    a, b = rng.standard_normal((8, 5)), rng.standard_normal((8, 5)) + 0.5
    kernel = lambda x, y: (x @ y / 5 + 1) ** 3  # noqa: E731
    pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
    theirs = sum(kernel(a[i], a[j]) + kernel(b[i], b[j]) - 2 * kernel(a[i], b[j]) for i, j in pairs) / len(pairs)
    real, made = (ClipFeatures("random", x, np.arange(8)) for x in (a, b))
    return abs(polynomial_mmd(real, made, 0, draws=2).value.value - theirs)


@against("Fréchet formula", "SciPy's square root of matrices")
def _(rng: np.random.Generator) -> float:
    a, b = rng.standard_normal((40, 6)), rng.standard_normal((40, 6)) @ rng.standard_normal((6, 6)) + 0.5
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    theirs = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    return abs(gaussian_frechet(a, b) - theirs)


@against("area under the ROC curve", "SciPy's Mann-Whitney")
def _(rng: np.random.Generator) -> float:
    x, success = rng.integers(5, size=30).astype(float), rng.random(30) < 0.5
    u = scipy.stats.mannwhitneyu(x[success], x[~success]).statistic
    return abs(auc(x, success, np.zeros(30)) - u / (success.sum() * (~success).sum()))


@against("pearson", "NumPy")
def _(rng: np.random.Generator) -> float:
    a, b = rng.random((2, 9))
    return abs(ranking.pearson(a, b) - np.corrcoef(a, b)[0, 1])


@against("spearman", "NumPy, of SciPy's ranks")
def _(rng: np.random.Generator) -> float:
    a, b = rng.integers(5, size=(2, 12)).astype(float)
    return abs(ranking.spearman(a, b) - np.corrcoef(scipy.stats.rankdata(a), scipy.stats.rankdata(b))[0, 1])


@against("mmrv", "the double loop")
def _(rng: np.random.Generator) -> float:
    s, r = rng.integers(5, size=(2, 9)) / 5
    worst = [max(abs(r[i] - r[j]) * ((s[i] < s[j]) != (r[i] < r[j])) for j in range(9)) for i in range(9)]
    return abs(ranking.mmrv(predicted=s, real=r) - sum(worst) / 9)


@against("McNemar's p", "sums of the binomial")
def _(rng: np.random.Generator) -> float:
    a, b = rng.random((2, 40)) < np.array([[0.4], [0.7]])
    n, k = int((a ^ b).sum()), int((a & ~b).sum())
    tail = sum(math.comb(n, i) for i in range(min(k, n - k) + 1)) / 2**n
    return abs(mcnemar(a, b).p_value - min(1.0, 2 * tail))


@against("e", "integration over the winning rate")
def _(rng: np.random.Generator) -> float:
    w, l = (int(x) for x in rng.integers(12, size=2))  # noqa: E741
    return abs(math.exp(log_e_value(w, l)) / (2 ** (w + l) * quad(lambda p: p**w * (1 - p) ** l, 0, 1)[0]) - 1)


@against("difference of interquartile means", "the middle half")
def _(rng: np.random.Generator) -> float:
    x = rng.random((4, 8))
    return abs(iqm(x, 0, draws=2).value - np.sort(x.ravel())[8:24].mean())


@against("probability of improvement", "SciPy's Mann-Whitney")
def _(rng: np.random.Generator) -> float:
    a, b = rng.integers(6, size=(2, 5, 3)).astype(float)
    u = [scipy.stats.mannwhitneyu(a[:, k], b[:, k]).statistic / 25 for k in range(3)]
    return abs(probability_of_improvement(a, b, 0, draws=2).value - np.mean(u))


def parity(name: str) -> float:
    """The largest difference over five draws."""
    return max(PARITY[name][1](np.random.default_rng(seed)) for seed in range(5))


def cell(j: Judged, model: str) -> str:
    value, mark = j.values[model], MARKS.get(j.verdict.get(model, ""), "")
    if math.isnan(value):
        return "–" + mark
    tiny = j.metric.fmt == ".3g" and 0 < abs(value) < 1e-12
    return ("0" if tiny else "∞" if math.isinf(value) else format(value, j.metric.fmt)) + mark


def figures(suite: Suite, found: Sequence[Judged]) -> list[str]:
    rows = [[f"**{j.metric.name}** ({j.metric.best:g})", *(cell(j, m) for m in suite.models)] for j in found]
    return [f"## {suite.title}", suite.how, table(["metric (best)", *suite.models], rows)]


def properties(found: Sequence[Judged]) -> str:
    rows = []
    for j in found:
        name, scale = j.metric.name, "" if j.scale is None else f"{j.scale:.0e}" if j.scale else "0"
        scale += {True: " ✓", False: " (said to change)", None: ""}[j.metric.scale] if scale else ""
        rising = "constant" if math.isnan(j.rising) else f"{j.rising:.2f}"
        steady = "yes" if j.monotone else "**no**" if j.metric.rises else "not claimed"
        off = parity(name) if name in PARITY else math.nan
        same = "" if math.isnan(off) else f"{f'{off:.0e}' if off else 0} ({PARITY[name][0]})"
        rows.append(
            [
                name,
                "yes" if j.identity else "**no**",
                rising,
                steady,
                scale,
                same,
                ", ".join(f"`{f}`" for f in j.metric.functions),
            ]
        )
    head = [
        "metric",
        "best is best",
        "Spearman",
        "monotone",
        "pixels drawn as four",
        "independent implementation",
        "functions",
    ]
    return table(head, rows)


def blind_spots(found: Sequence[Judged]) -> str:
    rows: dict[tuple[str, str], list[str]] = {}
    for j in found:
        for models, how in ((j.metric.blind, "not found worse"), (j.metric.undefined, "no figure")):
            for model, words in models.items():
                if j.verdict[model] != SAME:
                    rows.setdefault((j.metric.name, f"{how}: “{words}”"), []).append(model)
        for model, words in j.metric.varies.items():
            rows.setdefault((j.metric.name, f"nothing expected: {words}"), []).append(model)
    return table(["metric", "models", "why"], [[name, ", ".join(models), why] for (name, why), models in rows.items()])


def main(args: Args) -> None:
    torch.set_num_threads(1)
    start = time.perf_counter()
    env = EnvSpec("metaworld", args.tasks, {"height": 64, "width": 64})
    spec = Spec(("corner2",), 64, 64, proprio_dim=4, action_dim=4)
    states = counterfactuals(env, spec, episodes=2, moments=2, processes=1)
    suites = [clip_suite(clips(seeds=range(args.seeds))), counterfactual_suite(states), execution_suite(states)]
    suites += [recoverability_suite(), forecast_suite(), ranking_suite(), difference_suite(), recorded_suite()]
    results = judged(suites)
    every = [j for _, found in results for j in found]
    faults = [fault for j in every for fault in j.faults]
    count = Counter(v for j in every for v in j.verdict.values())
    helpers = table(["function", "why"], [[f"`{k}`", v] for k, v in HELPERS.items()])
    parts = [
        "# Tests of the metrics themselves",
        f"{len(every)} metrics on models whose rank is known beforehand. Of {count.total()} figures of wrong models "
        f"{count[SEEN]} are worse, as "
        f"they must be, {count[SAME]} are of models that are right in what the metric reads, {count[BLIND]} are blind "
        "spots and "
        f"{count[UNDEFINED]} no figures, as the documentation says, of {count[VARIES]} nothing is expected, and "
        f"{len(faults)} expectations are "
        "broken. Made by `python benchmarks/meta_tests.py`, a few minutes on one core; the expectations are data, in "
        "`wamkit.eval.metatest`, and `tests/unit/test_metatest.py` checks them on fewer clips.",
        "The first column is the true outcome. A figure without a mark is worse than it, as it must be. **=**: what "
        "this metric reads is "
        "right, so it is no wrong model here. **○**: wrong, and not found worse; the documentation says so "
        "([below](#blind-spots)), and that is "
        "tested too. **–**: no figure, likewise. **~**: nothing is expected. **✗**: an expectation is broken.",
        "A known trap is expected as well: by `mse`, `psnr`, `ssim`, skill and moving gain an image without its object "
        "beats a copy of the "
        "present one.",
        *[part for suite, found in results for part in figures(suite, found)],
        "## Properties",
        "Best is best: the true outcome has the best figure. Spearman: between badness and the rungs of a ladder, "
        "noise of six severities for "
        "images (constant: all rungs are alike). Pixels drawn as four: the largest relative change of a figure; ✓ "
        "where it claims not to change.",
        properties(every),
        "## Blind spots",
        "What a metric does not see, in words of its documentation.",
        blind_spots(every),
        "## Functions without a row",
        helpers,
    ]
    if faults:
        parts.insert(3, "Broken: " + "; ".join(faults) + ".")
    atomic_write(args.out, ("\n\n".join(parts) + "\n").encode())
    print(
        f"{args.out}: {len(every)} metrics, {count.total()} judgements, {len(faults)} broken, "
        f"{time.perf_counter() - start:.0f} s"
    )
    print("\n".join(faults))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

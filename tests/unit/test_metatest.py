"""Every metric finds wrong models worse, or says in its documentation that it cannot; none is left out."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wamkit.envs.spec import EnvSpec
from wamkit.eval.metatest import expectations_action as meta_suites
from wamkit.eval.metatest import expectations_video as meta_clips
from wamkit.eval.metatest.expectations_recorded import recorded_suite
from wamkit.eval.metatest.judge import BLIND, FAILS, SEEN, Metric, Suite, judge
from wamkit.eval.metatest.reference_clips import CLIP_MODELS, clips
from wamkit.eval.suites.counterfactuals import FIRST_SEED, _work
from wamkit.types import Spec

SMALL = (("height", 48), ("width", 48), ("supersample", 1))


@pytest.fixture(scope="module")
def few():
    return clips(("drop", "collide", "occlude", "push"), (0, 1), frames=16, every=3, options=SMALL)


@pytest.fixture(scope="module")
def suites(few):
    options = (("height", 32), ("width", 32), ("supersample", 1))
    env, spec = EnvSpec("physics", ("push",), dict(options)), Spec(("front",), 32, 32, 4, 3)
    states = [
        s for i in range(2) for s in _work((env, spec, "push", FIRST_SEED + i, 1))
    ]  # what `counterfactuals` does, in this process
    # Pushing is rewarded only at its end: here each branch is worth more than the one before it.
    states = [replace(s, reward=np.arange(len(s.names), dtype=float)) for s in states]
    return [
        meta_clips.clip_suite(few, (4.0, 16.0, 32.0)),
        meta_suites.counterfactual_suite(states, (5.0, 40.0)),
        meta_suites.execution_suite(states),
        meta_suites.recoverability_suite(steps=60),
        meta_suites.forecast_suite(),
        meta_suites.ranking_suite(),
        meta_suites.difference_suite(),
        recorded_suite(500),
    ]


def test_every_metric_does_what_is_expected_of_it(suites):
    faults = [fault for suite in suites for metric in suite.metrics for fault in judge(suite, metric).faults]
    assert not faults, "\n".join(faults)


def test_no_public_function_is_left_out(suites):
    """Every module of metrics and probes, and of the suites whatever a meta-test measures something of."""
    modules = {f.rpartition(".")[0] for suite in suites for metric in suite.metrics for f in metric.functions}
    for package in ("metrics", "probes"):
        path = importlib.import_module(f"wamkit.eval.{package}").__path__
        modules |= {f"{package}.{module.name}" for module in pkgutil.iter_modules(path)}
    public = set()
    for name in sorted(modules):
        module = importlib.import_module(f"wamkit.eval.{name}")
        own = [f for f, x in inspect.getmembers(module, inspect.isfunction) if x.__module__ == module.__name__]
        public |= {f"{name}.{f}" for f in own if not f.startswith("_")}
    measured = {f for suite in suites for metric in suite.metrics for f in metric.functions}
    helpers = set(meta_suites.HELPERS)
    assert measured <= public and helpers <= public
    assert not measured & helpers, "measured, and yet on the list of those that are not"
    assert public == measured | helpers, f"without a meta-test or a reason: {sorted(public - measured - helpers)}"


def test_blind_spots_are_quoted_from_the_documentation(suites):
    for suite in suites:
        for metric in suite.metrics:
            said = ""
            for name in metric.functions:
                home, _, attribute = name.rpartition(".")
                module = importlib.import_module(f"wamkit.eval.{home}")
                function = getattr(module, attribute)
                classes = [x for _, x in inspect.getmembers(module, inspect.isclass) if x.__module__ == module.__name__]
                said += " ".join(filter(None, (module.__doc__, function.__doc__, *(c.__doc__ for c in classes))))
            said = " ".join(said.split())
            for words in (metric.blind | metric.undefined).values():
                assert words in said, f"{metric.name}: its documentation does not say {words!r}"
            assert set(metric.blind) | set(metric.undefined) | set(metric.varies) <= set(suite.models), metric.name


def test_every_wrong_model_differs_from_the_truth(few):
    for name, model in CLIP_MODELS.items():
        made = [model(few, i) for i in range(len(few))]
        for clip, x in zip(few, made, strict=True):
            assert x.frames.shape == clip.real.frames.shape and x.frames.dtype == np.uint8 and x.mask.dtype == bool
        differs = [not np.array_equal(c.real.frames, x.frames) for c, x in zip(few, made, strict=True)]
        pushed = [c.task == "push" for c in few]
        assert differs == {"oracle": [False] * len(few), "wrong action": pushed}.get(name, [True] * len(few)), name


def test_a_metric_that_does_not_do_what_it_says_is_found():
    answers = {"true": 0.0, "wrong": 1.0, "hidden": 0.0, "noise 1": 1.0, "noise 2": 0.5}
    suite = Suite("t", "", answers, (), ("noise 1", "noise 2"))
    good = Metric("m", (), lambda x: x, 0.0, blind={"hidden": "h"}, rises=False)
    found = judge(suite, good)
    assert (
        found.verdict == {"wrong": SEEN, "hidden": BLIND} and not found.faults and found.identity and not found.monotone
    )
    assert any("ladder" in f for f in judge(suite, replace(good, rises=True)).faults)
    assert judge(suite, replace(good, blind={})).verdict["hidden"] == FAILS
    assert judge(suite, replace(good, blind={"hidden": "h", "wrong": "w"})).verdict["wrong"] == FAILS
    assert any("the true outcome" in f for f in judge(suite, replace(good, best=3.0)).faults)
    assert any("not better" in f for f in judge(suite, replace(good, order=(("wrong", "true"),))).faults)
    undefined = replace(suite, answers=answers | {"wrong": float("nan")})
    assert judge(undefined, good).verdict["wrong"] == FAILS
    large = replace(suite, enlarged=lambda x: 2 * x)
    assert any("drawn as four" in f for f in judge(large, replace(good, scale=True)).faults)
    assert not judge(large, replace(good, scale=False)).faults
    assert any(
        "depend on the resolution" in f
        for f in judge(replace(suite, enlarged=lambda x: x), replace(good, scale=False)).faults
    )


def test_independent_implementations_agree(monkeypatch):
    path = Path(__file__).parents[2] / "benchmarks/meta_tests.py"
    spec = importlib.util.spec_from_file_location("meta_tests", path)
    page = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "meta_tests", page)
    spec.loader.exec_module(page)
    for name in page.PARITY:
        assert page.parity(name) < (1e-4 if "dB" in name else 3e-6), name

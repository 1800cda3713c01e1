"""Tables of policies ranked inside a world model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import nan

import numpy as np

from wamkit.eval.metrics.rank_correlation import Agreement
from wamkit.eval.results import Row, Table, Worst
from wamkit.eval.suites.dual_rollouts import PairedRollouts, PolicyOutcome, success_interval
from wamkit.imagination.success_classifier import SuccessClassifier
from wamkit.viz.images import difference


def believed(stood: Sequence[PolicyOutcome], stage: PairedRollouts) -> Iterator[Worst]:
    """Of the policy that dreams flatter most, a start of each task in which it succeeded in the dream alone: dream and simulator."""
    most = max(stood, key=lambda s: float(s.imagined.mean() - s.real.mean()))
    wrong = np.flatnonzero(most.imagined & ~most.real)
    first = {stage.starts[i][0]: int(i) for i in reversed(wrong)}
    shown = [first[task] for task in stage.env.tasks if task in first]
    if not shown:
        return
    parts = list(stage.imagined_rollouts(most.run))
    frames, steps = (np.concatenate([getattr(p, k) for p in parts]) for k in ("frames", "steps"))
    for i, (_, real) in zip(shown, stage.simulated_episodes(most.run, shown), strict=True):
        task, seed, now = stage.starts[i]
        imagined = np.concatenate([now.images[None], frames[i]])[: steps[i] // stage.replan_every + 3, 0]
        happened = real[np.minimum(np.arange(len(imagined)), len(real) - 1), 0]
        note = f"seed {seed}; the judge believes in success after {steps[i]} steps of the dream"
        columns = {"simulator": happened, "dreamed": imagined, "difference": difference(happened, imagined)}
        yield Worst("", f"{most.run.name}, {task}: succeeds in the dream alone", columns, 3.0, note)


def policy_table(stood: Sequence[PolicyOutcome]) -> Table:
    rows = []
    for s in sorted(stood, key=lambda s: -float(s.real.mean())):
        dreamed, real = success_interval(s.imagined), success_interval(s.real)
        note = (
            f"real {real.value:.0%} ({real.low:.0%} to {real.high:.0%}); the judge saw {s.classified.mean():.0%} there"
        )
        rows.append(Row(s.run.name, s.run.name, dreamed.value, dreamed, fmt=".0%", note=note))
    how = (
        "Success in the dream, with Wilson's interval; beside it the simulator's from the same reset states, and what the judge makes of the "
        "simulator's images. Best in the simulator first."
    )
    return Table("policy_outcomes", "What becomes of each policy?", how, tuple(rows))


def agreement_table(a: Agreement | None, undefined: str) -> Table:
    key, title = "rank_agreement", "Can it stand in for the simulator?"
    if a is None:
        row = Row("spearman", "rank correlation (Spearman)", nan, fmt=".2f", note=undefined)
        return Table(key, title, f"Undefined: {undefined}.", (row,))
    how = (
        f"Dreamed against real success of {a.policies} policies. Intervals resample policies, and episodes within each, whose noise only lowers "
        "correlations: they lie rather low."
    )
    return Table(key, title, how, tuple(_agreement_rows(a)))


def _agreement_rows(a: Agreement) -> list[Row]:
    weak = f"{a.pearson_without.min():.2f} to {a.pearson_without.max():.2f} without one of them"
    order = Row(
        "spearman",
        "rank correlation (Spearman)",
        a.spearman.value,
        a.spearman,
        "above 0",
        a.spearman.low > 0,
        ".2f",
        note="1 is the same order",
    )
    return [
        order,
        Row(
            "pearson",
            "correlation (Pearson)",
            a.pearson.value,
            a.pearson,
            "above 0",
            a.pearson.low > 0,
            ".2f",
            note=weak,
        ),
        Row(
            "mmrv",
            "mean maximum rank violation",
            a.mmrv.value,
            a.mmrv,
            fmt=".2f",
            note="real success lost by a wrong order; 0 is best",
        ),
        Row("bias", "bias", a.bias, None, fmt="+.0%", note="success seen less real; above 0 it flatters"),
    ]


def classifier_table(judge: SuccessClassifier, stood: Sequence[PolicyOutcome], a: Agreement | None) -> Table:
    """The judge by itself: where it errs on real images, no world model can make up for it."""
    right = np.concatenate([s.classified == s.real for s in stood])
    note = "balanced over episodes that succeed and fail; 50 % is a guess"
    rows = [
        Row("calibration", "on recordings that calibrated it", judge.accuracy, None, fmt=".0%", note=note),
        Row(
            "real_episodes",
            "on the policies' real episodes",
            float(right.mean()),
            success_interval(right),
            fmt=".0%",
            note="right about success",
        ),
    ]
    how = "The same judge, shown the simulator's images in place of imagined ones: the ranking that a perfect world model would give."
    return Table("success_classifier", "Is the judge to blame?", how, (*rows, *(_agreement_rows(a) if a else ())))

"""Tables and the page of a policy ranking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.data.image_transform import ImageTransform
from wamkit.eval.metrics.rank_correlation import Agreement
from wamkit.eval.outputs import results_folder, write_result
from wamkit.eval.report.page import write_report
from wamkit.eval.report.tables import text_table
from wamkit.eval.results import Plot, Report, Row, Table, Worst, made_by, versions
from wamkit.eval.suites.dual_rollouts import PairedRollouts, PolicyOutcome, success_interval
from wamkit.eval.suites.policy_ranking import Exploit, Ranking
from wamkit.imagination.success_classifier import SuccessClassifier
from wamkit.runs.run import Run
from wamkit.viz.charts import scatter_svg
from wamkit.viz.images import difference


def write_ranking(ranking: Ranking) -> dict[str, Any]:
    """Prints the tables, writes WORLD/eval/rank.html and rank.json, and returns the content of the latter."""
    tables = ranking_tables(ranking)
    content = _content(ranking, tables)
    asked = content["protocol"] | {"policies": [str(p) for p in ranking.options.policies]}
    with results_folder(ranking.world.home / "eval", "rank.json", asked, "rank") as out:
        write_result(out / "rank.json", content | {"protocol": asked})
    print(text_table(tables))
    options, env = ranking.options, ranking.rollouts.env
    page = Report(
        title=f"{ranking.world.name} in the simulator's place",
        subtitle=f"{len(ranking.outcomes)} policies, {options.episodes} reset states of each of {len(env.tasks)} tasks",
        tables=tuple(tables),
        plots=tuple(_plots(ranking.outcomes)),
        worst=tuple(imagined_successes(ranking.outcomes, ranking.rollouts)),
        versions=versions(),
        config={"protocol": content["protocol"], "policies": [str(p) for p in options.policies]},
    )
    print(f"report: {write_report(page, out / 'rank.html')}")
    return content


def ranking_tables(ranking: Ranking) -> list[Table]:
    """All tables of a ranking."""
    classifier = ranking.rollouts.classifier
    tables = [
        policy_table(ranking.outcomes),
        agreement_table(ranking.agreement, ranking.undefined),
        classifier_table(classifier, ranking.outcomes, ranking.classifier_agreement),
    ]
    return tables + ([exploit_table(ranking.exploits)] if ranking.exploits else [])


def _content(ranking: Ranking, tables: Sequence[Table]) -> dict[str, Any]:
    classifier, runs = ranking.rollouts.classifier, [o.run for o in ranking.outcomes]
    return {
        "world": str(ranking.world.path),
        "weights": {str(r.path): r.digest for r in (ranking.world, *runs, *ranking.failure_policies)},
        "protocol": {k: _plain(v) for k, v in vars(ranking.options).items() if k not in ("world", "policies")},
        "made_by": made_by(),
        "policies": [{k: _plain(v) for k, v in vars(o).items()} for o in ranking.outcomes],
        "agreement": _agreement_dict(ranking.agreement),
        "classifier": {
            "accuracy": classifier.accuracy,
            "threshold": classifier.threshold,
            "agreement": _agreement_dict(ranking.classifier_agreement),
        },
        "tables": [asdict(t) for t in tables],
    }


def _plain(value: Any) -> Any:
    """JSON of a value: paths as text, outcomes as 0 and 1."""
    if isinstance(value, np.ndarray):
        return value.astype(int).tolist()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Run):
        value = value.path
    return str(value) if isinstance(value, Path) else value


def _agreement_dict(a: Agreement | None) -> dict[str, Any] | None:
    return None if a is None else {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(a).items()}


def _plots(outcomes: Sequence[PolicyOutcome]) -> Iterator[Plot]:
    how = "One dot per policy, with 95 % intervals; on the diagonal {} agrees with the simulator."
    for title, subject, key in (
        ("Imagined", "the world model", "imagined"),
        ("Classified", "the classifier, applied to real frames,", "classified"),
    ):
        points = [(o.run.name, success_interval(getattr(o, key)), success_interval(o.real)) for o in outcomes]
        svg = scatter_svg(points, title.lower(), "real")
        yield Plot(f"{title} and real success", how.format(subject), svg)


def imagined_successes(outcomes: Sequence[PolicyOutcome], rollouts: PairedRollouts) -> Iterator[Worst]:
    """Videos of successes in the world model that fail in the simulator, one per task.

    They are of the policy that the world model flatters most.
    """
    most = max(outcomes, key=lambda o: float(o.imagined.mean() - o.real.mean()))
    wrong = np.flatnonzero(most.imagined & ~most.real)
    first = {rollouts.starts[i][0]: int(i) for i in reversed(wrong)}
    shown = [first[task] for task in rollouts.env.tasks if task in first]
    if not shown:
        return
    image, parts = ImageTransform.of(rollouts.world.spec), list(rollouts.imagined_rollouts(most.run))
    frames, steps = (np.concatenate([getattr(p, k) for p in parts]) for k in ("frames", "steps"))
    for i, (_, real) in zip(shown, rollouts.simulated_episodes(most.run, shown), strict=True):
        task, seed, now = rollouts.starts[i]
        imagined = np.concatenate([image(now.images)[None], frames[i]])[: steps[i] // rollouts.replan_every + 3, 0]
        happened = image(real)[np.minimum(np.arange(len(imagined)), len(real) - 1), 0]
        note = f"seed {seed}; the classifier reads success after {steps[i]} imagined steps"
        columns = {"simulator": happened, "imagined": imagined, "difference": difference(happened, imagined)}
        yield Worst("", f"{most.run.name}, {task}: succeeds in the world model alone", columns, 3.0, note)


def policy_table(outcomes: Sequence[PolicyOutcome]) -> Table:
    """Imagined and real success of every policy, the best in the simulator first."""
    rows = []
    for o in sorted(outcomes, key=lambda o: -float(o.real.mean())):
        imagined, real = success_interval(o.imagined), success_interval(o.real)
        note = f"real {real.value:.0%} ({real.low:.0%} to {real.high:.0%}); "
        note += f"the classifier reads {o.classified.mean():.0%} there"
        rows.append(Row(o.run.name, o.run.name, imagined.value, imagined, fmt=".0%", note=note))
    how = (
        "Success in the world model, with Wilson's interval. Beside it, from the same reset states, success in the "
        "simulator, and success as the classifier reads it off the simulator's frames. Best in the simulator first."
    )
    return Table("policy_outcomes", "What becomes of each policy?", how, tuple(rows))


def agreement_table(a: Agreement | None, undefined: str) -> Table:
    """Agreement of imagined with real success. undefined: the reason where there is none."""
    key, title = "rank_agreement", "Can it stand in for the simulator?"
    if a is None:
        row = Row("spearman", "rank correlation (Spearman)", nan, fmt=".2f", note=undefined)
        return Table(key, title, f"Undefined: {undefined}.", (row,))
    how = (
        f"Imagined against real success of {a.policies} policies. Intervals resample policies, and episodes within "
        "each. The noise of the episodes only lowers correlations, so the intervals lie rather low."
    )
    return Table(key, title, how, tuple(_agreement_rows(a)))


def _agreement_rows(a: Agreement) -> list[Row]:
    weak = f"{a.pearson_without.min():.2f} to {a.pearson_without.max():.2f} without one of them"
    violation = "real success lost by a wrong order; 0 is best"
    rows = []
    for key, name, x, note in (
        ("spearman", "rank correlation (Spearman)", a.spearman, "1 is the same order, 0 is none"),
        ("pearson", "correlation (Pearson)", a.pearson, weak),
    ):
        rows.append(Row(key, name, x.value, x, fmt=".2f", note=note))
    rows.append(Row("mmrv", "mean maximum rank violation", a.mmrv.value, a.mmrv, fmt=".2f", note=violation))
    bias = "predicted less real success; above 0 it flatters"
    return [*rows, Row("bias", "bias", a.bias, None, fmt="+.0%", note=bias)]


def classifier_table(classifier: SuccessClassifier, outcomes: Sequence[PolicyOutcome], a: Agreement | None) -> Table:
    """Accuracy of the classifier on real frames; its errors there are a limit for every world model."""
    right = np.concatenate([o.classified == o.real for o in outcomes])
    balanced = "balanced over episodes that succeed and fail; 50 % is a guess"
    rows = [
        Row("calibration", "on the episodes of its calibration", classifier.accuracy, fmt=".0%", note=balanced),
        Row(
            "real_episodes",
            "on the policies' real episodes",
            float(right.mean()),
            success_interval(right),
            fmt=".0%",
            note="right about success",
        ),
    ]
    how = (
        "The same classifier, applied to the simulator's frames in place of imagined ones: the ranking of a perfect "
        "world model."
    )
    rows += _agreement_rows(a) if a else []
    return Table("success_classifier", "Is the classifier to blame?", how, tuple(rows))


def exploit_table(exploits: Sequence[Exploit]) -> Table:
    """Success that a search for the world model's favour gains in the world model, and in the simulator."""
    rows = []
    for e in exploits:
        name = "as it acts" if e.candidates == 1 else f"the most promising of {e.candidates}"
        for key, label, x, note in (
            ("imagined", "in the world model", e.imagined, ""),
            ("executed", "the same actions in the simulator", e.executed, ""),
            ("imagined_only", "in the world model alone", e.imagined & ~e.executed, "promised and not kept"),
        ):
            interval = success_interval(x)
            rows.append(
                Row(f"{key}.{e.candidates}", f"{name}: {label}", float(x.mean()), interval, fmt=".0%", note=note)
            )
    how = (
        f"{exploits[0].run.name}, the best policy, takes from its own chunk and others around it the one that the "
        "classifier rates highest in the imagined frames. Success that this gains in the world model and not in the "
        "simulator is a weakness of the world model, not a strength of the policy."
    )
    return Table("exploitability", "Can it be exploited?", how, tuple(rows))

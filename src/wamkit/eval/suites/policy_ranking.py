"""`wamkit rank`: policies ordered by what becomes of them inside a world model, beside what becomes of them in the simulator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.config import check_bounds, digest, without_nan
from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.windows import Frames
from wamkit.envs.spec import EnvSpec
from wamkit.eval.metrics.rank_correlation import Agreement, agreement
from wamkit.eval.report.page import write_report
from wamkit.eval.report.ranking import agreement_table, believed, classifier_table, policy_table
from wamkit.eval.report.tables import text_table
from wamkit.eval.results import Plot, Report, Row, Table, made_by, versions
from wamkit.eval.suites.dual_rollouts import PairedRollouts, PolicyOutcome, starts, success_interval
from wamkit.eval.suites.paired import check_same_env
from wamkit.files import atomic_write
from wamkit.imagination.success_classifier import SuccessClassifier, train_success_classifier
from wamkit.inference.checks import unsupported
from wamkit.inference.model import Model, load, opened
from wamkit.rollout.collect import CollectConfig, collect
from wamkit.runs.run import Run
from wamkit.types import EvaluationError, Query, UnsupportedQuery, WamkitError
from wamkit.viz.charts import scatter_svg

LEAST = 4
"""Policies that a ranking needs; eight or more for one that says something."""


@dataclass(frozen=True)
class Rank:
    """Plays policies inside a world model, where a judge reads success off what it imagines, and in the simulator; says how well the two agree.

    Writes WORLD/eval/rank.html and rank.json. Policies must be trained apart from each other: checkpoints of one run are not.
    """

    world: Path
    """Run folder of the model that stands in for the simulator; it must answer `forward`."""
    policies: tuple[Path, ...]
    """Run folders of the policies, four at least."""
    episodes: int = 10
    """Held-out reset states a task."""
    replan_every: int = 8
    """Actions taken of each chunk; the world model must imagine that many steps ahead."""
    max_steps: int = 200
    """Of a dream; as many as an episode has."""
    recordings: int = 12
    """Held-out demonstrations a task that teach the judge, and as many perturbed experts; half as many others calibrate it."""
    failure_policies: tuple[Path, ...] = ()
    """Run folders of other policies, none of those that are ranked: what they do, too, teaches the judge what failure looks like."""
    judge_steps: int = 800
    """Training steps of the judge."""
    candidates: int = 8
    """Exploitability: chunks among which the best policy picks what the world model promises most of; 1 leaves the test out."""
    spread: float = 1.0
    """Of these candidates, in deviations of its actions; see `imagined_rollout`."""
    processes: int = 2
    """Worker processes."""

    def __post_init__(self) -> None:
        check_bounds(
            self,
            episodes=(1, inf),
            replan_every=(1, inf),
            max_steps=(1, inf),
            recordings=(2, inf),
            judge_steps=(1, inf),
        )
        check_bounds(self, candidates=(1, inf), spread=(0, inf), processes=(1, inf))


def rank(args: Rank) -> dict[str, Any]:
    """Prints the tables, writes the page and its JSON, returns that. Finished dreams are kept, so that it continues where it was cut short.

    Raises WamkitError for fewer policies than `LEAST`, for models of other shapes or another world, and where a judge cannot be taught.
    """
    if len(set(args.policies)) < LEAST or len(set(args.policies)) != len(args.policies):
        raise WamkitError(f"a ranking needs {LEAST} policies or more, each named once; got {len(args.policies)}")
    if twice := sorted({str(t) for t in args.failure_policies} & {str(p) for p in args.policies}):
        raise WamkitError(f"{', '.join(twice)} cannot both teach the judge and be ranked by it")
    world_run = Run.open(args.world)
    policies, teachers = ([Run.open(p) for p in paths] for paths in (args.policies, args.failure_policies))
    world, env = load(world_run), world_run.provenance.env
    _check_world(args, world)
    for run in (*policies, *teachers):
        _check(world_run, world, run)
    judge = _judge(args, env, teachers, world)
    taught = {"recordings": args.recordings, "judge_steps": args.judge_steps}
    made_of = {"world": world_run.digest, "failure_policies": [t.digest for t in teachers]}
    stage = PairedRollouts(
        args.world / "eval",
        (taught, made_of, args.episodes, args.replan_every),
        world,
        judge,
        env,
        starts(env, args.episodes, args.processes),
        args.replan_every,
        args.max_steps,
        args.processes,
    )
    stood = []
    for run in policies:
        real, judged = stage.simulated(run)
        dreamed, _ = stage.imagined(run)
        stood.append(PolicyOutcome(run, dreamed, real, judged))
    found, undefined = _agreement([s.imagined for s in stood], [s.real for s in stood])
    eyes, _ = _agreement([s.classified for s in stood], [s.real for s in stood])
    tables = [policy_table(stood), agreement_table(found, undefined), classifier_table(judge, stood, eyes)]
    if args.candidates > 1:
        tables.append(_exploited(args, stood, stage))
    content = {
        "world": str(args.world),
        "weights": {str(r.path): r.digest for r in (world_run, *policies, *teachers)},
        "protocol": {k: _plain(v) for k, v in vars(args).items() if k not in ("world", "policies")},
        "made_by": made_by(),
        "policies": [{k: _plain(v) for k, v in vars(s).items()} for s in stood],
        "agreement": _said(found),
        "judge": {"accuracy": judge.accuracy, "threshold": judge.threshold, "agreement": _said(eyes)},
        "tables": [asdict(t) for t in tables],
    }
    out = args.world / "eval"
    atomic_write(out / "rank.json", (json.dumps(without_nan(content), indent=2, default=float) + "\n").encode())
    print(text_table(tables))
    how = "A policy a dot, with 95 % intervals; on the diagonal {} says what the simulator says."
    plots = [
        Plot(f"{title} and real success", how.format(who), scatter_svg(points, title.lower(), "real"))
        for title, who, points in (
            (
                "Dreamed",
                "the world model",
                [(s.run.name, success_interval(s.imagined), success_interval(s.real)) for s in stood],
            ),
            (
                "Judged",
                "the judge, shown real pictures,",
                [(s.run.name, success_interval(s.classified), success_interval(s.real)) for s in stood],
            ),
        )
    ]
    page = Report(
        title=f"{args.world.name} in the simulator's place",
        subtitle=f"{len(stood)} policies, {args.episodes} reset states of each of {len(env.tasks)} tasks",
        tables=tuple(tables),
        plots=tuple(plots),
        worst=tuple(believed(stood, stage)),
        versions=versions(),
        config={"protocol": content["protocol"], "policies": [str(p) for p in args.policies]},
    )
    print(f"report: {write_report(page, out / 'rank.html')}")
    return content


def _plain(value: Any) -> Any:
    """As JSON has it: paths as text, outcomes as 0 and 1."""
    if isinstance(value, np.ndarray):
        return value.astype(int).tolist()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Run):
        value = value.path
    return str(value) if isinstance(value, Path) else value


def _said(a: Agreement | None) -> dict[str, Any] | None:
    return None if a is None else {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(a).items()}


def _agreement(seen: Sequence[np.ndarray], real: Sequence[np.ndarray]) -> tuple[Agreement | None, str]:
    """How outcomes that were seen agree with real ones; or None, and why that is undefined: what was played is still worth reading."""
    try:
        return agreement(np.stack(seen), np.stack(real), seed=0), ""
    except EvaluationError as error:
        return None, str(error)


def _check_world(args: Rank, world: Model) -> None:
    if Query.FORWARD not in world.queries:
        raise UnsupportedQuery(unsupported(world.name, Query.FORWARD))
    if args.replan_every not in world.spec.frame_offsets:
        raise WamkitError(
            f"{args.world} imagines {world.spec.frame_offsets} steps ahead, and not {args.replan_every}: replan_every must be one of them"
        )


def _check(world_run: Run, world: Model, run: Run) -> None:
    """That a policy can be played inside of `world`: the same pictures, numbers and tasks."""
    model, name = opened(run), world_run.path
    for key in ("cameras", "height", "width", "proprio_dim", "action_dim"):
        if getattr(model.spec, key) != getattr(world.spec, key):
            raise WamkitError(
                f"{run.path} cannot act inside of {name}: its {key} is {getattr(model.spec, key)}, not {getattr(world.spec, key)}"
            )
    if model.spec.point_grid:
        raise WamkitError(f"{run.path} looks at the points of a depth camera, which {name} does not imagine")
    if Query.POLICY not in model.queries:
        raise UnsupportedQuery(unsupported(model.name, Query.POLICY))
    if model.spec.chunk < world.spec.chunk:
        raise WamkitError(
            f"{run.path} gives {model.spec.chunk} actions, and {name} imagines what {world.spec.chunk} lead to"
        )
    check_same_env(run, world_run, ("env", "tasks"))


def _recordings(
    args: Rank, env: EnvSpec, teachers: Sequence[Run], episodes: int, seed: int
) -> tuple[Frames, np.ndarray]:
    """Held-out recordings, most of them of perturbed experts and of failure policies, so that there is failure to learn;
    and success after every step."""
    taught_by = digest([t.digest for t in teachers])
    store = collect(
        CollectConfig(
            env=env.env,
            options=env.options,
            tasks=env.tasks,
            out=args.world / "eval" / f"judged-{episodes}-seed-{seed}-{taught_by}",
            episodes=episodes,
            off_expert=0,
            perturbed_experts=episodes,
            policies=args.failure_policies,
            policy_episodes=2 * episodes if args.failure_policies else 0,
            held_out=True,
            seed=seed,
            processes=args.processes,
        )
    )
    return open_frames(store.root)[0], store.numeric()["next.success"]


def _judge(args: Rank, env: EnvSpec, teachers: Sequence[Run], world: Model) -> SuccessClassifier:
    teach, told = _recordings(args, env, teachers, args.recordings, seed=11)
    check, known = _recordings(args, env, teachers, max(2, args.recordings // 2), seed=12)
    return train_success_classifier(
        teach, told, check, known, world.spec, steps=args.judge_steps, every=args.replan_every
    )


def _exploited(args: Rank, stood: Sequence[PolicyOutcome], stage: PairedRollouts) -> Table:
    """What a search for the world model's favour promises, and what the simulator makes of the same actions."""
    best = max(stood, key=lambda s: float(s.real.mean()))
    rows = []
    for candidates in (1, args.candidates):
        dreamed, actions = stage.imagined(best.run, candidates, args.spread if candidates > 1 else 0.0)
        real = stage.executed(actions)
        name = "as it acts" if candidates == 1 else f"the most promising of {candidates}"
        rows += [
            Row(f"dreamed.{candidates}", f"{name}: dreamed", dreamed.mean(), success_interval(dreamed), fmt=".0%"),
            Row(
                f"executed.{candidates}",
                f"{name}: the same actions in the simulator",
                real.mean(),
                success_interval(real),
                fmt=".0%",
            ),
            Row(
                f"dreamed_alone.{candidates}",
                f"{name}: promised and not kept",
                float((dreamed & ~real).mean()),
                success_interval(dreamed & ~real),
                fmt=".0%",
                note="episodes that succeed in the dream alone",
            ),
        ]
    how = (
        f"{best.run.name}, the best policy, is let choose among its own chunks and others around them what the judge likes best in the world "
        "model's picture. What it gains in the dream and not in the simulator is the world model's weakness, not the policy's severity."
    )
    return Table("exploitability", "Can it be exploited?", how, tuple(rows))


# ------------------------------------------------------------------------------------------------------------------ tables

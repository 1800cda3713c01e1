"""Counterfactuals: several true futures of one state, compared with the futures that a model imagines.

States are taken along an expert's episodes. From each, the simulator replays on-expert chunks (the one taken there, and
those of other moments of the task) and off-expert chunks (every action dimension at both its ends, no motion, a random
walk).

The model imagines every branch from the same observation with the same noise. A model that only continues what usually
happens imagines the same future for all branches. On-expert and off-expert branches are reported apart, since models
follow experts' actions sooner than others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, UInt8

from wamkit.data.image_transform import ImageTransform
from wamkit.envs.base import VALIDATION_SEED_BASE
from wamkit.envs.spec import EnvSpec
from wamkit.eval.metrics.image import TAU
from wamkit.eval.metrics.intervals import bootstrap_ratio
from wamkit.eval.registry import EVALUATIONS, Context, Evaluation
from wamkit.eval.results import ACTION, EvalResult, Row, Table, Worst
from wamkit.inference.checks import row_seeds, unsupported
from wamkit.inference.model import Model
from wamkit.rollout.replay import STILL, expert_episode, observed, off_expert_chunks, rollout_from, shown_at
from wamkit.types import UNDEFINED, EvaluationError, Interval, Observation, Query, Spec, UnsupportedQuery
from wamkit.viz.images import difference
from wamkit.workers import run_parallel

OTHERS = 3
"""Number of on-expert chunks from other moments of the episode."""

FIRST_SEED = VALIDATION_SEED_BASE + 900_000
"""States are taken from episodes reset with this seed and those after it, which neither training nor closed loop
uses."""


@dataclass(frozen=True)
class Counterfactuals:
    """One state and its K true futures.

    task, seed, step: the episode, and the step in it.   obs: the observation at the state.   names: of the chunks.
    actions: float32 (K, A, a), as executed.   future: uint8 (K, F, V, 3, H, W), images at the model's horizons.
    reward: float64 (K,), sum over the chunk.   expert: bool (K,), whether the chunk is on-expert.
    """

    task: str
    seed: int
    step: int
    obs: Observation
    names: tuple[str, ...]
    actions: Float32[np.ndarray, "K A a"]
    future: UInt8[np.ndarray, "K F V 3 H W"]
    reward: Float64[np.ndarray, " K"]
    expert: Bool[np.ndarray, " K"]

    def only(self, expert: bool) -> Counterfactuals:
        """The chunks of one kind; the chunk without motion counts as off-expert."""
        rows = np.flatnonzero(self.expert == expert)
        names = tuple(self.names[i] for i in rows)
        arrays = (x[rows] for x in (self.actions, self.future, self.reward, self.expert))
        return Counterfactuals(self.task, self.seed, self.step, self.obs, names, *arrays)


def _work(job: tuple[EnvSpec, Spec, str, int, int]) -> list[Counterfactuals]:
    """`count` evenly spaced states of one episode, whose other chunks are the other on-expert ones."""
    where, spec, task, seed, count = job
    env, rng = where.shared(task), np.random.default_rng((seed, 5))
    episode = shown_at(expert_episode(env, seed), spec)
    last = len(episode) - spec.chunk
    if last < 1 or episode.snapshots is None:
        raise EvaluationError(f"{task}, seed {seed}: {len(episode)} steps, less than a chunk of {spec.chunk}")
    chunk_at = lambda t: episode.action[t : t + spec.chunk]  # noqa: E731
    out = []
    for t in np.unique(np.linspace(0, last, count + 2).astype(int)[1:-1]).tolist():
        distant = [k for k in range(0, last + 1, max(1, last // 12)) if abs(k - t) >= spec.chunk // 2]
        others = sorted(rng.permutation(distant)[:OTHERS].tolist())
        on_expert = {"taken": chunk_at(t)} | {f"of step {k}": chunk_at(k) for k in others}
        chunks = on_expert | off_expert_chunks(env, spec.chunk, rng)
        actions = np.stack(list(chunks.values()))
        future, reward = rollout_from(env, episode.snapshots[t], actions, spec.frame_offsets)
        future = ImageTransform.of(spec)(future)
        expert, obs = np.array([name in on_expert for name in chunks]), observed(episode, t, spec.past_offsets)
        out.append(Counterfactuals(task, seed, t, obs, tuple(chunks), actions, future, reward, expert))
    return out


def counterfactuals(
    env: EnvSpec, spec: Spec, *, episodes: int = 6, moments: int = 2, processes: int = 2
) -> list[Counterfactuals]:
    """`moments` states of each of `episodes` episodes a task, from reset states that nothing was trained on.

    The same on any number of processes. Raises EvaluationError as `rollout_from`, and for an episode shorter than a
    chunk.
    """
    jobs = [(env, spec, task, FIRST_SEED + i, moments) for task in env.tasks for i in range(episodes)]
    work = run_parallel(
        jobs, _work, processes=processes, desc="replay", unit="episode", describe=lambda j: f"{j[2]}, seed {j[3]}"
    )
    with closing(work):
        return [state for states in work for state in states]


Imagine = Callable[[Counterfactuals], UInt8[np.ndarray, "K F V 3 H W"]]
"""A model's futures of all branches, from observation and actions alone."""


def imagined_by(model: Model, steps: int | None = None, seed: int = 0) -> Imagine:
    """Futures that `model` imagines for every branch, with one noise.

    Raises UnsupportedQuery for a model without forward dynamics.
    """
    if Query.FORWARD not in model.queries:
        raise UnsupportedQuery(unsupported(model.name, Query.FORWARD))

    def imagine(state: Counterfactuals) -> np.ndarray:
        noise = row_seeds(seed + 7919 * state.seed + state.step, 1) * len(state.names)
        given = [state.obs] * len(state.names)
        return model.sample(given, Query.FORWARD, seed=noise, steps=steps, actions=state.actions).future

    return imagine


@dataclass(frozen=True)
class ActionScore:
    """Scores of imagined branches; intervals resample episodes. NaN where nothing ever moved.

    identified: identification accuracy, the share of branches whose imagined future is nearer to its own true one than
    to any that differs, in [0, 1], higher is better.   chance: that of a model that ignores actions.
    direction: cosine between imagined and true difference to the branch without motion, in [-1, 1], 1 is best, 0 is
    action-blind.
    gain: regression slope of that difference on the true one: 1 is right, below it actions do too little.
    skill: 1 - error / error of copying the current image; 1 is perfect.
    drift: change imagined where nothing is done, over the change that actions make: 0 is best.
    regret: cost of choosing by imagination the branch with the most reward, over that of a blind choice: 0 is best, 1
    is chance.
    """

    states: int
    branches: float
    chance: float
    identified: Interval
    direction: Interval
    gain: Interval
    skill: Interval
    drift: Interval
    regret: Interval


def score(states: Sequence[Counterfactuals], imagine: Imagine, seed: int = 0) -> ActionScore:
    """Compares imagined with true futures in every state, on the pixels that move in any of its branches.

    Distances are between images, so large objects weigh more; objects of a few pixels hardly count. Raises
    EvaluationError without states, and for imagined images of another shape.
    """
    if not states:
        raise EvaluationError("there are no states to imagine from")
    rows = [_figures(state, imagine(state)) for state in states]
    cluster = np.unique([f"{s.task} {s.seed}" for s in states], return_inverse=True)[1]

    def ratio(top: str, bottom: str, low: float = 0.0, high: float = inf) -> Interval:
        a, b = (np.array([r[k] for r in rows]) for k in (top, bottom))
        return bootstrap_ratio(a, b, cluster, seed, bounds=(low, high)) if b.sum() else UNDEFINED

    wrong = ratio("error", "copy")
    skill = wrong if wrong.undefined else Interval(1 - wrong.value, 1 - wrong.high, 1 - wrong.low, wrong.level)
    count = [len(s.names) for s in states]
    return ActionScore(
        len(states),
        float(np.mean(count)),
        sum(r["chance"] for r in rows) / sum(count),
        ratio("identified", "branches", 0.0, 1.0),
        ratio("cosines", "moving", -1.0, 1.0),
        ratio("along", "square", -inf),
        skill,
        ratio("drift", "change"),
        ratio("regret", "blind"),
    )


def _figures(state: Counterfactuals, imagined: np.ndarray) -> dict[str, float]:
    """Sums over the branches of one state; see `ActionScore`."""
    if imagined.shape != state.future.shape:
        raise EvaluationError(f"imagined {imagined.shape}, but the branches are {state.future.shape}")
    K = len(state.names)
    real, made = (
        torch.from_numpy(np.ascontiguousarray(x)).float().div(255).flatten(1) for x in (state.future, imagined)
    )
    now = torch.from_numpy(state.obs.images).float().div(255).expand(state.future.shape[1:]).reshape(-1)
    moves = ((real - now).abs() > TAU).any(0)
    real, made, now = real[:, moves], made[:, moves], now[moves]
    distance_KK = torch.cdist(made.double(), real.double())
    # Equally near ones share the credit, so that a model that imagines the same for all is at chance.
    near = distance_KK <= distance_KK.min(1, keepdim=True).values * (1 + 1e-9)
    same = (real[:, None] == real[None]).all(-1)  # two chunks may have the same effect to the bit: either is right
    out = {
        "branches": K,
        "chance": float(same.sum() / K),
        "identified": float(((near & same).sum(1) / near.sum(1)).sum()),
        "error": float((made - real).square().sum()),
        "copy": float((now - real).square().sum()),
    }
    reward = state.reward
    expected = (near.double() @ torch.from_numpy(reward) / near.sum(1)).numpy()
    chosen = expected >= expected.max() - 1e-12
    out |= {"regret": reward.max() - reward[chosen].mean(), "blind": reward.max() - reward.mean()}
    cosines = moving = along = square = drift = change = 0.0
    if STILL in state.names and moves.any():
        still = state.names.index(STILL)
        truth, guess = real - real[still], made - made[still]
        far = (truth.abs() > TAU).any(1)
        size = truth.norm(dim=1) * guess.norm(dim=1)
        cosine = torch.where(size > 0, (truth * guess).sum(1) / size.clamp(min=1e-12), 0.0)
        cosines, moving = float(cosine[far].sum()), float(far.sum())
        along, square = float((truth * guess)[far].sum()), float(truth[far].square().sum())
        drift = float((made[still] - real[still]).square().sum()) * moving
        change = float(truth[far].square().sum())
    return out | {
        "cosines": cosines, "moving": moving, "along": along, "square": square, "drift": drift, "change": change,
    }  # fmt: skip


def counterfactual_table(states: Sequence[Counterfactuals], imagine: Imagine) -> Table:
    """Scores of on-expert and of off-expert branches."""
    rows = []
    for kind, expert in (("expert", True), ("off_expert", False)):
        rows += _rows(kind, score([s.only(expert) for s in states], imagine))
    tasks = len({s.task for s in states})
    how = (
        f"{len(states)} states of {tasks} tasks. From each the simulator executes several chunks, and the model "
        "imagines them with one noise. Measured on pixels that move in any of them."
    )
    return Table("counterfactuals", "Does it imagine what its actions do?", how, tuple(rows), ACTION)


def _rows(kind: str, s: ActionScore) -> list[Row]:
    """Rows of the branches of one kind, `expert` or `off_expert`; figures without a case are left out."""
    label = {"expert": "expert's chunks", "off_expert": "other actions"}[kind]
    chance = f"of {s.branches:.0f}; chance is {s.chance:.0%}"
    blind = "0 is best, 1 is choosing blindly"
    figures = [
        ("identified", "identification accuracy", ".0%", chance),
        ("skill", "skill over copying", ".3f", "1 is perfect"),
        ("regret", "regret of choosing by imagination", ".3f", blind),
    ]
    if kind == "off_expert":
        figures += [
            ("direction", "direction", ".3f", "cosine to what the action changes; 0 is blind to it"),
            ("gain", "gain", ".3f", "1 is right, less is too little"),
            ("drift", "drift when nothing is done", ".3f", "over what actions change; 0 is best"),
        ]
    rows = []
    for key, name, fmt, note in figures:
        if not (x := getattr(s, key)).undefined:
            rows.append(Row(f"{kind}.{key}", f"{label}: {name}", x.value, x, fmt=fmt, note=note))
    return rows


def _worst(made: list[tuple[Counterfactuals, np.ndarray]], count: int = 2) -> list[Worst]:
    """Videos of the branches with the largest squared error on moving pixels, at most one per task."""
    found = []
    for i, (state, imagined) in enumerate(made):
        real, now = state.future.astype(np.float32), state.obs.images.astype(np.float32)
        moves = (np.abs(real - now) > 255 * TAU).any(0)
        error = (np.square(imagined - real) * moves).sum(tuple(range(1, real.ndim)))
        found += [(float(e), i, k) for k, e in enumerate(error)]
    out: dict[str, Worst] = {}
    for _, i, k in sorted(found, reverse=True):
        state, imagined = made[i]
        if state.task in out:
            continue
        now = state.obs.images[None, 0]
        real, guess = (np.concatenate([now, x[k, :, 0]]) for x in (state.future, imagined))
        columns = {"what the action does": real, "imagined": guess, "difference": difference(real, guess)}
        title, note = f"{state.task}: action '{state.names[k]}'", f"seed {state.seed}, from step {state.step} on"
        out[state.task] = Worst(ACTION, title, columns, 1.5, note)
        if len(out) == count:
            break
    return list(out.values())


@EVALUATIONS.register("counterfactuals")
class CounterfactualBranches(Evaluation):
    """Identification of the future that belongs to an action, among several from one state."""

    suite, order, needs_snapshots = "full", 50, True

    def needs(self, context: Context) -> bool:
        return Query.FORWARD in context.model.queries

    def check(self, context: Context) -> None:
        context.check_unseen(range(FIRST_SEED, FIRST_SEED + context.options.held_out), "the evaluation seeds")

    def run(self, context: Context) -> EvalResult:
        model, o = context.model, context.options
        states = counterfactuals(context.env, model.spec, episodes=o.held_out, processes=o.processes)
        ask, made = imagined_by(model), []

        def imagine(state: Counterfactuals) -> np.ndarray:
            made.append((state, ask(state)))
            return made[-1][1]

        return EvalResult((counterfactual_table(states, imagine),), tuple(_worst(made)))

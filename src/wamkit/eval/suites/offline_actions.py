"""Actions on recorded episodes that training never saw, beside those of policies that have learned nothing.

An error alone says little: of a slow arm every policy is near, and of a noisy demonstrator none. So each error stands
beside that of standing still, of the mean action, of repeating the last one, and of the demonstration that was nearest
(the best of "copy what was done when things looked like this"; Pari et al. 2021, arXiv:2112.01511, act by it). Blind to
what errors add up to: a policy may be near in every window and still drift where no recording goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Integer, UInt8

from wamkit.data.loading.windows import Frames, Windows, shuffled_within
from wamkit.eval.metrics.action_baselines import (
    ZERO,
    coverage,
    holding,
    nearest,
    nominal,
    previous,
    repeats,
    spread_and_error,
    squared_error,
    standing_still,
)
from wamkit.eval.metrics.intervals import bootstrap_ratio, paired_ratio, two_sample_ratio
from wamkit.eval.queries import answerable, query_windows, row_batches, whole_windows, window_seeds
from wamkit.eval.results import ACTION, Plot, Row, Table, Worst
from wamkit.inference.model import Model
from wamkit.metadata import Field
from wamkit.nn.scaling import is_constant, measured
from wamkit.types import Batch, Query
from wamkit.viz.charts import curve_svg

BASELINES = {
    "still": "standing still",
    "mean": "the mean action",
    "last": "repeating the last action",
    "nearest": "the nearest demonstration",
}
"""Policies that have learned nothing, by key."""
DRAWS, DRAWN = 16, 200
"""Answers a window for the spread, and the largest number of windows for which they are drawn."""
REFERENCES = 2000
"""Largest number of windows among which the nearest demonstration is looked for."""
EXCHANGES = 16
"""Times that windows exchange their answers."""
GRID = 6
"""Side of the coarse image by which situations are compared."""
SHOWN = 3
"""Worst windows and dimensions that are shown."""


@dataclass(frozen=True)
class ActionAnswers:
    """A policy's chunks on W windows of unseen episodes, in the robot's units, and what else could have been done.

    episode: int64 (W,).   start: int64 (W,), the first row of each window.   text: instructions.
    answer, executed: float (W, A, a).
    baselines: key of `BASELINES` -> (W, A, a). NaN where no demonstration has the instruction of the window.
    unit: (a,), deviation of the executed actions; 1 where they never move.   moves: bool (a,).
    last: (W, a), the action before the window.   holds: int64 (a,), see `metrics.action_baselines.holding`.
    draws, drawn: (K, D, A, a), answers to `drawn` (D,) of the windows; K is 0 for a policy that draws none.
    known: answers, executed chunks and episodes of windows that training saw; None where none are at hand.
    """

    episode: Int64[np.ndarray, " W"]
    start: Int64[np.ndarray, " W"]
    text: Sequence[str]
    answer: Float[np.ndarray, "W A a"]
    executed: Float[np.ndarray, "W A a"]
    baselines: dict[str, Float[np.ndarray, "W A a"]]
    unit: Float[np.ndarray, " a"]
    moves: Bool[np.ndarray, " a"]
    last: Float[np.ndarray, "W a"]
    holds: Int64[np.ndarray, " a"]
    draws: Float[np.ndarray, "K D A a"]
    drawn: Int64[np.ndarray, " D"]
    known: tuple[np.ndarray, np.ndarray, np.ndarray] | None

    def error(self, chunks: Float[np.ndarray, "W A a"]) -> Float[np.ndarray, "W A m"]:
        """Squared errors of `chunks` in the m dimensions that move, in squared deviations."""
        return squared_error(chunks, self.executed, self.unit)[..., self.moves]

    def rmse(self, chunks: Float[np.ndarray, "W A a"]) -> Float[np.ndarray, " a"]:
        """Root of the mean squared error of every dimension, in the robot's units."""
        return np.sqrt(np.nanmean(squared_error(chunks, self.executed, np.ones_like(self.unit)), (0, 1)))


def answer_actions(
    model: Model,
    unseen: Frames,
    seen: Frames | None,
    *,
    names: tuple[Sequence[str], Sequence[str]],
    fields: Sequence[Field] = (),
    stride: int = 4,
    steps: int | None = None,
) -> ActionAnswers:
    """Asks the policy about every `stride`-th window of `unseen`, and collects what else could have been done.

    seen: the episodes that training saw, if they are at hand. Mean and nearest demonstration are theirs; without them
    they are those of the other unseen episodes.
    names: of the action and of the state dimensions.   fields: metadata of the action.
    """
    spec = model.spec
    starts = whole_windows(unseen, spec, stride)
    windows, answer = _answered(model, unseen, starts, steps)
    executed, state = windows.action.numpy(), windows.proprio.numpy()
    basis = unseen if seen is None else seen
    rows = basis.rows()
    holds = holding(basis.action[rows], basis.proprio[rows], *names, fields)
    mean, deviation = measured(basis.action[rows], "mean_std")
    moves = ~is_constant(mean, deviation)
    still = standing_still(state, holds, spec.chunk)
    last = previous(unseen.action, starts, unseen.episode, still[:, 0])
    reference = _thinned(whole_windows(basis, spec, 1), REFERENCES)
    chosen = _nearest(model, basis, reference, windows, None if seen is not None else unseen.episode[starts])
    chunks = basis.action[reference[chosen][:, None] + np.arange(spec.chunk)]
    baselines = {
        "still": still,
        "mean": np.broadcast_to(mean, executed.shape),
        "last": np.broadcast_to(last[:, None], executed.shape),
        "nearest": np.where((chosen >= 0)[:, None, None], chunks, np.nan),
    }
    drawn = _thinned(np.arange(len(starts)), DRAWN)
    some = windows.rows(torch.from_numpy(drawn))
    repeated = range(DRAWS if model.denoises(Query.POLICY) else 0)
    draws = [_asked(model, some, window_seeds(starts[drawn], 1 + k), steps) for k in repeated]
    known = None
    if seen is not None:
        begun = _thinned(whole_windows(seen, spec, stride), len(starts))
        learned, given = _answered(model, seen, begun, steps)
        known = (given, learned.action.numpy(), seen.episode[begun])
    return ActionAnswers(
        unseen.episode[starts], starts, windows.text, answer, executed, baselines, np.where(moves, deviation, 1.0),
        moves, last, holds, np.array(draws), drawn, known,
    )  # fmt: skip


def _answered(model: Model, frames: Frames, starts: np.ndarray, steps: int | None) -> tuple[Batch, np.ndarray]:
    every = answerable(Windows(frames, model.spec, seed=0, batch_size=1).gather(starts), model.embodiment)
    return every, _asked(model, every, window_seeds(starts), steps)


def _asked(model: Model, windows: Batch, seeds: Sequence[int], steps: int | None) -> np.ndarray:
    parts = [
        query_windows(model, windows.rows(torch.from_numpy(r)), Query.POLICY, [seeds[i] for i in r], steps=steps)
        for r in row_batches(len(windows))
    ]
    return np.concatenate([part.actions for part in parts])


def _thinned(values: Integer[np.ndarray, " N"], most: int) -> Integer[np.ndarray, " n"]:
    """At most so many of the values, evenly spread."""
    return values[np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(np.int64)]


def _nearest(
    model: Model, basis: Frames, reference: np.ndarray, windows: Batch, own: np.ndarray | None
) -> Int64[np.ndarray, " W"]:
    """The window of `reference` most like each of `windows` under the same instruction, -1 where there is none.

    own: the windows' episodes, from which none is taken.
    """
    gather = Windows(basis, model.spec, seed=0, batch_size=1).gather
    parts = [answerable(gather(reference[r]), model.embodiment) for r in row_batches(len(reference), 256)]
    texts = np.array([t for part in parts for t in part.text])
    state = np.concatenate([part.proprio.numpy() for part in parts])
    coarse = np.concatenate([_coarse(part.obs.numpy()) for part in parts])
    shift, scale = measured(state, "mean_std")
    scale = np.where(is_constant(shift, scale), np.inf, scale)
    middle, width = coarse.mean(0), coarse.std() or 1.0

    def features(state: np.ndarray, coarse: np.ndarray) -> np.ndarray:
        """Both parts with the mean squared length 1, so that state and image weigh alike."""
        parts = (state - shift) / scale, (coarse - middle) / width
        return np.concatenate([p / max(1, p.shape[1]) ** 0.5 for p in parts], 1).astype(np.float32)

    allowed = np.array(windows.text)[:, None] == texts
    if own is not None:
        allowed &= own[:, None] != basis.episode[reference]
    asked = features(windows.proprio.numpy(), _coarse(windows.obs.numpy()))
    return nearest(asked, features(state, coarse), allowed)


def _coarse(images: UInt8[np.ndarray, "B V 3 H W"]) -> Float[np.ndarray, "B f"]:
    """Mean brightness in a grid of GRID x GRID cells of every view."""
    grey = torch.from_numpy(images).float().mean(2)
    return torch.nn.functional.adaptive_avg_pool2d(grey, GRID).flatten(1).numpy()


def action_tables(answers: ActionAnswers, action_names: Sequence[str], fps: float) -> tuple[Table, ...]:
    """The figures, each with its interval over whole episodes."""
    if not answers.moves.any():
        return ()
    return (
        _over_baselines(answers, action_names),
        _by_dimension(answers, action_names),
        _by_horizon(answers, fps),
        _habits(answers),
        *([_spread(answers)] if len(answers.draws) else []),
    )


def _ratio(a: ActionAnswers, error: np.ndarray, usual: np.ndarray, fmt: str = ".3f", **row: str) -> Row | None:
    """A row of the ratio of two errors of every window where there is a second; None where that is 0 throughout."""
    there = np.isfinite(usual)
    if not usual[there].sum():
        return None
    found = paired_ratio(error[there].astype(np.float64), usual[there].astype(np.float64), a.episode[there], 0)
    return Row(value=found.value, interval=found, fmt=fmt, **row)


def _over_baselines(a: ActionAnswers, names: Sequence[str]) -> Table:
    own = a.error(a.answer).mean((1, 2))
    errors = {key: a.error(a.baselines[key]).mean((1, 2)) for key in BASELINES}
    shares = {key: np.isfinite(error).mean() for key, error in errors.items()}
    notes = {k: f"{s:.0%} of the moments have an instruction that was demonstrated" for k, s in shares.items() if s < 1}
    rows = [
        _ratio(a, own, errors[key], key=f"over.{key}", name=f"error / {words}", note=notes.get(key, ""))
        for key, words in BASELINES.items()
    ]
    fixed = [n for n, moves in zip(names, a.moves, strict=True) if not moves]
    how = (
        "Squared error of the policy's chunks on episodes that training never saw, over that of policies that have "
        "learned nothing: 0 is what was executed, 1 no better than they. "
        + (f"Never moving, and left out: {', '.join(fixed)}. " if fixed else "")
        + f"Standing still is {_held(a, names)}. Intervals resample whole episodes."
    )
    return Table("recorded", "Does it act as in the recordings?", how, tuple(filter(None, rows)), ACTION)


def _held(a: ActionAnswers, names: Sequence[str]) -> str:
    targets = [n for n, h, m in zip(names, a.holds, a.moves, strict=True) if h != ZERO and m]
    if not targets:
        return "the action 0"
    return "the state as target" + ("" if len(targets) == a.moves.sum() else f" of {', '.join(targets)}, else 0")


def _by_dimension(a: ActionAnswers, names: Sequence[str]) -> Table:
    own, still = (a.error(x).mean(1) for x in (a.answer, a.baselines["still"]))
    known = {words: a.baselines[key] for key, words in BASELINES.items() if np.isfinite(a.baselines[key]).any()}
    roots = {"": a.rmse(a.answer)} | {words: a.rmse(chunks) for words, chunks in known.items()}
    rows = []
    for j, i in enumerate(np.flatnonzero(a.moves)):
        others = ", ".join(f"{words} {root[i]:.3g}" for words, root in roots.items() if words)
        note = f"{roots[''][i]:.3g} off (root mean square, the robot's units); {others}"
        key, name = f"dimension.{i}", f"{names[i]}: error / standing still"
        rows.append(_ratio(a, own[:, j], still[:, j], key=key, name=name, note=note))
    how = "The same for each dimension; above 1 the robot would be nearer to the recording if it did nothing."
    return Table("recorded_dimensions", "In which dimensions?", how, tuple(filter(None, rows)), ACTION)


def _by_horizon(a: ActionAnswers, fps: float) -> Table:
    A = a.answer.shape[1]
    own, still = (a.error(x).mean(2) for x in (a.answer, a.baselines["still"]))
    rows = [
        _ratio(a, own[:, k], still[:, k], key=f"step.{k + 1}", name=f"step {k + 1}, {(k + 1) / fps:.2g} s ahead")
        for k in sorted({0, A // 4, A // 2, A - 1})
    ]
    how = "Error over that of standing still, by the place of an action in its chunk."
    return Table("recorded_horizons", "How far ahead?", how, tuple(filter(None, rows)), ACTION)


def _habits(a: ActionAnswers) -> Table:
    """Figures by which faults of training show: on shuffled actions, by copying, by heart."""
    own = a.error(a.answer).mean((1, 2))
    exchanged = [shuffled_within(a.text, seed) for seed in range(EXCHANGES)]
    other = np.mean([a.error(a.answer[order]).mean((1, 2)) for order in exchanged], 0)
    alone = exchanged[0] == np.arange(len(own))  # the only moment under its instruction
    note = "moments under one instruction exchange their answers; 1: what it sees makes no difference"
    errors = (np.where(alone, 0, x) for x in (own, other))
    rows = [_ratio(a, *errors, key="attention", name="error / that of another moment's answer", note=note)]
    moved = repeats(*(x[..., a.moves] for x in (a.answer, a.last, a.executed, a.unit)))
    note = "0: it repeats its last action; 1: it moves on as the recordings do"
    rows.append(_ratio(a, *moved, key="change", name="change from the last action / recorded change", note=note))
    if a.known is not None:
        given, done, episode = a.known
        seen = squared_error(given, done, a.unit)[..., a.moves].mean((1, 2))
        rows.append(_by_heart(own, a.episode, seen, episode))
    how = "Signs of a policy that learned something else than to act on what it sees."
    return Table("recorded_habits", "What did it learn instead?", how, tuple(filter(None, rows)), ACTION)


def _by_heart(own: np.ndarray, episode: np.ndarray, seen: np.ndarray, known: np.ndarray) -> Row | None:
    """Mean error on unseen over that on seen windows, two samples of episodes; None where either is 0."""
    if not seen.sum() or not own.sum():
        return None
    found = two_sample_ratio(own.astype(np.float64), episode, seen.astype(np.float64), known)
    note = "1: as good on what it never saw; far above: it knows its demonstrations by heart"
    return Row("unseen", "error / that on seen episodes", found.value, found, fmt=".2f", note=note)


def _spread(a: ActionAnswers) -> Table:
    draws, executed = a.draws[..., a.moves], a.executed[a.drawn][..., a.moves]
    episode, ones, rows = a.episode[a.drawn], np.ones(len(a.drawn)), []
    for level in (0.5, 0.9):
        inside = bootstrap_ratio(coverage(draws, executed, level), ones, episode, 0, bounds=(0.0, 1.0))
        expected = nominal(len(draws), level)
        name = f"executed actions inside the policy's central {expected:.0%}"
        note = f"{expected:.0%} if its spread is right; fewer: too sure of itself, more: too unsure"
        rows.append(Row(f"inside.{level:.0%}".replace("%", ""), name, inside.value, inside, fmt=".0%", note=note))
    variance, error = spread_and_error(draws, executed, a.unit[a.moves])
    if error.sum():
        found = paired_ratio(variance, error, episode, 0)
        note = "1 if its spread is right, 0 for a policy that always gives one answer"
        rows.append(Row("spread", "variance / error of the mean answer", found.value, found, fmt=".2f", note=note))
    how = f"{len(draws)} answers to each of {len(a.drawn)} moments; what was executed should look like one more."
    return Table("recorded_spread", "Does it know how sure it is?", how, tuple(rows), ACTION)


def worst_actions(answers: ActionAnswers, frames: Frames, names: Sequence[str]) -> tuple[list[Worst], list[Plot]]:
    """The windows with the largest errors, at most one an episode: images of the first view, and actions as charts."""
    if not answers.moves.any():
        return [], []
    error = answers.error(answers.answer)
    total, worst, plots, seen = error.mean((1, 2)), list[Worst](), list[Plot](), set[int]()
    for w in np.argsort(-total):
        e = int(answers.episode[w])
        if e in seen:
            continue
        seen.add(e)
        row, A = int(answers.start[w]), answers.answer.shape[1]
        first = int(np.searchsorted(frames.episode, e))
        place = f"episode {e}, step {row - first}"
        view = 0 if frames.has_view is None else int(frames.has_view[e].argmax())
        images = np.asarray(frames.images[np.arange(row, row + A)])[:, view]
        worst.append(Worst(ACTION, answers.text[w], {"recorded": images}, 10.0, place))
        moving = np.flatnonzero(answers.moves)
        charts = {}
        for i in moving[np.argsort(-error[w].mean(0))][:SHOWN]:
            lines = {"executed": answers.executed, "answered": answers.answer}
            lines["standing still"] = answers.baselines["still"]
            series = {k: (range(1, A + 1), x[w, :, i].tolist()) for k, x in lines.items()}
            charts[names[i]] = curve_svg(series, log=False, over="steps ahead")
        how = "Over steps ahead: blue what was executed, orange the answer, green standing still."
        (name, first_chart), *others = charts.items()
        plots.append(Plot(f"Worst actions: {place}", how, first_chart, name, dict(others), ACTION))
        if len(seen) == SHOWN:
            break
    return worst, plots

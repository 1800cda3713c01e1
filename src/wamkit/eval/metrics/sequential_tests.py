"""Evidence that one policy is better than another: across tasks and training seeds, and while episodes still come in.

Which interval a success rate deserves depends on the claim. About these tasks: reset states are resampled within each
task. About tasks like these: whole tasks are resampled too. About the method rather than one run of it: training seeds
are the outer level of either. All are percentile bootstraps (Efron and Tibshirani 1993), seeded, with tails widened for
few units. They are too narrow below 5 training seeds, which cannot show their spread; so the counts belong beside the
interval.

A test for a fixed number of episodes (`intervals.mcnemar`, `intervals.barnard`) is wrong once somebody looks and then
decides whether to go on. `PairedEProcess` may be looked at after every episode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float64, Integer, Shaped
from scipy.special import betaln, gammaln
from scipy.stats import binom, trim_mean

from wamkit.eval.metrics.intervals import clopper_pearson, percentile_interval, resample_counts
from wamkit.types import EvaluationError, Interval

MAX_DISCORDANT = 20_000  # pairs on which two policies differ; nobody plays more, and the forecast is quadratic in it


def outcome_tables(
    task: Sequence[str],
    training_seed: Sequence[int],
    reset_state: Sequence[int],
    success: Shaped[np.ndarray, " N"],
) -> dict[str, Float64[np.ndarray, "S E"]]:
    """Episode records as one table a task: row = training seed, column = reset state, both in ascending order.

    success: bool, or partial credit in [0, 1]. Every training seed must have played every task from the same reset
    states once: that they share them is what makes resampling reset states right. Raises EvaluationError if not.
    """
    if not len(task) == len(training_seed) == len(reset_state) == len(success) or len(task) == 0:
        raise EvaluationError("need equally many tasks, training seeds, reset states and outcomes, at least one")
    seeds, tables = sorted(set(training_seed)), {}
    played = {(t, s, r): float(y) for t, s, r, y in zip(task, training_seed, reset_state, success, strict=True)}
    if len(played) < len(task):
        raise EvaluationError(f"{len(task) - len(played)} episodes repeat a task, training seed and reset state")
    for name in dict.fromkeys(task):
        states = sorted({r for t, r in zip(task, reset_state, strict=True) if t == name})
        missing = [(s, r) for s in seeds for r in states if (name, s, r) not in played]
        if missing:
            raise EvaluationError(
                f"{name}: {len(missing)} episodes are missing, first training seed {missing[0][0]} from reset state "
                f"{missing[0][1]}; every training seed plays every task from the same reset states"
            )
        tables[name] = np.array([[played[name, s, r] for r in states] for s in seeds])
    return tables


def mean_success(
    outcomes: Mapping[str, Shaped[np.ndarray, "S E"]],
    seed: int,
    *,
    new_tasks: bool = False,
    draws: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Success averaged over tasks, each weighing the same, with a bootstrap interval. In [0, 1], higher is better.

    outcomes: by task, one row a training seed and one column a reset state (`outcome_tables`); bool or [0, 1].
    new_tasks: False claims something about these tasks (reset states are resampled within each), True about tasks like
    them (whole tasks are resampled as well, and the interval is as wide as the tasks differ). With several rows,
    training seeds are the outer level, and a drawn reset state is drawn for all of them, since they shared it.

    Where every episode succeeded, or every one failed, resampling would claim certainty. The interval is then
    Clopper-Pearson's with as many trials as reset states (`new_tasks`: as tasks). That covers: with all rates alike a
    clean sweep is likeliest, since the product of rates is at most the power of their mean. It says nothing of new
    training seeds.

    Raises EvaluationError for no tasks, tables of different numbers of rows, values outside [0, 1], a task with one
    reset state (fixed tasks), or one task (`new_tasks`).
    """
    tables = [_table(name, table) for name, table in outcomes.items()]
    if not tables or len({len(t) for t in tables}) != 1:
        raise EvaluationError(f"need tasks with one number of training seeds, not {[len(t) for t in tables]}")
    states = [t.shape[1] for t in tables]
    if new_tasks and len(tables) < 2:
        raise EvaluationError("one task says nothing about others; give more tasks, or ask with new_tasks=False")
    if not new_tasks and min(states) < 2:
        single = [name for name, n in zip(outcomes, states, strict=True) if n < 2]
        raise EvaluationError(f"{single}: one reset state shows no spread; play two or more of each task")
    value = float(np.mean([t.mean() for t in tables]))
    if all(t.min() == t.max() == value for t in tables) and value in (0.0, 1.0):
        n = len(tables) if new_tasks else sum(states)
        return clopper_pearson(int(value) * n, n, level)
    rng, s, k = np.random.default_rng(seed), len(tables[0]), len(tables)
    means_NSK = np.stack([resample_counts(rng, draws, t.shape[1]) @ t.T / t.shape[1] for t in tables], axis=-1)
    seeds_NS = resample_counts(rng, draws, s) / s
    tasks_NK = resample_counts(rng, draws, k) / k if new_tasks else np.full((draws, k), 1 / k)
    means_N = np.einsum("nsk,ns,nk->n", means_NSK, seeds_NS, tasks_NK)
    return percentile_interval(value, means_N, k if new_tasks else min(states), level, (0.0, 1.0))


def iqm(scores: Float[np.ndarray, "S K"], seed: int, draws: int = 10_000, level: float = 0.95) -> Interval:
    """Interquartile mean of S training seeds x K tasks, with a stratified bootstrap interval.

    The mean of the middle half of all S K scores: less ruled by outliers than the mean, less wasteful than the median
    (Agarwal et al. 2021, arXiv 2108.13264). Runs are resampled within each task, so the tasks are fixed. In the units
    of the scores; higher is better if theirs is. Blind to the worst and the best quarter: a method that fails a fifth
    of its tasks entirely can score 1, so show the worst task beside it. Raises EvaluationError for fewer than two
    training seeds, no tasks, or values that are not finite.
    """
    scores = _scores(scores)
    s, k = scores.shape
    rng, columns = np.random.default_rng(seed), np.arange(k)
    means_N = np.array(
        [trim_mean(scores[rng.integers(s, size=(s, k)), columns], 0.25, axis=None) for _ in range(draws)]
    )
    return percentile_interval(float(trim_mean(scores, 0.25, axis=None)), means_N, s, level)


def probability_of_improvement(
    first: Float[np.ndarray, "S K"],
    second: Float[np.ndarray, "R K"],
    seed: int,
    draws: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """P(a run of the first scores above a run of the second on the same task), averaged over the K tasks.

    Ties count half: Mann and Whitney's U over S R. In [0, 1]: 1/2 is no difference; an interval above 1/2 says the
    first is better, not by how much (0.1 points always beat 0). Runs of both sides are resampled within each task
    (Agarwal et al. 2021). Raises EvaluationError as `iqm`, and for different numbers of tasks.
    """
    first, second = _scores(first), _scores(second)
    if first.shape[1] != second.shape[1]:
        raise EvaluationError(f"{first.shape[1]} and {second.shape[1]} tasks: score both methods on the same ones")
    ahead_SRK = (first[:, None] > second[None]) + 0.5 * (first[:, None] == second[None])
    rng, (s, r, k), means_N = np.random.default_rng(seed), ahead_SRK.shape, np.zeros(draws)
    for task in range(k):
        means_N += ((resample_counts(rng, draws, s) @ ahead_SRK[..., task]) * resample_counts(rng, draws, r)).sum(1) / (
            s * r * k
        )
    return percentile_interval(float(ahead_SRK.mean()), means_N, min(s, r), level, (0.0, 1.0))


def log_e_value(
    first_only: Integer[np.ndarray, "*n"] | int, second_only: Integer[np.ndarray, "*n"] | int, prior: float = 1.0
) -> Float64[np.ndarray, "*n"]:
    """Natural logarithm of e = 2^n B(a + w, a + l) / B(a, a), with w wins, l losses, n = w + l and a = `prior`.

    The chance of the wins and losses where the winning rate is drawn from Beta(a, a), over their chance where it is
    1/2: a betting score against "both are equally good". 0 without discordant pairs.
    """
    w, l = np.asarray(first_only), np.asarray(second_only)  # noqa: E741
    return betaln(prior + w, prior + l) - betaln(prior, prior) + (w + l) * math.log(2)


@dataclass(frozen=True)
class PairedEProcess:
    """An anytime-valid two-sided test that two policies succeed equally often from the same reset states.

        test = PairedEProcess()
        while test.winner is None:
            test = test.update(first, second)  # one pair of outcomes or many

    Only discordant pairs, on which one of the two succeeds, carry evidence. If the policies are alike, each falls
    either way with chance 1/2, e (`log_e_value`) is a martingale that starts at 1, and the chance that it ever reaches
    1 / alpha is at most alpha (Ville 1939), however often one looks and whatever makes one stop. So decide at e >= 1 /
    alpha, and
    keep that decision: later episodes do not take it back. The price of peeking: more episodes than one McNemar test
    would need if their number could be fixed rightly beforehand. Source: Ramdas et al. 2023 (arXiv 2210.01948).

    alpha: chance of any wrong decision between equals.   prior: a of the Beta(a, a) over the winning rate; larger waits
    for small differences.   first_only, second_only, concordant: pairs seen.   log_peak: the largest log e so far.
    winner: "first" or "second" once decided.
    Blind spots: reset states must come in an order that no outcome chose; and two runs are compared, not two methods,
    so another training seed may decide otherwise (`mean_success`).
    """

    alpha: float = 0.05
    prior: float = 1.0
    first_only: int = 0
    second_only: int = 0
    concordant: int = 0
    log_peak: float = 0.0
    winner: str | None = None

    def __post_init__(self) -> None:
        if not (0 < self.alpha < 1 and self.prior > 0):
            raise EvaluationError(f"need 0 < alpha < 1 and prior > 0, not {self.alpha} and {self.prior}")

    @property
    def pairs(self) -> int:
        return self.first_only + self.second_only + self.concordant

    @property
    def e(self) -> float:
        """Evidence against equality now: at least 0, 1 at the start, grows without bound for unequal policies."""
        with np.errstate(over="ignore"):
            return float(np.exp(log_e_value(self.first_only, self.second_only, self.prior)))

    @property
    def p_value(self) -> float:
        """min(1, 1 / largest e so far): valid whenever it is read, and never rises again."""
        return math.exp(-self.log_peak)

    @property
    def decided(self) -> bool:
        return self.winner is not None

    def update(self, first: bool | Bool[np.ndarray, " N"], second: bool | Bool[np.ndarray, " N"]) -> PairedEProcess:
        """The test after N more pairs, in the order given; many at once are the same as one by one.

        Entry i of both is the same reset state. No pairs change nothing. Raises EvaluationError for anything but two
        bool vectors of one length.
        """
        a, b = np.atleast_1d(first), np.atleast_1d(second)
        if not len(a) == len(b) == 0 and (a.dtype != bool or b.dtype != bool or a.shape != b.shape or a.ndim != 1):
            raise EvaluationError(f"need bool outcomes, one a pair, not {a.dtype}{a.shape} and {b.dtype}{b.shape}")
        if len(a) == 0:
            return self
        w, l = self.first_only + np.cumsum(a & ~b), self.second_only + np.cumsum(b & ~a)  # noqa: E741
        log_e = log_e_value(w, l, self.prior)
        winner, crossed = self.winner, np.flatnonzero(log_e >= -math.log(self.alpha))
        if winner is None and len(crossed):
            winner = "first" if w[crossed[0]] > l[crossed[0]] else "second"
        return replace(
            self,
            first_only=int(w[-1]),
            second_only=int(l[-1]),
            concordant=self.concordant + int((a == b).sum()),
            log_peak=max(self.log_peak, float(log_e.max())),
            winner=winner,
        )

    def episodes_left(self, power: float = 0.8) -> int | None:
        """Further pairs after which the test has decided with chance `power`, if the rates stay as seen.

        0 once decided. None where no end is in sight: no pair was discordant, or equally many either way.
        Optimistic after few pairs, as any effect size taken from the data that showed it. Raises EvaluationError as
        `episodes_needed` where the end is too far off.
        """
        if self.decided:
            return 0
        if self.first_only == self.second_only:
            return None
        return _pairs_to_decide(self, self.first_only / self.pairs, self.second_only / self.pairs, power)


def episodes_needed(
    p_first: float,
    p_second: float,
    *,
    correlation: float = 0.0,
    power: float = 0.8,
    alpha: float = 0.05,
    prior: float = 1.0,
) -> int:
    """Pairs of episodes after which a `PairedEProcess` has decided with chance `power`: what a comparison will cost.

    p_first, p_second: expected success rates.   correlation: Pearson's of the two outcomes of a reset state; 0 for
    independent reset states, larger where the same ones are hard for both, which makes pairs worth having.
    Exact (forward recursion over wins and losses), no simulation. Raises EvaluationError for equal rates, which no
    number of episodes tells apart, for a correlation that these rates do not allow, and for a difference so small that
    it takes over 20 000 discordant pairs.
    """
    if not (0 <= p_first <= 1 and 0 <= p_second <= 1) or p_first == p_second:
        raise EvaluationError(f"need two different success rates in [0, 1], not {p_first} and {p_second}")
    spread = math.sqrt(p_first * (1 - p_first) * p_second * (1 - p_second))
    both = p_first * p_second + correlation * spread
    low, high = max(0.0, p_first + p_second - 1), min(p_first, p_second)
    if not low - 1e-12 <= both <= high + 1e-12:
        allowed = [(edge - p_first * p_second) / spread for edge in (low, high)] if spread else [0.0, 0.0]
        raise EvaluationError(
            f"rates {p_first} and {p_second} allow correlations in [{allowed[0]:.3f}, {allowed[1]:.3f}], "
            f"not {correlation}"
        )
    only = max(0.0, p_first - both), max(0.0, p_second - both)
    return _pairs_to_decide(PairedEProcess(alpha, prior), *only, power)


def _pairs_to_decide(test: PairedEProcess, first_only: float, second_only: float, power: float) -> int:
    """Smallest n with P(decided within n more pairs) >= power; `*_only`: chance that only this one succeeds.

    The decision falls at a discordant pair, so P = sum over d of P(it takes d more of these) P(n pairs hold d of them).
    """
    if not 0 < power < 1:
        raise EvaluationError(f"power lies between 0 and 1, not at {power}")
    rate = first_only + second_only
    stops_d = _discordant_to_decide(test, first_only / rate, power)
    d = np.arange(1, len(stops_d) + 1)

    def decided_within(n: int) -> float:
        return float(stops_d @ binom.sf(d - 1, n, rate))

    high = 1
    while decided_within(high) < power:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided_within(middle) >= power else (middle, high)
    return high


def _discordant_to_decide(test: PairedEProcess, win: float, power: float) -> Float64[np.ndarray, " D"]:
    """P(the decision falls at the d-th further discordant pair), d = 1..D, up to where the rest no longer matters."""
    log_gamma = gammaln(test.prior + np.arange(test.first_only + test.second_only + MAX_DISCORDANT + 1))
    need = betaln(test.prior, test.prior) - math.log(test.alpha)
    alive, first_w, stops, stopped = np.ones(1), 0, [], 0.0  # alive[i]: undecided with first_w + i further wins
    enough = 1 - (1 - power) / 100
    for d in range(1, MAX_DISCORDANT + 1):
        alive = np.concatenate([alive * (1 - win), [0.0]]) + np.concatenate([[0.0], alive * win])
        w = first_w + np.arange(len(alive))
        wins, losses = test.first_only + w, test.second_only + d - w
        total = wins[0] + losses[0]
        log_beta = log_gamma[wins] + log_gamma[losses] - gammaln(2 * test.prior + total)
        done = log_beta + total * math.log(2) >= need
        stops.append(float(alive[done].sum()))
        stopped += stops[-1]
        alive[done] = 0.0
        kept = np.flatnonzero(alive)
        if len(kept) == 0 or stopped >= enough:
            return np.array(stops)
        alive, first_w = alive[kept[0] : kept[-1] + 1], first_w + int(kept[0])
    if stopped > power:  # the rest could only bring the answer forward
        return np.array(stops)
    raise EvaluationError(
        f"wins of {win:.4f} among discordant pairs are so near 1/2 that deciding takes over {MAX_DISCORDANT} of them"
    )


def _table(name: str, table: Shaped[np.ndarray, "S E"]) -> Float64[np.ndarray, "S E"]:
    out = np.asarray(table, np.float64)
    if out.ndim != 2 or out.size == 0 or not ((out >= 0) & (out <= 1)).all():
        raise EvaluationError(f"{name}: outcomes are a table (training seeds, reset states) in [0, 1], not {out.shape}")
    return out


def _scores(scores: Float[np.ndarray, "S K"]) -> Float64[np.ndarray, "S K"]:
    out = np.asarray(scores, np.float64)
    if out.ndim != 2 or out.size == 0 or not np.isfinite(out).all():
        raise EvaluationError(f"scores are a finite table (training seeds, tasks), not {out.shape}")
    if len(out) < 2:
        raise EvaluationError("one training seed shows no spread; train two or more (five, for an interval to trust)")
    return out

"""Recipes that follow from the data: `--recipe FAMILY` takes windows, sizes and steps from what is to be learned.

A rule gives values and the reason for them, which `wamkit train` prints; options on the command line replace them.
docs/recipes.md has the rules, and what they were tried on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from wamkit import old_names
from wamkit.data.format.store import EpisodeMeta, Store, StoreError
from wamkit.data.image_transform import sane_size
from wamkit.data.loading.mixture_config import MixtureConfig
from wamkit.files import read_json
from wamkit.runs.checkpoint import has_checkpoint
from wamkit.runs.config import PARTS, EpisodesConfig, RunConfig, changed, config_from_dict

TOKEN = 16
"""Side of a token's cell, in pixels; see `_tokens`."""
PER_CHUNK = 6
"""Chunks that a demonstration is divided into."""
CELLS = 36
"""Most cells of 16x16 pixels, of all views; beyond, cells are 32x32."""
MANY_FRAMES = 100_000
"""Frames from which the trunk is larger."""
WIDTHS = ("width", "action_width", "head_width")
"""Options that are widths of the trunk and of what is beside it."""
CODEC_SAMPLES, LEAST_CODEC = 20_000, 0.05
"""Samples from which the codec of frames learns, and the least share of all that are its."""
TEXT_DROPOUT = 0.2
"""Probability that training leaves out a word, or a pair of words, of an instruction."""
MANY_PASSES = 8
"""Passes over the frames from which a window comes back often: in other shifts, and at other noise levels."""
DRAWS, SHIFTS = (8, 4), (24, 12)
"""Noise levels at which a row trains its policy, and largest shifts of an image in its shorter side, with few and with
many passes."""
JOINT_SHARES = (1.0, 0.5)
"""Shares of the rows that train the joint beside the policy, with few and with many passes."""
PASSES, LEAST_SAMPLES, STEPS = 3.2, 240_000, 5000
"""Passes over all frames, least number of samples, and number of steps that batches are sized for."""

T = TypeVar("T")


@dataclass(frozen=True)
class DataFacts:
    """Facts of a data set that the rules look at.

    demonstrations, frames: their number, and that of the frames of all episodes.
    steps: median length of a demonstration, in steps.
    texts: number of different instructions.
    fps: steps a second.
    views: number of cameras.   height, width: of their images, in pixels.
    """

    demonstrations: int
    frames: int
    steps: float
    texts: int
    fps: float
    views: int
    height: int
    width: int

    def __str__(self) -> str:
        tasks = f"{self.texts} instruction{'s' * (self.texts != 1)}"
        seen = f"{self.views} view{'s' * (self.views != 1)} of {self.height}x{self.width}"
        shown = f"{self.demonstrations:,} demonstration{'s' * (self.demonstrations != 1)}"
        return f"{shown}, {self.frames:,} frames at {self.fps:g} Hz, {tasks}, {seen}"


@dataclass(frozen=True)
class Rule:
    """Values of options, dotted path -> value, and the reason for them."""

    options: Mapping[str, Any]
    reason: str


def fitted(base: RunConfig, data: Path, out: Path, keep_model: bool = False) -> tuple[RunConfig, list[str]]:
    """`base` fitted to a data set, or to a mixture's file, and lines that say what follows from it and why.

    keep_model: leave the model's sizes as they are, for one that starts from the weights of another.

    A run that was begun in `out` goes on as it was begun, though the data may have grown or the rules changed since.
    Raises StoreError for bad data.
    """
    if has_checkpoint(out):
        begun = config_from_dict(old_names.run_config(read_json(out / "config.json")))
        if begun.family == base.family:
            return begun, [f"{out} goes on as it was begun"]
    facts = facts_of(data, base.episodes)
    config, rules = fit(base, facts, keep_model)
    lines = [f"fitted to {facts}; options on the command line replace what follows"]
    for rule in rules:
        named = " ".join(f"--{path.replace('_', '-')} {_words(value)}" for path, value in rule.options.items())
        lines.append(f"  {named}: {rule.reason}")
    return config, lines


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def facts_of(data: Path, episodes: EpisodesConfig | None = None) -> DataFacts:
    """The facts of what is learned from a data set, or from the sources of a mixture's file. Reads no images.

    episodes: which episodes of a data set are used; all if not given.
    Raises StoreError for bad data, and where there are no episodes.
    """
    if data.is_file():
        from wamkit.data.loading.mixture import chosen_episodes, open_sources, read_mixture

        mixture = read_mixture(data)
        stores = open_sources(mixture, data.parent)
        used = [[s.episodes[i] for i in chosen_episodes(s, c)] for s, c in zip(stores, mixture.sources, strict=True)]
        acts = [source.actions for source in mixture.sources]
        return _facts(stores, used, acts if any(acts) else [True] * len(acts), data, mixture)
    store = Store.open(data)
    metas, labelled = store.episodes, None if episodes is None else episodes.labelled
    if episodes is not None and labelled is not None:
        metas = tuple(m for m in metas if m.is_demonstration)[: labelled + episodes.action_free]
    return _facts([store], [metas], [True], data)


def _facts(
    stores: Sequence[Store],
    used: Sequence[Sequence[EpisodeMeta]],
    acts: Sequence[bool],
    data: Path,
    mixture: MixtureConfig | None = None,
) -> DataFacts:
    """The facts of the episodes `used` of each store. acts: whether actions are learned from it; others give frames."""
    parts = [(store, metas) for store, metas, a in zip(stores, used, acts, strict=True) if a and metas]
    every = [m for _, metas in parts for m in metas]
    if not every:
        raise StoreError(f"{data} holds no episodes: collect some with `wamkit collect --out {data} ...`")
    shown = [m for m in every if m.is_demonstration] or every
    fps, layout = max(parts, key=lambda part: sum(m.length for m in part[1]))[0].layout.fps, stores[0].layout
    height, width = mixture.size if mixture else layout.image_shape[1:]
    rates = [1.0 if a else fps / store.layout.fps for store, a in zip(stores, acts, strict=True)]
    frames = sum(m.length * rate for metas, rate in zip(used, rates, strict=True) for m in metas)
    return DataFacts(
        demonstrations=len(shown),
        frames=round(frames),
        steps=float(np.median([m.length for m in shown])),
        texts=len({m.text for m in shown}),
        fps=fps,
        views=len(mixture.views if mixture else stores[0].cameras),
        height=height,
        width=width,
    )


def fit(base: RunConfig, facts: DataFacts, keep_model: bool = False) -> tuple[RunConfig, list[Rule]]:
    """`base` with what follows from the data, and the rules by which it does.

    Values for which `base` has no option are left out; with `keep_model`, sizes of the model too.
    """
    stride = getattr(base.model, "image_stride", TOKEN) if keep_model else TOKEN
    size = base.window.size or sane_size(facts.height, facts.width, stride)
    rules = [
        _window(base, facts),
        _size(facts, size),
        _tokens(facts, size),
        _trunk(base, facts),
        _budget(facts),
        _codec(base, facts),
        _problems(facts),
        _shift(facts, size),
        _words_left_out(facts),
    ]
    has = {f"{part}.{name}" for part in PARTS for name in vars(getattr(base, part))}
    if keep_model:
        has -= {f"model.{name}" for name in ("image_stride", "codec", *WIDTHS, "depth")}
        # A table of words that learned without it has numbers for words that it never saw.
        has -= set() if getattr(base.model, "text_dropout", 0.0) else {"model.text_dropout"}
    rules = [Rule({k: v for k, v in rule.options.items() if k in has and v != ()}, rule.reason) for rule in rules]
    rules = [rule for rule in rules if rule.options]
    return changed(base, {k: v for rule in rules for k, v in rule.options.items()}), rules


def _window(base: RunConfig, facts: DataFacts) -> Rule:
    """Chunks of a share of a demonstration, in steps of 8, and the moments that `base` places within a chunk."""
    chunk = min(8 * round(facts.steps / PER_CHUNK / 8), 64)
    chunk = max(chunk, 8 if facts.steps > 8 else 4)  # an action token holds 4
    options: dict[str, Any] = {"window.chunk": chunk}
    for name in ("frame_offsets", "past_offsets"):
        scaled = {round(k * chunk / base.window.chunk) for k in getattr(base.window, name)}
        options[f"window.{name}"] = tuple(sorted(scaled - {0}))
    seconds = facts.steps / facts.fps
    return Rule(
        options, f"about 1/{PER_CHUNK} of a demonstration; their median is {facts.steps:g} steps, {seconds:.2g} s"
    )


def _size(facts: DataFacts, size: tuple[int, int]) -> Rule:
    """Images in whole tokens, and no larger than what two CPU cores train on in reasonable time."""
    recorded = (facts.height, facts.width)
    if size == recorded:
        return Rule({}, "")
    return Rule({"window.size": size}, f"recorded images are {recorded[0]}x{recorded[1]}")


def _tokens(facts: DataFacts, size: tuple[int, int]) -> Rule:
    """Larger cells where cells of 16 pixels would be many: the time of a step grows with them."""
    cells = facts.views * size[0] * size[1] // 16**2
    if cells <= CELLS or size[0] % 32 or size[1] % 32:
        return Rule({}, "")
    options = {"model.image_stride": 32, "model.codec": "frame_codec_32"}
    return Rule(options, f"{facts.views} x {size[0]}x{size[1]} pixels are {cells} cells of 16x16, more than {CELLS}")


def _trunk(base: RunConfig, facts: DataFacts) -> Rule:
    """A wider and deeper trunk for many frames."""
    if facts.frames < MANY_FRAMES:
        return Rule({}, "")
    wide = {name: round(1.5 * getattr(base.model, name)) for name in WIDTHS if hasattr(base.model, name)}
    options = {f"model.{name}": value // 8 * 8 for name, value in wide.items()} | {"model.depth": 6}
    return Rule(options, f"{facts.frames:,} frames are {MANY_FRAMES:,} or more")


def _samples(facts: DataFacts) -> int:
    return max(round(PASSES * facts.frames), LEAST_SAMPLES)


def _by_passes(facts: DataFacts, choices: tuple[T, T]) -> tuple[T, str]:
    """The first of two values where passes over the frames are few, else the second; and the passes in words."""
    passes = _samples(facts) / facts.frames
    return choices[passes >= MANY_PASSES], f"{round(passes, 1):g} passes over the frames"


def _budget(facts: DataFacts) -> Rule:
    """Passes over the frames, at least a number of samples, in batches that keep the number of steps moderate."""
    samples = _samples(facts)
    batch = 2 ** max(4, min(7, round(math.log2(samples / STEPS))))
    more = f"{PASSES} passes over {facts.frames:,} frames" if samples > LEAST_SAMPLES else "the least for any data"
    return Rule({"train.batch_size": batch, "train.steps": math.ceil(samples / batch / 100) * 100}, more)


def _codec(base: RunConfig, facts: DataFacts) -> Rule:
    """The codec's stage has its samples, and the main stage all others, where there are more than `base` has."""
    usual = getattr(base.model, "codec_share", 0.0)
    share = min(usual, max(LEAST_CODEC, round(CODEC_SAMPLES / _samples(facts), 2)))
    if share == usual:
        return Rule({}, "")
    return Rule({"model.codec_share": share}, f"{CODEC_SAMPLES:,} samples are enough for a codec, or {LEAST_CODEC:.0%}")


def _problems(facts: DataFacts) -> Rule:
    """Several noise levels a row for the policy, whose loss is less noisy for little time; the joint for fewer rows."""
    (draws, passes), (share, _) = _by_passes(facts, DRAWS), _by_passes(facts, JOINT_SHARES)
    return Rule(
        {"model.policy_draws": draws, "model.joint_share": share},
        f"{passes}; noise levels of a row share its context, and the joint would take half of the time",
    )


def _shift(facts: DataFacts, size: tuple[int, int]) -> Rule:
    """Shifted images (Kostrikov et al. 2020, arXiv:2004.13649): without them few demonstrations are known by heart."""
    part, passes = _by_passes(facts, SHIFTS)
    reason = f"1/{part} of the image, {passes}: the more often an image comes, the more its shifts add"
    return Rule({"train.shift": max(1, round(min(size) / part))}, reason)


def _words_left_out(facts: DataFacts) -> Rule:
    """Words left out of instructions, where instructions differ at all."""
    if facts.texts < 2:
        return Rule({}, "")
    return Rule({"model.text_dropout": TEXT_DROPOUT}, "an instruction should be understood in partly other words")

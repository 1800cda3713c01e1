"""Comparisons: lists of recipes that are trained and evaluated under one budget. `wamkit compare NAME` runs one.

All rows of a comparison see the same number of samples in all their stages together, have backbones of the same size,
and are evaluated from the same held-out reset states. Training seeds are fixed here, before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wamkit.data.loading.mixture_config import SourceConfig
from wamkit.errors import WamkitError, nearest
from wamkit.nn.options import Program
from wamkit.registry import Registry


@dataclass(frozen=True)
class Entry:
    """One row of a comparison.

    options: changes to the recipe by dotted name, as on the command line: {"model.detach": True}.
    against: name of the row to compare with in pairs; the comparison's reference if empty.
    sources: data sets to mix, folders beside the comparison's data set; that data set alone if empty. `{seed}` in a
        folder stands for the training seed, where each seed has data of its own.
    """

    name: str
    recipe: str
    seeds: tuple[int, ...] = (0, 1)
    options: Mapping[str, Any] = field(default_factory=dict)
    against: str = ""
    sources: tuple[SourceConfig, ...] = ()

    @property
    def slug(self) -> str:
        """Name of the trained model in file names, the same in every comparison of one protocol."""
        options = "".join(f"-{k.split('.')[-1]}-{v}" for k, v in self.options.items())
        return self.recipe.removeprefix("metaworld-") + options + "".join(f"-{_source_slug(s)}" for s in self.sources)


def _source_slug(source: SourceConfig) -> str:
    episodes = "_{}_{}".format(*source.demonstrations) if source.demonstrations else ""
    return f"{Path(source.data).name.replace('-{seed}', '')}{episodes}{'' if source.actions else '_video'}"


@dataclass(frozen=True)
class Published:
    """One row that a paper printed.

    success: in percent, of each group of the comparison's protocol; None where the paper has none.
    mean: in percent, as the paper prints it, and `of`: "groups" or "tasks".
    source: where it was printed.   note: what differs from the protocol here.
    """

    name: str
    success: tuple[float | None, ...]
    mean: float
    of: str
    source: str
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Rows under one question.

    reference: name of the row that all others are compared with in pairs, if any.
    caveat: what its page should warn of, such as the rows that options were tuned for.
    protocol: name of the registered protocol by which success is measured; the data set's own environment and tasks
        if empty.
    published: rows of papers, to stand beside the comparison's own.
    """

    title: str
    question: str
    reference: str
    entries: tuple[Entry, ...]
    caveat: str = ""
    protocol: str = ""
    published: tuple[Published, ...] = ()

    def check_rows(self, name: str, rows: Sequence[str]) -> None:
        """Raises WamkitError unless the comparison, called `name`, has all of these rows."""
        known = [e.name for e in self.entries]
        for row in rows:
            if row not in known:
                raise WamkitError(f"'{name}' has no row '{row}'{nearest(row, known)}; it has {', '.join(known)}")


COMPARISONS: Registry[Callable[[], Comparison]] = Registry("comparison", "wamkit.comparisons")
"""Functions that return a comparison, by name."""

TUNED = "No learning rate or size was tuned for a row other than `unified`. All rows share its rate, which favours it."
"""The caveat of this repository's comparisons, whose recipes are wamkit's own."""

THREE = (0, 1, 2)
LEAVES = (
    "mot",
    "hidden_state",
    "hidden_state-detached",
    "cascade_idm",
    "cascade_geom",
    "latent_action",
    "query_ar",
    "discrete",
    "jepa",
    "align",
    "shared_rep",
    "world_model",
)


@COMPARISONS.register("leaves")
def leaves() -> Comparison:
    """All leaves of the taxonomy, and two controls."""
    head = [Entry("unified", "metaworld-unified", THREE), Entry("bc", "metaworld-bc", THREE)]
    rest = [Entry(name, f"metaworld-{name}") for name in LEAVES]
    return Comparison(
        "Every leaf of the taxonomy",
        "Which way to couple imagination and action? One backbone, one data set, one budget, one protocol.",
        "unified",
        (*head, *rest),
        TUNED,
    )


@COMPARISONS.register("programs")
def programs() -> Comparison:
    """The six attention programs of `unified`."""
    others = [p.value for p in Program if p is not Program.JOINT]
    entries = [Entry(Program.JOINT.value, "metaworld-unified")]
    entries += [Entry(p, "metaworld-unified", options={"model.program": p}) for p in others]
    return Comparison(
        "Six programs on one backbone",
        "Which stream should attend to which, clean or noisy? All rows have the same parameters; only the mask "
        "differs.",
        Program.JOINT.value,
        tuple(entries),
        TUNED,
    )


@COMPARISONS.register("decoding")
def decoding() -> Comparison:
    """Action decoders."""
    return Comparison(
        "Action decoders",
        "The backbone denoises the actions, a small head denoises them, queries regress them, tokens spell them out,"
        " or inverse dynamics infers them from the imagined images. Backbones are equal in size within 5 %.",
        "trunk denoises",
        (
            Entry("trunk denoises", "metaworld-unified"),
            Entry("small head denoises", "metaworld-hidden_state"),
            Entry("regression queries", "metaworld-query_ar"),
            Entry("autoregressive bins", "metaworld-discrete"),
            Entry("inverse dynamics", "metaworld-cascade_idm"),
        ),
        TUNED,
    )


@COMPARISONS.register("conditioning")
def conditioning() -> Comparison:
    """Conditioning of the denoised tokens on the context."""
    others = ("channel", "cross", "adaln")
    entries = [Entry("prefix", "metaworld-unified")]
    entries += [Entry(k, "metaworld-unified", options={"model.conditioning": k}) for k in others]
    return Comparison(
        "Conditioning on the context",
        "Context tokens in the sequence, concatenated on channels, read by cross-attention, or as scales and shifts "
        "of norms. The same backbone.",
        "prefix",
        tuple(entries),
        TUNED,
    )


@COMPARISONS.register("imagination")
def imagination() -> Comparison:
    """Policies with and without imagination at test time, with the same trained weights."""
    entries = []
    for name in ("hidden_state", "mot"):
        entries.append(Entry(f"{name}, not imagining", f"metaworld-{name}"))
        options = {"model.imagine": True}
        entries.append(Entry(f"{name}, imagining", f"metaworld-{name}", options=options, against=entries[-1].name))
    return Comparison(
        "Does imagining at test time help?",
        "The same weights, queried for actions with and without imagination.",
        "",
        tuple(entries),
        TUNED,
    )


@COMPARISONS.register("history")
def history() -> Comparison:
    """History: none, encoded together with the present, or encoded once and cached."""
    together = {"model.chunk_causal": False}
    return Comparison(
        "Does history help?",
        "No history, four earlier moments in one context with the present, or the same moments encoded once and "
        "cached.",
        "no history",
        (
            Entry("no history", "metaworld-unified"),
            Entry("read together", "metaworld-unified-chunk_causal", options=together),
            Entry("chunk-causal", "metaworld-unified-chunk_causal"),
            Entry("mot, no history", "metaworld-mot"),
            Entry("mot, chunk-causal", "metaworld-mot-chunk_causal", against="mot, no history"),
        ),
        TUNED,
    )


@COMPARISONS.register("video-sources")
def video_sources() -> Comparison:
    """Few labelled demonstrations, with video without actions from other seeds, tasks or sources."""

    def entry(name: str, *video: SourceConfig) -> Entry:
        options = {"train.batch_size": 32} if video else {}
        weights = tuple(replace(v, weight=1 / len(video), actions=False) for v in video)
        few = SourceConfig(DATA, demonstrations=(0, LABELLED))
        return Entry(name, "metaworld-unified", THREE, options, sources=(few, *weights))

    seeds = SourceConfig(DATA, demonstrations=(LABELLED, LABELLED + 50))
    tasks, hand, other, head = (SourceConfig(n) for n in ("others", "hand", "reacher", "ego"))
    more = Entry(
        f"{LABELLED + 50} labelled",
        "metaworld-unified",
        THREE,
        sources=(replace(seeds, demonstrations=(0, LABELLED + 50)),),
    )
    return Comparison(
        "Does video without actions help, and which?",
        f"{LABELLED} labelled demonstrations of four tasks, alone and with video without actions: 50 further "
        "demonstrations of the same tasks, 80 of eight other tasks, or three other sources (a hand-held wrist "
        "camera, another robot, a moving head camera). All rows see the same number of labelled samples. Those with "
        "video see as many samples of it again, in batches twice as large.",
        f"{LABELLED} labelled",
        (
            entry(f"{LABELLED} labelled"),
            entry("+ video of other seeds", seeds),
            entry("+ video of other tasks", tasks),
            entry("+ video of other sources", hand, other, head),
            more,
        ),
        TUNED,
    )


LABELS = (10, 5, 20)
"""Numbers of demonstrations, of all tasks together, beside which video is labelled."""

VIDEOS = 50
"""Further demonstrations of which the video alone is used."""

LABELLED_FOLDER = "labels"
"""Folder beside the data set with what benchmarks/labels.py makes for the comparison `labels`."""


def _label_rows(few: int) -> Iterator[Entry]:
    """The rows of `few` demonstrations."""
    alone = f"{few} demonstrations"
    shown, more = SourceConfig(DATA, 0.3, demonstrations=(0, few)), (few, few + VIDEOS)

    def made(what: str, weight: float = 0.7) -> SourceConfig:
        return SourceConfig(f"{LABELLED_FOLDER}/{what}-{few}-{{seed}}", weight)

    def row(name: str, *further: SourceConfig) -> Entry:
        return Entry(f"{few}, {name}", "metaworld-bc", THREE, against=alone, sources=(shown, *further))

    yield Entry(alone, "metaworld-bc", THREE, sources=(shown,))
    yield row(f"{VIDEOS} videos labelled", made("same"))
    yield row(f"{VIDEOS} with true labels", SourceConfig(DATA, 0.7, "more", demonstrations=more))
    if few == LABELS[0]:
        yield row(f"{VIDEOS} videos labelled, no own episodes", made("same_alone"))
        yield row("80 videos of other tasks labelled", made("tasks"))
        yield row(f"{VIDEOS} videos in other light, colours and view labelled", made("elsewhere"))
    yield row("own successes", made("succeeded"))
    video = SourceConfig(DATA, 0.5, demonstrations=more, actions=False)
    options = {"train.batch_size": 32}  # as many labelled samples as the other rows have
    name = f"{few}, unified with {VIDEOS} videos unlabelled"
    yield Entry(name, "metaworld-unified", THREE, options, alone, (replace(shown, weight=0.5), video))


@COMPARISONS.register("labels")
def labels() -> Comparison:
    """Few demonstrations, with video whose actions a reader labelled."""
    return Comparison(
        "Video turned into demonstrations",
        f"{', '.join(map(str, sorted(LABELS)))} demonstrations of four tasks together, and video of further ones "
        "without actions and state. The reader `inverse` learned from the same demonstrations and, unless the row says "
        "otherwise, from 20 episodes a task of the policy of those demonstrations, failures included. It labels the "
        "video, and behaviour cloning learns from both, 30 % of its samples from the demonstrations. Beside that: the "
        "true labels of the same video, the successes among the policy's own episodes, and `unified` on the video as "
        "it is. Each training seed has a policy, own episodes and a reader of its own.",
        f"{LABELS[0]} demonstrations",
        tuple(row for few in LABELS for row in _label_rows(few)),
        TUNED,
    )


LABELLED = 8
"""Number of demonstrations that keep their actions, two a task."""

DATA = "points"
"""The data set of this repository's comparisons."""

VIDEO_USERS = ("unified", *(name for name in LEAVES if name != "world_model"))
"""Families that learn from video without actions."""


@COMPARISONS.register("action-free")
def action_free() -> Comparison:
    """Ten labelled demonstrations, alone and with fifty more without actions."""
    alone, more = {"episodes.labelled": 10}, {"episodes.labelled": 10, "episodes.action_free": 50}
    entries = [Entry("bc, 10 labelled", "metaworld-bc", options=alone)]
    for name in VIDEO_USERS:
        entries.append(Entry(f"{name}, 10 labelled", f"metaworld-{name}", options=alone))
        row = f"{name}, 10 labelled + 50 action-free"
        # One seed only: it showed that such rows see a sixth of the labelled samples, and lose.
        entries.append(Entry(row, f"metaworld-{name}", (0,), more, against=entries[-1].name))
        halved = {**more, "episodes.labelled_share": 0.5}
        entries.append(Entry(f"{row}, half each", f"metaworld-{name}", options=halved, against=entries[-2].name))
    return Comparison(
        "The value of video without actions",
        "Ten labelled demonstrations of the four tasks together, alone or with fifty more as video without actions, "
        "in the same number of samples. Either all frames are sampled alike, so that a sixth has actions, or half of"
        " the samples have actions. Each family is compared with itself.",
        "",
        tuple(entries),
        TUNED,
    )


STRONGEST = ("align", "query_ar", "mot", "hidden_state")
"""The four leaves that came closest to `unified` and `bc` on the demo's tasks."""


@COMPARISONS.register("mt50")
def mt50() -> Comparison:
    """The fifty tasks of MetaWorld, one model for all of them."""
    head = [Entry("unified", "unified", THREE), Entry("bc", "bc", THREE)]
    return Comparison(
        "Fifty tasks, one model",
        "One model of at most 10 M parameters for all fifty tasks of MetaWorld, 50 demonstrations a task, trained on "
        "two CPU cores. Do designs differ on tasks that are not all solved?",
        "unified",
        (*head, *(Entry(name, name) for name in STRONGEST)),
        TUNED,
        protocol="metaworld-mt50",
        published=PUBLISHED_MT50,
    )


PUBLISHED_MT50 = (
    Published("Diffusion Policy", (23.1, 10.7, 1.9, 6.1), 10.5, "groups", "TinyVLA, arXiv:2409.12514"),
    Published("TinyVLA-H", (77.6, 21.5, 11.4, 15.8), 31.6, "groups", "arXiv:2409.12514"),
    Published("pi0 (3.5 B)", (71.8, 48.2, 41.7, 30.0), 47.9, "groups", "SmolVLA, arXiv:2506.01844"),
    Published("SmolVLA (2.25 B)", (87.1, 51.8, 70.0, 64.0), 68.2, "groups", "arXiv:2506.01844"),
    Published(
        "VPP",
        (81.8, 49.3, None, None),
        68.2,
        "tasks",
        "arXiv:2412.14803",
        "hard and very hard are one group of eleven, 52.6",
    ),
    Published(
        "RoboTron-Mani",
        (85.5, 67.7, 76.7, 81.0),
        77.7,
        "groups",
        "arXiv:2412.07215",
        "500 demonstrations a task, with action noise",
    ),
    Published("Evo-1 (0.77 B)", (89.2, 76.8, 77.2, 79.2), 80.6, "groups", "arXiv:2511.04555"),
    Published("Evo-Depth", (83.1, 84.7, 87.3, 82.4), 84.4, "groups", "arXiv:2605.14950"),
    Published(
        "pi0.5, by reinforcement learning",
        (91.1, 81.8, 78.3, 92.0),
        85.8,
        "groups",
        "pi-RL, arXiv:2510.25889",
        "trained further in the simulator",
    ),
)
"""As collected by the leaderboard of MINT-SJTU/Evo-SOTA.io (public/data/metaworld.json)."""

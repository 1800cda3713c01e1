"""The configuration of a run: family, windows, training, episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Literal

from wamkit import config as cfg
from wamkit import old_names
from wamkit.nn.family_options import CONFIGS

if TYPE_CHECKING:
    from wamkit.families.base import Family


@dataclass(frozen=True)
class WindowConfig:
    """The windows that a family learns from."""

    chunk: int = 16
    """Actions in a window."""
    frame_offsets: tuple[int, ...] = (8, 16)
    """Steps ahead of predicted frames, ascending, at most `chunk`: later frames depend on later actions."""
    past_offsets: tuple[int, ...] = ()
    """Steps, negative and ascending, of earlier observations in the input: -16 -8 are two of them."""

    def __post_init__(self) -> None:
        cfg.check_bounds(self, chunk=(1, inf), frame_offsets=(1, self.chunk))
        if self.past_offsets:
            cfg.check_bounds(self, past_offsets=(-inf, -1))
        for name in ("frame_offsets", "past_offsets"):
            if list(getattr(self, name)) != sorted(set(getattr(self, name))):
                raise cfg.ConfigError(f"{name} = {getattr(self, name)}: must ascend")


@dataclass(frozen=True)
class EpisodesConfig:
    """The episodes of the data set that are learned from. By default all, with their actions."""

    labelled: int | None = None
    """Number of demonstrations, from the first on, that keep their actions. Off-expert episodes are then left out."""
    action_free: int = 0
    """With `labelled`: number of further demonstrations used as video, without their actions."""
    labelled_share: float | None = None
    """With `action_free`: share of all samples that have actions. By default each frame is drawn equally often, so that
    many action-free demonstrations leave few samples to learn actions from."""

    def __post_init__(self) -> None:
        cfg.check_bounds(self, action_free=(0, inf), **({} if self.labelled is None else {"labelled": (1, inf)}))
        if self.labelled_share is not None:
            cfg.check_bounds(self, labelled_share=(0.01, 0.99))
            if not self.action_free:
                raise cfg.ConfigError("labelled_share needs `action_free` demonstrations, which have the other share")
        if self.labelled is None and self.action_free:
            raise cfg.ConfigError("action_free needs `labelled`: how many demonstrations keep their actions")


@dataclass(frozen=True)
class TrainConfig:
    """Training of a family. The defaults take a few minutes on two CPU cores."""

    steps: int = 3000
    """Steps of all stages together."""
    batch_size: int = 16
    """Windows a step."""
    lr: float = 5e-3
    """Peak learning rate; each stage warms up linearly and decays to `final_lr` times it along a cosine."""
    final_lr: float = 0.02
    """Learning rate at the end of a stage, as a share of `lr`."""
    warmup: int = 50
    """Steps of the linear warm-up, in each stage."""
    weight_decay: float = 0.01
    """Weight decay of the optimiser."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """`muon` orthogonalises the updates of the trunk's matrices and of convolutions, and uses AdamW for the rest."""
    clip: float = 1.0
    """Largest global gradient norm."""
    ema: float = 0.99
    """Decay of the averaged weights, which a checkpoint serves."""
    shift: int = 0
    """Augmentation: largest translation of a window's images, in pixels."""
    colour: float = 0.0
    """Augmentation: largest relative change of a window's brightness, contrast and saturation."""
    drop_view: float = 0.0
    """Augmentation: probability that a view is black, if there are several. One view always stays."""
    weights: tuple[tuple[str, float], ...] = ()
    """Weights of losses by name, 1 by default. A name that the family does not return is an error."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` uses bfloat16 where the processor multiplies it natively, as measured in docs/LOG.md."""
    device: str = "cpu"
    """Name of a torch device."""
    threads: int = 2
    """On a CPU: parts of each batch, with a thread and a core each. The result depends on it."""
    seed: int = 0
    """Seed of initial weights, windows and noise."""
    save_every: int = 200
    """Steps between checkpoints."""
    log_every: int = 10
    """Steps between rows of metrics.jsonl."""

    def __post_init__(self) -> None:
        count, tiny = (1, inf), 1e-12
        cfg.check_bounds(self, steps=count, batch_size=count, threads=count, save_every=count, log_every=count)
        cfg.check_bounds(self, lr=(tiny, inf), clip=(tiny, inf), final_lr=(0, 1), ema=(0, 1))
        cfg.check_bounds(self, warmup=(0, inf), weight_decay=(0, inf), shift=(0, inf), seed=(0, 2**63 - 1))
        cfg.check_bounds(self, colour=(0, 0.9), drop_view=(0, 0.9))
        for name, weight in self.weights:
            if not 0 <= weight < inf:
                raise cfg.ConfigError(f"weights: {name} weighs {weight}: must be at least 0, and finite")


@dataclass(frozen=True)
class RunConfig:
    """A complete run: family, sizes, windows and training."""

    family: str
    model: Any
    """The family's own configuration."""
    window: WindowConfig = field(default_factory=WindowConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    episodes: EpisodesConfig = field(default_factory=EpisodesConfig)


def family_class(name: str) -> type[Family]:
    """The family registered as `name`; an unknown name raises, with the nearest match."""
    from wamkit.families.base import FAMILIES

    return FAMILIES.get(name)


def config_class(family: str) -> type[Any]:
    """Options of a family. Those of the library's own are found without loading torch."""
    return CONFIGS.get(family) if family in CONFIGS else family_class(family).Config


PARTS = ("model", "window", "train", "episodes")
"""Parts of a run's configuration, as they are named in files and on the command line."""


def config_to_dict(run: RunConfig) -> dict[str, Any]:
    """`run` as JSON-able dictionaries."""
    return {"family": run.family} | {k: cfg.to_dict(getattr(run, k)) for k in PARTS}


def config_from_dict(data: Mapping[str, Any]) -> RunConfig:
    """The inverse of `config_to_dict`. Missing fields take their present defaults; unknown ones raise ConfigError."""
    model: Any = cfg.from_dict(config_class(data["family"]), old_names.renamed(data["model"], old_names.MODEL))
    parts = {"window": WindowConfig, "train": TrainConfig, "episodes": EpisodesConfig}
    return RunConfig(data["family"], model, **{k: cfg.from_dict(c, data.get(k, {})) for k, c in parts.items()})

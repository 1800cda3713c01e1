"""The configuration of a run: family, windows, training, episodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from wamkit import config as cfg
from wamkit import old_names
from wamkit.errors import WamkitError, nearest
from wamkit.hub.names import HubError, hub_name, object_name, object_origin, origin
from wamkit.nn.family_options import CONFIGS
from wamkit.nn.scaling import Normalisation

if TYPE_CHECKING:
    from wamkit.families.base import Family


@dataclass(frozen=True)
class WindowConfig(cfg.Checked):
    """The windows that a family learns from."""

    chunk: Annotated[int, cfg.Between(1, inf), cfg.AtMost(10_000)] = 16
    """Actions in a window."""
    frame_offsets: tuple[int, ...] = (8, 16)
    """Steps ahead of predicted frames, ascending, at most `chunk`: later frames depend on later actions."""
    past_offsets: tuple[Annotated[int, cfg.Between(-inf, -1), cfg.Between(-(10**6), inf)], ...] = ()
    """Steps, negative and ascending, of earlier observations in the input: -16 -8 are two of them."""
    size: tuple[cfg.Side, cfg.Side] | None = None
    """Height and width that images are resized to; the recorded ones, or those of the mixture, if not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        cfg.check_bounds(self, frame_offsets=(1, self.chunk))
        for name in ("frame_offsets", "past_offsets"):
            if list(getattr(self, name)) != sorted(set(getattr(self, name))):
                raise cfg.ConfigError(f"{name} = {getattr(self, name)}: must ascend")


@dataclass(frozen=True)
class EpisodesConfig(cfg.Checked):
    """The episodes of the data set that are learned from. By default all, with their actions."""

    labelled: Annotated[int, cfg.Between(1, inf), cfg.AtMost(10**6)] | None = None
    """Number of demonstrations, from the first on, that keep their actions. Off-expert episodes are then left out."""
    action_free: cfg.Episodes = 0
    """With `labelled`: number of further demonstrations used as video, without their actions."""
    labelled_share: Annotated[float, cfg.Between(0.01, 0.99)] | None = None
    """With `action_free`: share of all samples that have actions. By default each frame is drawn equally often, so that
    many action-free demonstrations leave few samples to learn actions from."""

    held_out: cfg.Episodes = 0
    """Number of episodes that are not learned from, drawn from the data set; `wamkit eval RUN --offline` evaluates on
    them. The run's config.json lists them."""
    held_out_seed: cfg.Seed = 0
    """Seed that draws them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labelled_share is not None and not self.action_free:
            raise cfg.ConfigError("labelled_share needs `action_free` demonstrations, which have the other share")
        if self.labelled is None and self.action_free:
            raise cfg.ConfigError("action_free needs `labelled`: how many demonstrations keep their actions")


DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia", "privateuseone")
"""Kinds of torch devices on which models can be trained. Torch itself is loaded later."""


@dataclass(frozen=True)
class TrainConfig(cfg.Checked):
    """Training of a family. The defaults take a few minutes on two CPU cores."""

    steps: cfg.Steps = 3000
    """Steps of all stages together."""
    batch_size: cfg.Count = 16
    """Windows a step."""
    lr: Annotated[float, cfg.Between(1e-12, inf), cfg.AtMost(1e3)] = 5e-3
    """Peak learning rate; each stage warms up linearly and decays to `final_lr` times it along a cosine."""
    final_lr: cfg.Share = 0.02
    """Learning rate at the end of a stage, as a share of `lr`."""
    warmup: Annotated[int, cfg.Between(0, inf), cfg.AtMost(10**9)] = 50
    """Steps of the linear warm-up, in each stage."""
    weight_decay: Annotated[float, cfg.Between(0, inf), cfg.AtMost(1e3)] = 0.01
    """Weight decay of the optimiser."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """`muon` orthogonalises the updates of the trunk's matrices and of convolutions, and uses AdamW for the rest."""
    clip: Annotated[float, cfg.Between(1e-12, inf), cfg.AtMost(1e12)] = 1.0
    """Largest global gradient norm."""
    ema: cfg.Share = 0.99
    """Decay of the averaged weights, which a checkpoint serves."""
    shift: Annotated[int, cfg.Between(0, inf), cfg.AtMost(4096)] = 0
    """Augmentation: largest translation of a window's images, in pixels."""
    colour: Annotated[float, cfg.Between(0, 0.9)] = 0.0
    """Augmentation: largest relative change of a window's brightness, contrast and saturation."""
    drop_view: Annotated[float, cfg.Between(0, 0.9)] = 0.0
    """Augmentation: probability that a view is black, if there are several. One view always stays."""
    prefix: Annotated[int, cfg.Between(0, inf), cfg.AtMost(4096)] = 0
    """Most first actions that half of the chunks are given, so that they learn what comes after these: for
    real-time chunking, where they are decided by then. 0 to give none."""
    weights: tuple[tuple[str, float], ...] = ()
    """Weights of losses by name, 1 by default. A name that the family does not return is an error."""
    normalisation: Normalisation = "mean_std"
    """Scale of the state and the actions: by mean and deviation; by the 1 % and 99 % quantiles, so that a few outliers
    neither flatten the rest nor pull at the weights; or by the range. Of a mixture's dimensions, those whose kind has
    no normaliser of its own."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` uses bfloat16 where the processor multiplies it natively, as measured in docs/LOG.md."""
    device: str = "cpu"
    """Name of a torch device: cpu, cuda, cuda:1, mps."""
    threads: cfg.Processes = 2
    """On a CPU: parts of each batch, with a thread and a core each. The result depends on it."""
    checkpoint_activations: bool = False
    """Backward passes compute the activations of a block again, in place of keeping them: less memory, a third more
    arithmetic, the same gradients."""
    compile: bool = False
    """Blocks of the backbones are compiled (torch.compile), one by one: faster on GPUs after minutes of waiting, with
    sums in another order. Needs a C++ compiler; several threads of a CPU wait for one another while it works."""
    replicas: cfg.Count = 1
    """Under torchrun: groups of processes that each hold all weights (HSDP), so that weights travel within a group
    alone. 1: all processes divide one copy."""
    seed: cfg.Seed = 0
    """Seed of initial weights, windows and noise."""
    save_every: cfg.Steps = 200
    """Steps between checkpoints."""
    log_every: cfg.Steps = 10
    """Steps between rows of metrics.jsonl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, weight in self.weights:
            if not 0 <= weight <= 1e6:
                raise cfg.ConfigError(f"weights: {name} weighs {weight}: must be between 0 and 1000000")
        kind, _, number = self.device.partition(":")
        if kind not in DEVICES or (":" in self.device and not re.fullmatch("[0-9]{1,3}", number)):
            raise cfg.ConfigError(
                f"device = {self.device!r}: must be one of {', '.join(DEVICES)}, or with a number: cuda:1"
            )


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


def family_names() -> list[str]:
    """Names of all families, sorted. Torch is loaded only where other packages have families too."""
    from importlib.metadata import entry_points

    if not entry_points(group="wamkit.families"):
        return CONFIGS.names()
    from wamkit.families.base import FAMILIES

    return FAMILIES.names()


def require_run(path: Path) -> Path:
    """The place of the run at `path`: itself, or, for a name on the Hub or in an object store, what was downloaded.

    path: a folder or a file; or hf://USER/NAME, or USER/NAME where this machine has nothing of that name; or
    s3://BUCKET/FOLDER.

    Raises WamkitError if there is none, and HubError for a name with hf:// or s3:// that cannot be downloaded.
    """
    if path.exists():
        return path
    if (place := object_name(path)) is not None:
        from wamkit.hub.objects import fetched

        return fetched(place)
    made = f"export RUN --out {path}" if path.suffix == ".safetensors" else f"train --out {path} ..."
    lost = f"there is no run at {path}: {made.split()[0]} one with `wamkit {made}`"
    if (name := hub_name(path, prefixed=False)) is None:
        raise WamkitError(lost)
    from wamkit.runs.hub import downloaded

    try:
        return downloaded(name)
    except HubError as error:
        raise error if hub_name(path) else HubError(f"{lost}; nor can it be had from the Hub: {error}") from error


def home(path: Path) -> Path:
    """The folder that results of the run at `path` go to: itself, or the one beside an exported file.

    Those of a run of the Hub go to a folder of its name and commit in the current one, those of a run in an object
    store to one named after its place.
    Raises WamkitError where a data set is in its place.
    """
    if (name := origin(path)) is not None:
        return Path(f"{name.repo.replace('/', '--')}@{name.revision[:12]}")
    if (place := object_origin(path)) is not None:
        return Path(place.path.replace("/", "--")).with_suffix("")
    folder = path.with_suffix("") if path.is_file() else path
    if path.is_file() and (folder / "meta/info.json").exists():
        raise WamkitError(
            f"results of {path} go to {folder}, which is a data set: rename the file, or export it elsewhere"
        )
    return folder


PARTS = ("model", "window", "train", "episodes")
"""Parts of a run's configuration, as they are named in files and on the command line."""


def config_to_dict(run: RunConfig) -> dict[str, Any]:
    """`run` as JSON-able dictionaries."""
    return {"family": run.family} | {k: cfg.to_dict(getattr(run, k)) for k in PARTS}


def config_from_dict(data: Mapping[str, Any]) -> RunConfig:
    """The inverse of `config_to_dict`. Missing fields take their present defaults; unknown ones raise ConfigError."""
    model: Any = cfg.from_dict(config_class(data["family"]), old_names.model(data["model"]))
    parts = {"window": WindowConfig, "train": TrainConfig, "episodes": EpisodesConfig}
    return RunConfig(data["family"], model, **{k: cfg.from_dict(c, data.get(k, {})) for k, c in parts.items()})


def held_out_episodes(described: Mapping[str, Any]) -> tuple[int, ...]:
    """Numbers of the episodes that a run leaves out; of one that was begun before they were drawn, the last ones.

    described: the run's config.json, under present names.
    """
    if "held_out" in described:
        return tuple(described["held_out"])
    number = described.get("episodes", {}).get("held_out", 0)
    last = described.get("provenance", {}).get("episodes", 0)
    return tuple(range(last - number, last))


def changed(run: RunConfig, options: Mapping[str, Any]) -> RunConfig:
    """`run` with other values, dotted path -> value, checked as in a file. Raises ConfigError for unknown paths."""
    data = config_to_dict(run)
    for path, value in options.items():
        part, _, name = path.partition(".")
        if part not in PARTS:
            raise cfg.ConfigError(
                f"a run has no part '{part}' ({path}){nearest(part, PARTS)}; it has {', '.join(PARTS)}"
            )
        data[part][name] = value
    return config_from_dict(data)

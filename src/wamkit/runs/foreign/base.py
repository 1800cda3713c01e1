"""Importers of released weights: what they return, and how files are read, which are safetensors and JSON alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from wamkit.errors import nearest
from wamkit.files import StoreError, read_json
from wamkit.hub.folders import PICKLES, model_folder
from wamkit.registry import Registry
from wamkit.runs.config import RunConfig
from wamkit.types import Spec, WamkitError

PROCESSOR = "processor"
"""Part of the names of LeRobot's files with statistics."""


@dataclass(frozen=True)
class Foreign:
    """A released checkpoint as a run.

    config, spec, statistics: as of a run.   weights: by the names of the family's state dict, without statistics.
    differs: what this run does otherwise than the program that it is from, a line each.
    """

    config: RunConfig
    spec: Spec
    statistics: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """The files of a released checkpoint.

    folder: where they are.   base: folder or hub id of the video model that it stands on; "" for the importer's own.
    fps: steps a second of its robot.   cameras: names of its views; those of its configuration if empty.
    image_encoder: folder or hub id of the model whose CLIP it reads images with; "" for the importer's own.
    robot: number of the robot whose weights are taken, of those that have each their own.
    """

    folder: Path
    base: str = ""
    fps: float = 20.0
    cameras: tuple[str, ...] = field(default=())
    image_encoder: str = ""
    robot: int = 0

    @classmethod
    def of(cls, path: str, **options: Any) -> Source:
        """The files in a folder, or of a name on the Hub. Raises WamkitError where there are none."""
        wanted = lambda file: file.endswith((".json", ".safetensors"))  # noqa: E731
        return cls(model_folder(path, ("", "transformer", "experiment_cfg"), wanted), **options)

    def settings(self) -> dict[str, Any]:
        """config.json; empty where there is none. Raises WamkitError for a damaged one."""
        file = self.folder / "config.json"
        try:
            found = read_json(file) if file.is_file() else {}
        except StoreError as error:
            raise WamkitError(str(error)) from error
        if not isinstance(found, dict):
            raise WamkitError(f"{file} holds no settings; it is of another program")
        return found

    def tensors(self, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """Weights by name, but for those whose names begin with one of `without`.

        Raises WamkitError where there are none, with advice for pickles.
        """
        files = [f for f in sorted(self.folder.glob("*.safetensors")) if PROCESSOR not in f.name]
        files = files or sorted((self.folder / "transformer").glob("*.safetensors"))
        if not files:
            pickles = [f.name for f in sorted(self.folder.iterdir()) if f.suffix in PICKLES]
            if pickles:
                raise WamkitError(
                    f"{self.folder / pickles[0]} is a pickle, which is never read: tools/from_pickle.py of wamkit's "
                    "repository writes safetensors beside it"
                )
            raise WamkitError(f"{self.folder} holds no weights in safetensors")
        return {name: x for file in files for name, x in _load(file, without).items()}

    def processor_statistics(self) -> dict[str, Tensor]:
        """Statistics of LeRobot's processors by feature and kind, such as "action.mean"; empty without any."""
        files = sorted(self.folder.glob(f"*{PROCESSOR}*normalizer*.safetensors"))
        return {name: x for file in files for name, x in _load(file).items()}


def _load(file: Path, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    try:
        with safe_open(file, "pt") as content:
            return {name: content.get_tensor(name) for name in content.keys() if not name.startswith(without)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WamkitError(f"{file} cannot be read: {error}") from error


def scales(
    statistics: Mapping[str, Tensor], feature: str, mode: str, size: int, used: Sequence[int] = ()
) -> dict[str, list[float]]:
    """Mean and deviation as which LeRobot's normalisation of a feature can be written.

    mode: its name of the kind, such as MIN_MAX.   used: the dimensions that statistics are of, where these are some of
    all; others are left as they are. Raises WamkitError for a kind that is no scale and shift, or without
    its statistics.
    """
    pairs = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99")}
    if mode == "IDENTITY" or not statistics:
        return {"mean": [0.0] * size, "std": [1.0] * size}
    if mode not in pairs:
        raise WamkitError(f"{feature} is normalised by {mode}{nearest(mode, pairs)}: {', '.join(pairs)} are known")
    names = [f"{feature}.{kind}" for kind in pairs[mode]]
    if missing := [name for name in names if name not in statistics]:
        raise WamkitError(f"the processors hold no {missing[0]}, which {mode} needs")
    low, high = (statistics[name].double().flatten() for name in names)
    if mode != "MEAN_STD":
        low, high = (high + low) / 2, (high - low) / 2
    places = list(used) if len(low) == len(used) else list(range(size))
    if len(low) != len(places) or not all(0 <= k < size for k in places):
        raise WamkitError(f"{feature} has {size} dimensions, and its statistics {len(low)}")
    mean, std = [0.0] * size, [1.0] * size
    for k, m, s in zip(places, low.tolist(), high.tolist(), strict=True):
        mean[k], std[k] = m, s
    return {"mean": mean, "std": std}


def renamed(tensors: Mapping[str, Tensor], names: Callable[[str], str | None]) -> Iterator[tuple[str, Tensor]]:
    """Tensors under our names. Raises WamkitError for one without a name, so that nothing is lost in silence."""
    for name, x in tensors.items():
        if (ours := names(name)) is None:
            raise WamkitError(f"{name} has no place in a run: this is another model, or one of another version")
        yield ours, x


FOREIGN: Registry[Callable[[Source], Foreign]] = Registry(
    "released model", "wamkit.foreign", package="wamkit.runs.foreign"
)
"""Importers of released weights by the model's name. Packages add theirs under the entry point `wamkit.foreign`."""

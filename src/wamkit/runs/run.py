"""A trained run as one artefact: build a model from configuration, load it from a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from wamkit import config as cfg
from wamkit import old_names
from wamkit.data.embodiment import Embodiment
from wamkit.families.base import Family
from wamkit.nn.normalizer import Normalizer
from wamkit.runs.checkpoint import load_checkpoint
from wamkit.runs.config import RunConfig, config_from_dict, config_to_dict, family_class
from wamkit.types import Spec, WamkitError


def build(run: RunConfig, spec: Spec, statistics: dict[str, Any]) -> Family:
    """A freshly initialised model: weights are a pure function of (configuration, seed)."""
    torch.manual_seed(run.train.seed)
    normalizer = Normalizer({k: (torch.tensor(v["mean"]), torch.tensor(v["std"])) for k, v in statistics.items()})
    return family_class(run.family)(run.model, spec, normalizer)


def run_to_dict(run: RunConfig, spec: Spec, statistics: dict[str, Any]) -> dict[str, Any]:
    """Everything that `load` needs besides the weights, JSON-able: it goes into every checkpoint and config.json."""
    return {**config_to_dict(run), "spec": cfg.to_dict(spec), "statistics": statistics}


def run_from_dict(data: dict[str, Any]) -> tuple[RunConfig, Spec, dict[str, Any]]:
    """The inverse of `run_to_dict`."""
    return (
        config_from_dict(data),
        cfg.from_dict(Spec, old_names.renamed(data["spec"], old_names.SPEC)),
        data["statistics"],
    )


def find_device(name: str) -> torch.device:
    """The device of that name. Raises WamkitError where there is none here."""
    try:
        found = torch.device(name)
        torch.zeros(1, device=found).item()  # `meta` holds no numbers; a missing GPU shows only in use
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        reason = str(e).splitlines()[0]
        raise WamkitError(f"device '{name}' cannot be used here ({reason}); `cpu` always can") from e
    return found


def _robot(config: Mapping[str, Any], name: str | None) -> Embodiment | None:
    robots = config.get("robots", {})
    name = name or config.get("source", {}).get("robot") or None
    if name is not None and name not in robots:
        known = (
            f"it knows {', '.join(robots)}" if robots else "it was trained on one robot's data alone, and needs no name"
        )
        raise WamkitError(f"this model knows no robot '{name}'{cfg.nearest(name, robots)}; {known}")
    return None if name is None else cfg.from_dict(Embodiment, robots[name])


def load(path: str | Path, device: str = "cpu", robot: str | None = None) -> Family:
    """The model of a run folder, ready to be asked: averaged weights, configuration and normalisation in one.

    robot: of a model that a mixture trained, the data set whose robot it is to be asked about, in that robot's own numbers. By
    default the one that there is an environment for; where there is none, answers are in the numbers that the model learned from.
    Raises CheckpointError naming the file when anything is missing or damaged, and WamkitError if there is no run at all.
    """
    if not Path(path).exists():
        raise WamkitError(f"there is no run at {path}: train one with `wamkit train --out {path} ...`")
    saved = load_checkpoint(path)
    run, spec, statistics = run_from_dict(saved.config)
    model = build(run, spec, statistics)
    mine = model.state_dict()
    wrong = {
        k
        for k in mine.keys() | saved.weights.keys()
        if getattr(mine.get(k), "shape", 0) != getattr(saved.weights.get(k), "shape", 1)
    }
    if wrong:
        raise WamkitError(
            f"{saved.path} does not hold what its configuration describes, a '{run.family}' of these sizes: {len(wrong)} of its "
            f"tensors do not fit, {min(wrong)} among them. The configuration was changed after training, or belongs to another family"
        )
    model.load_state_dict(saved.weights)
    model.robot = _robot(saved.config, robot)
    return model.to(find_device(device)).eval()

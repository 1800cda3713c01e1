"""A trained run as one artefact: build a model from configuration, load it from a run folder."""

from __future__ import annotations

from typing import Any

import torch

from wamkit import config as cfg
from wamkit import old_names
from wamkit.families.base import Family
from wamkit.nn.normalizer import Normalizer
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

"""Released weights of another program, written as a run folder."""

from __future__ import annotations

from pathlib import Path

import torch

from wamkit.families.base import Family
from wamkit.nn.backbones.video_model import other_weights
from wamkit.runs.base_model import base_of
from wamkit.runs.foreign.base import Foreign
from wamkit.runs.provenance import Provenance
from wamkit.runs.run import build, run_to_dict
from wamkit.training.run_folder import RunFolder
from wamkit.types import WamkitError


def import_weights(foreign: Foreign, out: Path, command: str = "") -> Family:
    """Writes the run folder `out`, and returns the networks.

    Raises WamkitError, naming the tensor and both shapes, for weights that do not fit the video model below them.
    """
    with other_weights():
        family = build(foreign.config, foreign.spec, foreign.statistics)
    own = {name: x for name, x in family.state_dict().items() if not name.startswith("normalizer.")}
    for name, x in own.items():
        found = foreign.weights.get(name)
        if found is None:
            raise WamkitError(f"the weights lack {name}: they are of another model, or not all of them")
        if found.shape != x.shape:
            base = foreign.config.model.backbone.path
            raise WamkitError(
                f"{name} has shape {tuple(found.shape)}, and {base} would have it {tuple(x.shape)}: name the video "
                "model that these weights stand on by --base"
            )
    if more := sorted(foreign.weights.keys() - own.keys()):
        raise WamkitError(f"{more[0]} has no place in a '{family.name}': the weights are of another model")
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(foreign.weights[name])
    config = run_to_dict(foreign.config, foreign.spec, foreign.statistics, Provenance())
    config["base"] = base_of(foreign.config.model)
    folder = RunFolder(out, config, command)
    with folder.writing():
        folder.save_config()
        folder.save(
            step=0,
            model_state=family.state_dict(),
            ema_state=None,
            optimizer_state={},
            rng_state={},
            extra={"elapsed_s": 0.0},
        )
    return family.eval()

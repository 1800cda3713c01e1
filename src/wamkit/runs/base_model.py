"""The pretrained model that a run stands on: named by the SHA-256 of its parts, and compared when the run is opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wamkit.nn.options import BackboneConfig
from wamkit.types import WamkitError


def base_of(model: Any) -> dict[str, str]:
    """SHA-256 by component of the pretrained model that a family's configuration `model` names; empty without one.

    Raises WamkitError where it is not there.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, BackboneConfig) or not backbone.path:
        return {}
    from wamkit.nn.backbones.video_model import video_model

    return dict(video_model(backbone).identity)


def check_base(model: Any, described: Mapping[str, Any]) -> None:
    """Raises WamkitError unless the pretrained model is the one that the run was trained on.

    described: the run's whole configuration. The released transformer may be another where all of its weights are the
    run's own.
    """
    noted, found = described.get("base", {}), base_of(model)
    if not found:
        return
    backbone: BackboneConfig = model.backbone
    own = not (backbone.freeze or backbone.lora.rank)
    for component, digest in found.items():
        if noted.get(component) != digest and not (own and component == "transformer"):
            raise WamkitError(
                f"{backbone.path} is not the model that this run was trained on: its {component} has SHA-256 "
                f"{digest[:12]}, the run notes {str(noted.get(component, 'none'))[:12]}; bring back that model's files"
            )

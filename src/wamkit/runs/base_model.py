"""The pretrained model that a run stands on: named by the SHA-256 of its parts, and compared when the run is opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wamkit.nn.options import BackboneConfig
from wamkit.types import WamkitError

TENSORS = 64
"""More tensors than a block of a pretrained transformer has."""


def video_backbone(model: Any) -> BackboneConfig | None:
    """The pretrained video model that a family's configuration `model` names; None without one."""
    backbone = getattr(model, "backbone", None)
    return backbone if isinstance(backbone, BackboneConfig) and backbone.path else None


def base_of(model: Any) -> dict[str, str]:
    """SHA-256 by component of the pretrained model below; empty without one.

    A transformer whose weights are all the run's own is left out. Raises WamkitError where the model is not there.
    """
    if (backbone := video_backbone(model)) is None:
        return {}
    from wamkit.nn.backbones.video_model import COMPONENTS, video_model
    from wamkit.nn.encoders import IMAGE_ENCODER

    own = not (backbone.freeze or backbone.lora.rank)
    used = [name for name in COMPONENTS if not (own and name == "transformer")]
    used += [IMAGE_ENCODER] if backbone.image_encoder else []
    return {name: video_model(backbone).digest(name) for name in used}


def check_base(model: Any, described: Mapping[str, Any]) -> None:
    """Raises WamkitError unless the pretrained model is the one that the run was trained on.

    described: the run's whole configuration.
    """
    noted = described.get("base", {})
    for component, digest in base_of(model).items():
        if noted.get(component) != digest:
            raise WamkitError(
                f"{model.backbone.path} is not the model that this run was trained on: its {component} has SHA-256 "
                f"{digest[:12]}, the run notes {str(noted.get(component, 'none'))[:12]}; bring back that model's files"
            )


def released_tensors(model: Any) -> int:
    """A bound of the number of released tensors below a run, which its own weights do not list."""
    if (backbone := video_backbone(model)) is None:
        return 0
    from wamkit.nn.backbones.video_model import video_model

    return TENSORS * (video_model(backbone).layers + 4)

"""The packages whose plug-ins a run needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wamkit.envs.base import ENVIRONMENTS
from wamkit.errors import WamkitError
from wamkit.families.base import FAMILIES
from wamkit.nn.autoencoders.base import AUTOENCODERS
from wamkit.nn.backbones.base import BACKBONES
from wamkit.nn.backbones.video_model import VIDEO_MODELS
from wamkit.registry import Registry, RegistryError
from wamkit.runs.config import RunConfig


def plugins(run: RunConfig, env: str) -> dict[str, str]:
    """Kind -> name and version of the package that registered what `run` uses of it. Empty for parts of wamkit's own.

    env: name of the environment of its data; "" where there is none.
    """
    backbone = getattr(run.model, "backbone", "")
    pretrained = bool(getattr(backbone, "path", ""))
    parts: dict[str, tuple[Registry[Any], Any]] = {
        "family": (FAMILIES, run.family),
        "environment": (ENVIRONMENTS, env),
        "backbone": (VIDEO_MODELS if pretrained else BACKBONES, getattr(backbone, "name", backbone)),
        "autoencoder": (AUTOENCODERS, getattr(run.model, "codec", "")),
    }
    found = {kind: registry.maker(name) for kind, (registry, name) in parts.items() if isinstance(name, str) and name}
    return {kind: maker for kind, maker in found.items() if maker}


def with_maker(error: WamkitError, described: Mapping[str, Any]) -> str:
    """The message of an error, and where it is of a name that nothing registered, the package that the run notes."""
    if not isinstance(error, RegistryError):
        return str(error)
    noted = described.get("plugins")
    makers = sorted({x for x in noted.values() if isinstance(x, str)}) if isinstance(noted, Mapping) else []
    if makers:
        return f"{error}. The run was trained with the package {', '.join(makers)}: install it"
    return f"{error}. It is of another package, which this run does not note: install the one that it was trained with"

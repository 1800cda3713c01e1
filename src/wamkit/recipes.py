"""Recipes: functions that return a complete run. `wamkit train --recipe NAME` starts from one; options override it."""

from __future__ import annotations

from collections.abc import Callable

from wamkit.families.bc import BCConfig
from wamkit.families.unified import UnifiedConfig
from wamkit.registry import Registry
from wamkit.run import RunConfig, TrainConfig, WindowConfig

Recipe = Callable[[], RunConfig]

RECIPES: Registry[Recipe] = Registry("recipe", "wamkit.recipes")


@RECIPES.register("metaworld-unified")
def metaworld_unified() -> RunConfig:
    """The main job: a World Action Model that learns four MetaWorld tasks in minutes on two CPU cores."""
    return RunConfig("unified", UnifiedConfig(), WindowConfig(), TrainConfig(weights=(("future", 2.0),)))


@RECIPES.register("metaworld-bc")
def metaworld_bc() -> RunConfig:
    """The control: behaviour cloning with the same trunk, head, data and budget, and no imagination."""
    return RunConfig("bc", BCConfig(), WindowConfig(), TrainConfig())

"""LeRobot's processors around the policy: they name, batch and move. Values pass as they are, see `WamkitConfig`."""

from __future__ import annotations

from typing import Any

from lerobot.processor import make_default_pre_post_processors

from lerobot_policy_wamkit.configuration_wamkit import WamkitConfig


def make_wamkit_pre_post_processors(config: WamkitConfig, dataset_stats: Any = None) -> tuple[Any, Any]:
    """LeRobot's own pipelines before and after the policy. dataset_stats: unused, the run has its own."""
    return make_default_pre_post_processors(config, None)

"""The part of the LeRobot plug-in that needs no lerobot: which images are which view, and observations as they were."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from wamkit.types import ObservationError, WamkitError

PLUGIN = Path(__file__).parents[2] / "plugins/lerobot_policy_wamkit/src/lerobot_policy_wamkit/observations.py"


@pytest.fixture(scope="module")
def plugin():
    spec = importlib.util.spec_from_file_location("observations", PLUGIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "cameras, available, names, found",
    [
        (("corner2",), {"observation.images.corner2"}, {}, ("observation.images.corner2",)),
        (("corner2",), {"observation.image"}, {}, ("observation.image",)),
        (("corner2",), {"observation.images.top"}, {"corner2": "observation.images.top"}, ("observation.images.top",)),
        (
            ("a", "b"),
            {"observation.images.a", "observation.images.b", "observation.images.c"},
            {"a": "observation.images.c"},
            ("observation.images.c", "observation.images.b"),
        ),
        (("a", "b"), {"observation.images.a"}, {}, ("observation.images.a", None)),
    ],
)
def test_each_view_is_found_by_its_name(plugin, cameras, available, names, found):
    assert plugin.view_keys(cameras, available, names, optional=("b",)) == found


@pytest.mark.parametrize(
    "cameras, available, names, message",
    [
        (("corner2",), {"observation.images.top"}, {}, r"--policy.cameras='{\"corner2\": \"observation.images.top\"}'"),
        (("a", "b"), {"observation.image"}, {}, "sees by the camera 'a', but there is no observation.images.a, only"),
        (("a",), set(), {}, "no images"),
        (("a",), {"observation.image"}, {"a": "observation.images.b"}, "there is no observation.images.b"),
        (("a",), {"observation.image"}, {"b": "observation.image"}, "the run has no view 'b'; it has a"),
    ],
)
def test_a_view_that_is_missing_is_named_with_a_remedy(plugin, cameras, available, names, message):
    with pytest.raises(WamkitError, match=message) as error:
        plugin.view_keys(cameras, available, names)
    assert "\n" not in str(error.value)


def test_observations_hold_the_bytes_that_the_environment_gave(plugin):
    """lerobot divides images by 255 in float32. All 256 values come back."""
    given = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 1).reshape(2, 3, 16, 16)
    small = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8)
    batch = {
        "observation.images.a": given.float() / 255,
        "observation.images.b": small,
        "observation.state": torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64),
        "task": ["open it", "close it"],
    }
    rows = plugin.observations(batch, ("observation.images.a", "observation.images.b", None), 2, (4, 4))
    assert [row.text for row in rows] == ["open it", "close it"]
    for i, row in enumerate(rows):
        assert row.proprio.dtype == np.float32
        assert row.proprio == pytest.approx(batch["observation.state"][i].numpy())
        np.testing.assert_array_equal(row.images[0], given[i])
        np.testing.assert_array_equal(row.images[1], small[i])
        assert row.images[2].shape == (3, 4, 4)
        assert row.view_valid.tolist() == [True, True, False]
    (alone,) = plugin.observations({"observation.image": given[:1], "task": "go"}, ("observation.image",), 0, (16, 16))
    assert (alone.text, alone.proprio.shape, alone.view_valid) == ("go", (0,), None)


def test_an_observation_without_a_state_is_refused(plugin):
    batch = {"observation.image": torch.zeros(1, 3, 4, 4), "task": "go"}
    with pytest.raises(ObservationError, match=re.escape("lacks observation.state; it has observation.image, task")):
        plugin.observations(batch, ("observation.image",), 2, (4, 4))

"""Rigid motions from points, and what `cascade_geom` makes of them: known answers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from wamkit.families.cascade_geom import CascadeGeomConfig, act, controller, kabsch, waypoints
from wamkit.types import SceneFlow


def turn(axis: torch.Tensor, angle: float) -> torch.Tensor:
    """The rotation by `angle` around `axis` (3,), as the exponential of its generator."""
    a, b, c = (axis / axis.norm()).double().tolist()
    return torch.linalg.matrix_exp(angle * torch.tensor([[0, -c, b], [c, 0, -a], [-b, a, 0]], dtype=torch.float64))


@pytest.fixture
def g() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_a_known_rigid_motion_is_recovered_in_every_row_of_a_batch(g):
    x = torch.randn(2, 5, 12, 3, generator=g, dtype=torch.float64)
    R = torch.stack([turn(torch.randn(3, generator=g), 0.7 * k) for k in range(10)]).view(2, 5, 3, 3)
    t = torch.randn(2, 5, 3, generator=g, dtype=torch.float64)
    weight = torch.rand(2, 5, 12, generator=g, dtype=torch.float64) + 0.1
    found_R, found_t = kabsch(x, x @ R.mT + t.unsqueeze(2), weight)
    torch.testing.assert_close(found_R, R)
    torch.testing.assert_close(found_t, t)


@pytest.mark.parametrize("flat", [False, True])
def test_never_a_reflection(flat, g):
    """Not for mirrored points, and not for points of a plane, where a mirror image would fit as well."""
    x = torch.randn(64, 6, 3, generator=g)
    if flat:
        x[..., 2] = 0
    y = x + 0.1 * torch.randn(x.shape, generator=g) if flat else x * torch.tensor([1.0, 1.0, -1.0])
    R, _ = kabsch(x, y, torch.ones(64, 6))
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(64))
    torch.testing.assert_close(R @ R.mT, torch.eye(3).expand(64, 3, 3), atol=1e-5, rtol=0)


def test_points_without_weight_have_no_say(g):
    x, R = torch.randn(20, 3, generator=g, dtype=torch.float64), turn(torch.tensor([1.0, 2.0, 3.0]), 1.1)
    y, weight = x @ R.mT + 0.5, torch.ones(20, dtype=torch.float64)
    y[::2], weight[::2] = 99 * torch.randn(10, 3, generator=g, dtype=torch.float64), 0
    found, t = kabsch(x, y, weight)
    torch.testing.assert_close(found, R)
    torch.testing.assert_close(t, torch.full((3,), 0.5, dtype=torch.float64))
    found, t = kabsch(x, y, 0 * weight)
    assert torch.equal(found, torch.eye(3).double()) and torch.equal(t, torch.zeros(3).double())


def test_the_least_squares_fit_beats_its_neighbours(g):
    x, y, w = torch.randn(9, 3, generator=g), torch.randn(9, 3, generator=g), torch.rand(9, generator=g)
    R, t = kabsch(x, y, w)
    cost = lambda R, t: (w * (x @ R.mT + t - y).square().sum(-1)).sum()  # noqa: E731
    for _ in range(50):
        near = turn(torch.randn(3, generator=g), 0.05).float() @ R
        assert cost(R, t) < cost(near, t) and cost(R, t) < cost(R, t + 0.02 * torch.randn(3, generator=g))


def scene(g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A hand at (0, 0, 0.2), an arm 1 m off, an object before the hand: (points (1, 60, 4), hand (1, 3))."""
    hand = torch.tensor([0.0, 0.0, 0.2])
    near = hand + 0.04 * torch.randn(20, 3, generator=g)
    arm, thing = near + torch.tensor([0.0, -1.0, 0.5]), near + torch.tensor([0.1, 0.0, 0.0])
    robot = torch.tensor([1.0, 1.0, 0.0]).repeat_interleave(20).unsqueeze(1)
    return torch.cat([torch.cat([near, arm, thing]), robot], 1).unsqueeze(0), hand.unsqueeze(0)


def test_the_hand_goes_where_the_robots_points_around_it_go(g):
    points, hand = scene(g)
    flow = torch.zeros(1, 2, 60, 3)
    flow[:, 0, :20], flow[:, 1, :20] = torch.tensor([0.03, 0.0, -0.01]), torch.tensor([0.05, 0.0, -0.04])
    flow[:, :, 20:40] = 0.5  # the arm's far end
    way, push = waypoints(points, flow, hand, CascadeGeomConfig())
    torch.testing.assert_close(way[0], hand + flow[0, :, 0], atol=1e-4, rtol=0)
    assert push.item() == 0


@pytest.mark.parametrize(("direction", "grip"), [(1, 1.0), (-1, -1.0)])
def test_fingers_close_to_push_and_open_to_pull(direction, grip, g):
    points, hand = scene(g)
    flow = torch.zeros(1, 2, 60, 3)
    flow[:, :, :20, 0] = flow[:, :, 40:, 0] = 0.04 * direction
    flow[:, :, :20, 1] = 0.01  # the imagined hand slips a little: the object's motion has its say
    config = CascadeGeomConfig(carry=0.5)
    way, push = waypoints(points, flow, hand, config)
    torch.testing.assert_close(way[0, 0], hand[0] + torch.tensor([0.04 * direction, 0.005, 0.0]), atol=1e-4, rtol=0)
    proprio = torch.cat([hand, torch.ones(1, 1)], 1)
    action, _, _ = act(points, flow, proprio, controller((8, 16), 16, config), config)
    assert push.item() == grip and (action[..., 3] == grip).all()


def test_fingers_stay_as_they_are_while_nothing_is_moved(g):
    points, hand = scene(g)
    config, still = CascadeGeomConfig(), torch.zeros(1, 2, 60, 3)
    for openness, grip in ((1.0, -1.0), (0.2, 1.0)):
        proprio = torch.cat([hand, torch.full((1, 1), openness)], 1)
        action, _, _ = act(points, still, proprio, controller((8, 16), 16, config), config)
        torch.testing.assert_close(action[0], torch.tensor([0.0, 0.0, 0.0, grip]).expand(16, 4), atol=1e-6, rtol=0)


def test_the_controller_reaches_its_waypoints(g):
    """At constant speed exactly, whatever the lag; between two speeds it asks for the later one `lag` steps early."""
    config = CascadeGeomConfig(unit=0.01, lag=2.0)
    control = controller((8, 16), 16, config)
    torch.testing.assert_close(control @ torch.tensor([0.04, 0.04]), torch.full((16,), 0.5))
    early, late = (controller((8, 16), 16, dataclasses.replace(config, lag=x)) for x in (2.0, 0.0))
    torch.testing.assert_close(early[:-2], late[2:])
    assert control[0, 1] == 0 and (control[:, 1].diff() >= 0).all() and control[-1, 0] == 0


def test_flow_of_points_on_bodies_that_turn_and_shift():
    """A point of body 1 turns a quarter around z and moves by (0, 0, 1); one of body 0 stays."""
    half = math.sqrt(0.5)
    pose = np.zeros((2, 2, 7), np.float32)
    pose[:, :, 3] = 1
    pose[0, 1, :3], pose[1, 1, :3] = (1, 0, 0), (1, 0, 1)
    pose[1, 1, 3:] = (half, 0, 0, half)
    points = np.array([[[2, 0, 0, 0], [5, 5, 5, 0]]] * 2, np.float32)
    scene_flow = SceneFlow(points, np.array([[1, 0]] * 2, np.int32), pose)
    flow = scene_flow.flow(np.array([0]), np.array([[0, 1]]))
    np.testing.assert_allclose(flow[0], [[[0, 0, 0], [0, 0, 0]], [[-1, 1, 1], [0, 0, 0]]], atol=1e-6)
    back = SceneFlow(points + np.array([-1, 1, 1, 0], np.float32) * [[[1], [0]]], scene_flow.body, pose)
    np.testing.assert_allclose(back.flow(np.array([1]), np.array([[0]]))[0, 0, 0], [1, -1, -1], atol=1e-6)

"""The state probe: learns from few frames, is a function of its seed, and says how wrong it is."""

import numpy as np
import pytest

from wamkit.envs import make_env
from wamkit.eval.probes.object_state import States, probe_error, read_states, train_probe
from wamkit.types import EvaluationError


def _frames(task, seeds, steps):
    """Every fourth frame of the scenes of some seeds, and their states."""
    images, position, area = [], [], []
    env = make_env("physics", task=task, height=32, width=32)
    for seed in seeds:
        raw, _ = env.reset(seed=seed)
        for step in range(1, steps + 1):
            if "images" in raw:
                truth = env.ground_truth()
                images.append(raw["images"][0]), position.append(truth.position[0]), area.append(truth.area[0])
            raw = env.step(np.zeros(2), render=step % 4 == 0)[0]
    env.close()
    area, present = np.stack(area), np.stack(area) > 0
    place = np.where(present[..., None], np.stack(position), np.nan)
    return np.stack(images), States(place, present, area)


@pytest.fixture(scope="module")
def collisions():
    return _frames("collide", range(30), 40), _frames("collide", range(1_000_000, 1_000_004), 40)


def test_learns_better_than_the_mean_from_300_frames(collisions):
    (images, states), (held_out, truth) = collisions
    assert len(images) == 300
    probe = train_probe(images, states, seed=0, steps=120)
    error = probe_error(probe, held_out, truth)
    mean = np.nanmean(np.linalg.norm(truth.position - np.nanmean(states.position, 0), axis=-1))
    assert error.position < 0.7 * mean and error.lost < 0.1 and error.position <= error.position_p95
    again = read_states(train_probe(images, states, seed=0, steps=3), held_out)
    assert (
        again.position.tobytes()
        == read_states(train_probe(images, states, seed=0, steps=3), held_out).position.tobytes()
    )
    other = read_states(train_probe(images, states, seed=1, steps=3), held_out)
    assert again.position.tobytes() != other.position.tobytes()


def test_an_object_that_is_absent_is_read_as_absent():
    rng = np.random.default_rng(0)
    images, place = np.full((64, 3, 32, 32), 90, np.uint8), np.full((64, 1, 2), np.nan)
    for k in range(0, 64, 2):
        row, column = rng.integers(2, 28, 2)
        images[k, 0, row : row + 4, column : column + 4] = 255
        place[k, 0] = row, column
    present = np.isfinite(place).all(-1)
    states = States(place, present, np.where(present, 16 / 32**2, 0))
    read = read_states(train_probe(images, states, seed=0, steps=120, width=16), images)
    assert (read.present == present).mean() > 0.95
    assert np.isnan(read.position[~read.present]).all() and (read.area[~read.present] == 0).all()


def test_what_does_not_belong_together_is_refused():
    images = np.zeros((2, 3, 16, 16), np.uint8)
    nowhere = States(np.full((2, 1, 3), np.nan), np.zeros((2, 1), bool), np.zeros((2, 1)))
    with pytest.raises(EvaluationError, match="object 0 is in no frame"):
        train_probe(images, nowhere, seed=0, steps=1)
    with pytest.raises(EvaluationError, match="do not belong together"):
        train_probe(images[:1], nowhere, seed=0, steps=1)
    with pytest.raises(EvaluationError, match="uint8"):
        train_probe(images.astype(float), nowhere, seed=0, steps=1)
    with pytest.raises(EvaluationError, match="finite position"):
        States(np.full((1, 1, 3), np.nan), np.ones((1, 1), bool), np.ones((1, 1)))
    with pytest.raises(EvaluationError, match="position \\(M, N, d\\)"):
        States(np.zeros((2, 1, 3)), np.ones((1, 1), bool), np.ones((1, 1)))

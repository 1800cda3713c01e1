"""The physical axis: ground truth of bodies, frames that are read, and models of known physics."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wamkit.envs import make_env
from wamkit.envs.mujoco_bodies import HAND, OBJECT
from wamkit.envs.spec import EnvSpec
from wamkit.eval.probes.segmentation import read_masks, train_segmenter
from wamkit.eval.suites.counterfactuals import FIRST_SEED
from wamkit.eval.suites.free_running import _work, free_run
from wamkit.eval.suites.physics import examine, law_errors, physics_tables, reader, worst_continuations
from wamkit.eval.suites.physics_scenes import true_states
from wamkit.types import EvaluationError, Query, Spec, UnsupportedQuery, WamkitError

ENV = EnvSpec("physics", ("push",), {"height": 32, "width": 32, "max_steps": 60})
SPEC = Spec(("front",), 32, 32, 4, 2, chunk=8, frame_offsets=(4, 8), fps=50.0)


class Model:
    """Answers forward dynamics by `answer(episode, step)`, uint8 (F, V, 3, H, W). The proprioception tells the step."""

    name, spec, queries = "model", SPEC, frozenset({Query.FORWARD})

    def __init__(self, real, answer):
        self.at = {o.proprio.tobytes(): (take, t) for take in real for t, o in enumerate(take.obs)}
        self.answer, self.asked = answer, []

    def sample(self, obs, query, seed, steps=None, actions=None):
        self.asked += [(*self.at[o.proprio.tobytes()], o.images, a) for o, a in zip(obs, actions, strict=True)]
        where = [self.at[o.proprio.tobytes()] for o in obs]
        return SimpleNamespace(future=np.stack([self.answer(take, t) for take, t in where]))


def oracle(take, t):
    return np.stack([take.obs[t + o].images for o in SPEC.frame_offsets])


def still(take, t):
    return np.stack([take.obs[0].images] * 2)


@pytest.fixture(scope="module")
def real():
    return [
        _work((ENV, "push", FIRST_SEED + i, None)) for i in range(3)
    ]  # as `reference_episodes`, without starting a process


def test_a_model_lives_on_its_own_images(real):
    model = Model(real, oracle)
    went = free_run(model, real, progress=False)
    for c in went:
        assert c.steps == tuple(range(0, c.steps[-1] + 1, 4)) and c.steps[-1] < len(c.reference) <= c.steps[-1] + 9
        assert np.array_equal(c.frames, c.reference.images(c.steps))
    take, t, _, chunk = model.asked[0]
    assert t == 0 and np.array_equal(chunk, take.actions[:8])
    frozen = Model(real, still)
    free_run(frozen, real, progress=False)
    assert all(np.array_equal(seen, take.obs[0].images) for take, _, seen, _ in frozen.asked)
    with pytest.raises(UnsupportedQuery):
        free_run(SimpleNamespace(name="bc", queries=frozenset({Query.POLICY})), real)
    short = replace(real[0], actions=real[0].actions[:8])
    with pytest.raises(EvaluationError, match="longer than the 8 steps"):
        free_run(Model(real, oracle), [short], progress=False)


def test_reality_breaks_no_law_and_standing_still_misses_what_is_pushed(real):
    for take in real:
        truth = take.ground_truth
        found = law_errors(truth, true_states(truth), 1 / 50)
        assert found["ade"] == found["lost"] == found["teleports"] == found["lag"] == 0
        assert not found["missed"] > 0 and not found["premature"] > 0
        frozen = true_states(truth)
        frozen = type(frozen)(*(np.repeat(x[:1], len(x), 0) for x in vars(frozen).values()))
        wrong = law_errors(truth, frozen, 1 / 50)
        assert wrong["missed"] == 1 and wrong["ade"] > 0.005


def test_an_oracle_is_as_lawful_as_reality_and_a_still_image_is_not(real):
    eyes = reader(real, real, steps=150, mask_steps=5)
    assert eyes.bodies.tolist() == [True] + [False] * (len(eyes.bodies) - 1)
    found = examine(free_run(Model(real, oracle), real, progress=False), ENV, eyes, SPEC.fps, again=real)
    for name in found.laws.metric:
        excess = found.laws.excess(name)
        assert (excess[np.isfinite(excess)] == 0).all(), name
    assert found.moves == found.ceiling and all(c.spatial == 1 for c in found.retakes)
    perfect = replace(found, moves=found.retakes, ceiling=found.retakes)
    rows = {t.figure(r): r.value for t in physics_tables(perfect) for r in t.rows}
    assert rows["physics.ade"] == 0 and rows["motion.spatiotemporal"] == 1 and rows["motion.physics_iq"] == 100
    assert "nan" not in " ".join(r.note for t in physics_tables(found) for r in t.rows)
    assert worst_continuations(found)[0].columns["happened"].shape[1:] == (3, 32, 32)
    frozen = examine(free_run(Model(real, still), real, progress=False), ENV, eyes, SPEC.fps)
    assert np.nanmean(frozen.laws.metric["ade"]) == pytest.approx(np.nanmean(frozen.still.metric["ade"]))
    assert np.nanmean(frozen.laws.metric["ade"]) > np.nanmean(frozen.laws.floor["ade"])
    assert sum(c.area_ratio for c in frozen.moves) == 0 and not frozen.retakes


def test_a_world_without_truth_is_refused():
    env = make_env("reacher", task="reach")
    with pytest.raises(WamkitError, match="Reacher has no ground truth of its bodies"):
        env.ground_truth()
    env.close()


def test_metaworld_knows_hand_and_thing():
    env = make_env("metaworld", task="drawer-open-v3", height=32, width=32)
    raw, _ = env.reset(seed=0)
    before, truth = env.snapshot(), env.ground_truth()
    assert env.snapshot().physics.tobytes() == before.physics.tobytes()
    assert np.linalg.norm(truth.position[0, HAND] - raw["proprio"][:3]) < 0.02
    assert truth.exists.all() and not truth.mask.all(1).any() and (truth.area > 0).all() and not truth.contact.any()
    expert, rng, touched = env.expert(), np.random.default_rng(0), False
    for _ in range(150):
        *_, info = env.step(expert(rng), render=False)
        touched |= env.ground_truth(masks=False).contact[0, OBJECT, -1]
        if info["success"]:
            break
    moved = np.linalg.norm(env.ground_truth(masks=False).position[0] - truth.position[0], axis=-1)
    assert touched and 0.1 < moved[OBJECT] < 0.3
    env.close()


def test_a_segmenter_finds_squares_and_is_a_function_of_its_seed():
    rng = np.random.default_rng(0)
    images, masks = np.full((48, 3, 32, 32), 90, np.uint8), np.zeros((48, 2, 32, 32), bool)
    for k in range(48):
        for thing in range(2):
            y, x = rng.integers(0, 24, 2)
            masks[k, thing, y : y + 6, x : x + 6] = True
            masks[k, 0] &= ~masks[k, 1]
        for thing, colour in enumerate((255, 0)):
            images[k][:, masks[k, thing]] = colour
    net = train_segmenter(images[:40], masks[:40], seed=0, steps=120, width=8)
    read, truth = read_masks(net, images[40:]), masks[40:]
    assert (read & truth).sum() / (read | truth).sum() > 0.8
    one, again = (train_segmenter(images[:40], masks[:40], seed=0, steps=12, width=8).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    with pytest.raises(EvaluationError, match="masks are"):
        train_segmenter(images, masks[:4], seed=0)
    with pytest.raises(EvaluationError, match="at least one"):
        read_masks(net, images[:0])

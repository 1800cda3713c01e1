"""From requests to observations: any layout that the keys describe, and refusals that name what came and what fits."""

from __future__ import annotations

import numpy as np
import pytest

from wamkit.metadata import DatasetMetadata, Field
from wamkit.serving.inputs import EXAMPLES, Inputs, Keys, given_keys
from wamkit.types import ObservationError, Spec, WamkitError

FRONT, WRIST = "observation/images/front", "observation/images/wrist"


def inputs(**more):
    return Inputs(("front", "wrist"), ("wrist",), 3, 2, **more)


def request(**changed):
    rng = np.random.default_rng(0)
    whole = {
        FRONT: rng.integers(0, 256, (6, 8, 3), np.uint8),
        WRIST: rng.integers(0, 256, (4, 4, 3), np.uint8),
        "observation/state": np.array([1, 2, 3], np.float32),
        "prompt": "open the drawer",
    }
    return {k: v for k, v in {**whole, **changed}.items() if v is not None}


def test_cameras_of_any_size_and_layout_become_views():
    given = request()
    obs = inputs().observation(given)
    assert [x.shape for x in obs.images] == [(3, 6, 8), (3, 4, 4)] and obs.text == "open the drawer"
    assert np.array_equal(obs.images[0], given[FRONT].transpose(2, 0, 1)) and obs.view_valid is None
    assert obs.proprio.tolist() == [1, 2, 3] and obs.proprio.dtype == np.float32
    turned = inputs().observation(request(**{FRONT: given[FRONT].transpose(2, 0, 1)}))
    assert np.array_equal(turned.images[0], obs.images[0])
    alone = inputs().observation(request(**{WRIST: None}))
    assert alone.view_valid.tolist() == [True, False] and alone.images.shape == (2, 3, 6, 8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {FRONT: None, "observation/images/frnt": 1},
            rf"{FRONT} is missing \(did you mean 'observation/images/frnt'\?\)",
        ),
        ({FRONT: np.zeros((6, 8, 3))}, rf"{FRONT}: expected uint8 \(H, W, 3\), got float64 \(6, 8, 3\)"),
        ({FRONT: np.zeros((6, 8, 4), np.uint8)}, r"got uint8 \(6, 8, 4\)"),
        ({FRONT: np.zeros((0, 8, 3), np.uint8)}, "sides of 1 to 4096 pixels"),
        ({FRONT: [[0]]}, "got a list"),
        ({"observation/state": None}, r"observation/state is missing: expected float32 \(3,\)"),
        ({"observation/state": np.zeros(4, np.float32)}, r"expected float32 \(3,\), got 4 values"),
        ({"observation/state": np.zeros((1, 3), np.float32)}, r"expected float32 \(3,\), got float32 \(1, 3\)"),
        ({"observation/state": np.zeros(3, int)}, r"expected float32 \(3,\), got int64 \(3\)"),
        ({"observation/state": np.array([0, np.inf, 0], np.float32)}, "value 1 is not finite"),
        ({"prompt": ""}, "expected an instruction of 1 to 4096 characters, got a text of 0 characters"),
        ({"prompt": "x" * 5000}, "got a text of 5000 characters"),
        ({"prompt": None}, "got nothing"),
        ({"prompt": b"open"}, "got a bytes"),
    ],
)
def test_what_does_not_fit_is_named_with_what_came(changed, message):
    with pytest.raises(ObservationError, match=message):
        inputs().observation(request(**changed))


@pytest.mark.parametrize("name", EXAMPLES)
def test_requests_of_openpis_examples_are_read(name):
    """Each as its own program sends it: entries within entries, images first axis first, a state in parts."""
    images, state, prompt = EXAMPLES[name]
    cameras = tuple(key.rpartition("/")[2] for key in images)
    sizes = {"droid": (7, 1), "roboarena": (7, 1), "libero": (8,), "aloha": (14,)}[name]
    message: dict = {prompt: "pick the cup"}
    for i, key in enumerate(images):
        image = np.full((3, 5, 5) if name == "aloha" else (5, 5, 3), i, np.uint8)
        first, _, rest = key.partition("/")
        if name == "aloha":
            message.setdefault(first, {})[rest] = image
        else:
            message[key] = image
    start = 0
    for key, size in zip(state, sizes, strict=True):
        message[key] = np.arange(start, start + size, dtype=np.float64)
        start += size
    for named in (cameras, tuple(f"camera_{i}" for i in range(len(cameras)))):  # by name, and by place
        found = Inputs(named, (), sum(sizes), 7, given_keys([name], named)).observation(message)
        assert found.images[:, 0, 0, 0].tolist() == list(range(len(images)))
        assert found.proprio.tolist() == list(range(sum(sizes))) and found.text == "pick the cup"


def test_keys_are_checked():
    keys = given_keys(["front=a/b", "state=x,y", "prompt=task"], ("front", "wrist"))
    assert keys == Keys({"front": "a/b"}, ("x", "y"), "task") and keys.image("wrist") == WRIST
    for words, message in (
        (["fornt=a"], r"there is no 'fornt' \(did you mean 'front'\?\); there is front, wrist, state, prompt"),
        (["front", "x=y"], "expected NAME=KEY, or alone one of libero, droid"),
        (["liberoo"], r"unknown keys 'liberoo' \(did you mean 'libero'\?\)"),
    ):
        with pytest.raises(WamkitError, match=message):
            given_keys(words, ("front", "wrist"))
    with pytest.raises(WamkitError, match="the keys of libero have 2 cameras, the model 3"):
        given_keys(["libero"], ("a", "b", "c"))
    with pytest.raises(WamkitError, match="'x' of a request would hold two things"):
        inputs(keys=Keys({"front": "x", "wrist": "x"}))


def test_a_client_is_told_names_and_units():
    fields = Field("arm", 0, 2, "joint", unit="rad"), Field("grip", 2, 3, "gripper", "velocity", unit="1")
    metadata = DatasetMetadata("here", "arm", state=fields, action=fields[:1])
    spec = Spec(("front", "wrist"), 32, 32, 3, 2, chunk=4, frame_offsets=(2, 4))
    told = inputs(metadata=metadata).described(spec, ((-1, 1), (0, 2)))
    assert told["inputs"]["observation/state"] == {
        "shape": [3],
        "dtype": "float32",
        "names": ["arm_0", "arm_1", "grip"],
        "units": ["rad", "rad", "1"],
    }
    assert told["inputs"][WRIST] == {"shape": [None, None, 3], "dtype": "uint8", "optional": True}
    assert told["actions"] == {
        "shape": [4, 2],
        "dtype": "float32",
        "names": ["arm_0", "arm_1"],
        "units": ["rad", "rad"],
        "still": [False, False],
        "low": [-1, 0],
        "high": [1, 2],
    }
    assert inputs().described(spec, ())["actions"]["names"] == ["0", "1"]

"""What opens without an error and still spoils training is found; a good data set has nothing to report."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from wamkit.cli.main import main
from wamkit.config import save_json
from wamkit.data.format.metadata_io import load_metadata, save_metadata
from wamkit.data.format.store import Store
from wamkit.data.importers.run import FILE
from wamkit.data.validate import validate
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.types import Episode, Span

MEANING = DatasetMetadata(
    "test", "arm", "delta", 10.0, "MIT",
    state=(Field("hand", 0, 2, "position", unit="m"),), action=(Field("hand", 0, 2, "position", "delta", unit="m"),),
    cameras={"front": CameraFacts()},
)  # fmt: skip


def episode(seed: int, steps: int = 30, shift: int = 0, **changes) -> Episode:
    """A hand that goes where its actions send it, seen as a square; action t is recorded at row t - shift."""
    rng = np.random.default_rng(seed)
    action = np.cumsum(rng.normal(0, 0.2, (steps + 4, 2)), 0).clip(-1, 1)
    state = np.cumsum(np.r_[np.zeros((1, 2)), 0.02 * action], 0) + rng.normal(0, 1e-3, (steps + 5, 2))
    images = np.full((steps, 1, 3, 32, 32), 40, np.uint8)
    images[:] += rng.integers(0, 9, (3, 32, 32), np.uint8)
    for t in range(steps):
        x = 2 + (t * 3) % 20
        images[t, 0, :, x : x + 8, x : x + 8] = 200
    rows = slice(2, 2 + steps)
    done = action[2 + shift : 2 + shift + steps].astype(np.float32)
    whole = Episode(
        "t", "push", seed, 10.0, ("front",), images, state[rows].astype(np.float32), done, done,
        np.zeros(steps, np.float32), np.zeros(steps, bool),
    )  # fmt: skip
    return dataclasses.replace(whole, **changes)


def empty_store(root, cameras=("front",)) -> Store:
    return Store.create(
        root,
        cameras=cameras,
        image_shape=(3, 32, 32),
        proprio_names=("x", "y"),
        action_names=("dx", "dy"),
        fps=10.0,
        robot_type="arm",
        expert=False,
        rewards=False,
    )


def store(root, episodes, metadata=MEANING) -> Store:
    made = empty_store(root)
    for e in episodes:
        made.append(e)
    made.finalize()
    if metadata is not None:
        save_metadata(root, metadata)
    return made


def said(root, **options) -> list[str]:
    return [str(f) for f in validate(root, progress=False, **options)]


def test_a_good_data_set_has_nothing_to_report(tmp_path, capsys):
    root = store(tmp_path / "good", [episode(i) for i in range(5)]).root
    assert said(root) == said(root, every_frame=True) == []
    assert main(["validate", str(root), "--out", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert "150, 0.00 h at 10 a second" in out and "front 32x32" in out and "arm, delta" in out
    page = (tmp_path / "page.html").read_text()
    assert "No findings." in page and page.count("<figure>") == 5 and "observation.state, y" in page


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        (-1, "error: actions best explain the motion 1 step before them"),
        (-2, "error: actions best explain the motion 2 steps before them"),
        (1, "note: the robot responds 1 step after its command"),
    ],
)
def test_actions_of_another_step(tmp_path, shift, message):
    """Recorded after what they did they are an error; a robot that follows late is only slow."""
    root = store(tmp_path / "d", [episode(i, shift=shift) for i in range(5)]).root
    (found,) = said(root)
    assert found.startswith(message), found
    assert main(["validate", str(root), "--out", str(tmp_path / "page.html")]) == (shift < 0)


def test_absolute_actions_are_asked_how_far_they_lead(tmp_path):
    """A command that is the next place is right; one that is where the robot was two steps ago is not."""
    metadata = dataclasses.replace(MEANING, action=(Field("hand", 0, 2, "position", unit="m"),))
    for lead, wrong in ((1, False), (-2, True)):
        episodes = []
        for i in range(5):
            e = episode(i, 40)
            rows = (np.arange(40) + lead).clip(0, 39)
            episodes.append(dataclasses.replace(e, action=e.proprio[rows], action_expert=e.proprio[rows]))
        root = store(tmp_path / f"lead{lead}", episodes, metadata).root
        assert any("actions best explain the motion" in f for f in said(root)) == wrong, lead


def test_videos_that_stand_still_or_show_nothing(tmp_path):
    moving = episode(0)
    frozen = dataclasses.replace(moving, images=np.repeat(moving.images[:1], 30, 0))
    black = episode(1, images=np.zeros((30, 1, 3, 32, 32), np.uint8))
    root = store(tmp_path / "d", [dataclasses.replace(frozen, proprio=frozen.proprio + 1), black, episode(2)]).root
    found = said(root)
    assert found[0] == "warning: episode 0: camera front shows the same image while the robot moves, in 100% of steps"
    assert "warning: episode 1: camera front shows one even colour" in found
    assert not any("episode 2" in f for f in found)


def test_numbers_doubles_texts_and_lengths(tmp_path):
    jump = episode(0)
    far = jump.proprio.copy()
    far[10:, 1] += 3.0
    still = [
        dataclasses.replace(episode(i), action=np.c_[episode(i).action[:, :1], np.ones(30)].astype(np.float32))
        for i in range(1, 4)
    ]
    still = [dataclasses.replace(e, action_expert=e.action) for e in still]
    first = dataclasses.replace(jump, proprio=far, action=still[0].action, action_expert=still[0].action)
    silent = dataclasses.replace(still[2], text="", spans=(Span(0, 15, "push"),))
    root = store(tmp_path / "d", [first, *still[:2], silent, still[0]]).root
    found = "\n".join(said(root))
    assert "warning: action, dy: always 1" in found
    assert "warning: episode 0: observation.state, y: jumps at step 10" in found
    assert "error: episode 4: identical to episode 1" in found
    assert "note: 10% of its steps have no text" in found
    assert found.index("error") < found.index("warning") < found.index("note")
    root = store(tmp_path / "long", [*(episode(i, 12) for i in range(4)), episode(5, 140)]).root
    assert "warning: episode 4: 140 steps, where 12 are usual: is it several episodes in one?" in said(root)


def test_meanings_that_do_not_fit_and_imports_that_were_cut_off(tmp_path):
    root = store(tmp_path / "d", [episode(i) for i in range(3)], None).root
    assert said(root) == ["note: it has no metadata (meta/wamkit.json); `wamkit describe` shows what names tell"]
    save_metadata(root, dataclasses.replace(MEANING, state=(Field("hand", 0, 3, "position"),), licence="", cameras={}))
    save_json(root / FILE, {"complete": False, "skipped": {"7": "no"}})
    found = "\n".join(said(root))
    assert "error: state.hand covers dimensions 0 to 3 of 2" in found and "its import was cut off" in found
    assert "warning: the role of camera front is not known" in found and "note: its licence is not known" in found
    assert "1 episodes of the source were left out" in found and load_metadata(root) is not None


def test_few_rows_are_no_ground_for_a_warning(tmp_path):
    """One-step episodes are named as such; among few rows nothing is unusual, and nothing is computed of no rows."""
    one = [episode(i, 1) for i in range(60)]
    root = store(tmp_path / "steps", one).root
    assert said(root) == said(root, every_frame=True) == [f"warning: episode {i}: 1 step" for i in range(60)]
    root = store(tmp_path / "mixed", [episode(0, 1), episode(1, 1), episode(2, 30), episode(3, 1)]).root
    assert said(root) == [f"warning: episode {i}: 1 step" for i in (0, 1, 3)]
    still = [dataclasses.replace(e, images=np.repeat(e.images[:1], 4, 0)) for e in (episode(0, 4), episode(1, 4))]
    angles = np.array([[0, 90], [0, -90], [0, 45], [0, 10]], np.float32)
    root = store(tmp_path / "short", [dataclasses.replace(e, proprio=angles + i) for i, e in enumerate(still)]).root
    assert said(root) == []


def test_an_episode_whose_numbers_never_change_is_not_the_double_of_another(tmp_path):
    """A robot that waits has the same numbers in every episode; its videos tell them apart."""
    waits = [dataclasses.replace(episode(i), proprio=np.zeros((30, 2), np.float32)) for i in range(3)]
    waits = [dataclasses.replace(e, action=e.proprio, action_expert=e.proprio) for e in waits]
    found = said(store(tmp_path / "d", [*waits, waits[1]]).root)
    assert [f for f in found if f.startswith("error")] == ["error: episode 3: identical to episode 1"]


def test_a_regression_on_few_rows_explains_by_chance(tmp_path):
    """Twenty dimensions of noise and fifty rows: no lag is the right one."""
    rng = np.random.default_rng(0)
    names = tuple(f"x{i}" for i in range(20))
    made = Store.create(
        tmp_path / "d", cameras=("front",), image_shape=(3, 32, 32), proprio_names=names, action_names=names, fps=10.0,
        robot_type="arm", expert=False, rewards=False,
    )  # fmt: skip
    noise = lambda: rng.normal(size=(54, 20)).astype(np.float32)  # noqa: E731
    for i in range(1):
        action = noise()
        made.append(dataclasses.replace(episode(i, 54), proprio=noise(), action=action, action_expert=action))
    made.finalize()
    assert not [f for f in said(made.root) if "explain" in f or "responds" in f]

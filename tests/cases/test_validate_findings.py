"""Findings that are true: no jumps of a gripper that mostly rests, one line a kind, nothing written into the data."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
from tests.cases.lerobot_folders import Recordings, write_v3
from tests.data.test_validate import empty_store, episode

from wamkit.cli.main import main
from wamkit.data.validate import Finding, accept, grouped, validate


def rare_gripper(noise: float = 0.0, spike: float = 0.0) -> Recordings:
    """Four moving joints and a gripper that closes once an episode; `spike` is added to one step of episode 1."""

    def columns(e: int, T: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(e)
        state = np.cumsum(rng.normal(0, 0.05, (T, 4)), 0)
        state[:, 3] = np.where(np.arange(T) < T // 2, 0.04, 0.0) + rng.normal(0, noise, T)
        if e == 1:
            state[30:, 0] += spike
        return {"observation.state": state.astype(np.float32)}

    return Recordings(lengths=(60,) * 8, columns=columns)


def messages(root) -> list[str]:
    return [f.message for f in validate(root, progress=False)]


def test_a_gripper_that_rests_in_most_steps_does_not_jump(tmp_path) -> None:
    for name, noise in (("exact", 0.0), ("noisy", 1e-5)):
        root = write_v3(tmp_path / name, rare_gripper(noise))
        assert not any("jumps" in m for m in messages(root)), name
    found = [m for m in messages(write_v3(tmp_path / "spike", rare_gripper(spike=9.0))) if "jumps" in m]
    assert len(found) == 1 and "observation.state_0: jumps at step 30, by" in found[0]


def test_few_rows_are_no_reason_to_cry_wolf(tmp_path) -> None:
    root = write_v3(tmp_path / "few", Recordings(lengths=(1, 3, 1, 5)))
    assert not any("jumps" in m for m in messages(root))
    assert [str(f) for f in grouped(validate(root, progress=False)) if f.kind == "short"] == [
        "warning: episode 0: 1 step (the first of 2 episodes; also 2)"
    ]


def test_findings_of_one_kind_are_one_line() -> None:
    many = [Finding("warning", e, f"jumps at step {e}", "a jumps") for e in range(3, 12)]
    one = Finding("warning", None, "odd")
    lines = [str(f) for f in grouped([*many, one, one])]
    assert lines == [
        "warning: episode 3: jumps at step 3 (the first of 9 episodes; also 4, 5, 6, 7, 8 and 3 more)",
        "warning: odd",
        "warning: odd",
    ]


def test_validate_writes_nothing_into_the_data_and_shows_every_camera(tmp_path, monkeypatch) -> None:
    root = tmp_path / "two"
    made = empty_store(root, ("front", "wrist"))
    one = episode(0)
    made.append(dataclasses.replace(one, cameras=("front", "wrist"), images=np.repeat(one.images, 2, 1)))
    info = (root / "meta/info.json").read_bytes()
    made.finalize()
    (root / "meta/info.json").write_bytes(info)  # as a killed writer leaves it: the totals lack the episode
    accept(root)
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    for folder, page in ((root, tmp_path / "validate-two.html"), (tmp_path / "here", None)):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        assert main(["validate", str(root)]) in (0, 1)
        page = page or folder / "validate-two.html"
        assert 'alt="front"' in page.read_text() and 'alt="wrist"' in page.read_text()
        assert page.read_text().count("<figure>") == 1
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    assert os.listdir(tmp_path / "here") == ["validate-two.html"]

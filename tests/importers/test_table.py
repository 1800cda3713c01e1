"""Recordings in layouts that nobody has seen before, read by a mapping file."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from imagecodecs import jpeg_encode, png_encode
from lerobot_folders import square_frames, write_video

from wamkit.cli.main import main
from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.format.store import Store
from wamkit.data.importers.run import noted
from wamkit.data.loading.dataset import open_frames
from wamkit.data.validate import validate

T = 12


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """`wamkit validate` writes its page into the current folder."""
    monkeypatch.chdir(tmp_path)


def values(episode: int) -> tuple[np.ndarray, np.ndarray]:
    """State (T, 7) and action (T, 7) of an episode."""
    rng = np.random.default_rng(episode)
    return tuple(rng.normal(0, 1, (T, 7)).astype(np.float32) for _ in range(2))


def save(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def imported(source: Path, mapping: str, tmp_path: Path, *more: str) -> Store:
    """What an import makes of `source`."""
    file = save(tmp_path / "map.toml", mapping)
    words = ["import", "table", str(source), "--map", str(file), "--out", str(tmp_path / "out"), *more]
    assert main(words) == 0
    assert main(["validate", str(tmp_path / "out")]) == 0
    return Store.open(tmp_path / "out")


def refused(source: Path, mapping: str, tmp_path: Path, capsys, *more: str) -> str:
    """The one line by which an import is refused."""
    file = save(tmp_path / "bad.toml", mapping)
    assert main(["import", "table", str(source), "--map", str(file), "--out", str(tmp_path / "bad"), *more]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert len(said) < 700
    return said


def check(store: Store, episodes: int) -> None:
    """The vectors of every episode are those that were written."""
    assert len(store.episodes) == episodes
    columns = store.numeric()
    for e in range(episodes):
        state, action = values(e)
        rows = slice(e * T, (e + 1) * T)
        assert np.array_equal(columns["observation.state"][rows], state)
        assert np.array_equal(columns["action"][rows], action)


def write_groups(path: Path, lacking: int = -1) -> Path:
    """One HDF5 file: groups, joints apart, a camera as JPEG of any length, another one that a take lacks, times in ms.

    lacking: number of that take.
    """
    with h5py.File(path, "w") as file:
        for e in (0, 1, 10):
            state, action = values(min(e, 2))
            g = file.create_group(f"runs/take_{e}")
            g.attrs["goal"] = "put the cube into the bowl" if e else "open the drawer"
            for i in range(6):
                g[f"obs/joint_{i}"] = state[:, i]
            g["obs/gripper"] = state[:, 6:]
            g["cmd"] = action
            g["clock"] = 1000.0 * np.arange(T) / 15
            images = square_frames(T, seed=e)
            jpeg = g.create_dataset("front", (T,), h5py.vlen_dtype(np.uint8))
            for t, image in enumerate(images):
                jpeg[t] = np.frombuffer(jpeg_encode(image, level=95), np.uint8)
            if e != lacking:
                g["wrist"] = images[:, :, ::-1, ::-1]  # mirrored, blue first
    return path


@pytest.fixture
def groups(tmp_path) -> Path:
    """Recordings of which one lacks a camera."""
    return write_groups(tmp_path / "lab.h5", lacking=1)


MAP = """
episodes = "runs/take_*"
timestamps = "clock"
time_unit = "ms"
state = ["obs/joint_*", "obs/gripper"]
action = "cmd"
texts = "@goal"
robot = "arm7"

[cameras]
front = "front"
wrist = { key = "wrist", bgr = true }
"""


def test_groups_of_a_file_with_parts_apart_and_a_camera_that_is_missing_in_some(groups, tmp_path, capsys):
    store = imported(groups, MAP, tmp_path, "--missing-views", "mask")
    check(store, 3)
    assert store.layout.fps == 15 and store.cameras == ("front", "wrist")
    assert store.layout.proprio_names == (*(f"joint_{i}" for i in range(6)), "gripper")
    assert [m.text for m in store.episodes] == ["open the drawer", *["put the cube into the bowl"] * 2]
    assert [m.source for m in store.episodes] == ["runs/take_0", "runs/take_1", "runs/take_10"]
    frames = open_frames(store, (48, 64))[0]
    shown = np.moveaxis(np.asarray(frames.images[np.arange(T)]), 2, -1)
    wanted = square_frames(T)
    assert abs(shown[:, 0].astype(int) - wanted).mean() < 3  # JPEG, then H.264
    assert abs(shown[:, 1].astype(int) - wanted[:, :, ::-1]).mean() < 3
    assert frames.has_view.tolist() == [[True, True], [True, False], [True, True]]
    metadata = load_metadata(store.root)
    assert [(f.name, f.start, f.stop, f.kind) for f in metadata.state] == [
        ("joints", 0, 6, "joint"), ("gripper", 6, 7, "gripper"),
    ]  # fmt: skip
    assert [(f.name, f.start, f.stop) for f in metadata.action] == [("other", 0, 7)]
    assert metadata.inferred == ("state.joints", "state.gripper", "action.other")
    assert not [f.message for f in validate(store.root, progress=False) if f.level == "warning"]
    # The same command goes on, another mapping does not.
    assert main(["import", "table", str(groups), "--map", str(tmp_path / "map.toml"), "--out", str(tmp_path / "out"),
                 "--missing-views", "mask"]) == 0  # fmt: skip
    other = save(tmp_path / "map.toml", MAP.replace('action = "cmd"', 'action = "obs/gripper"'))
    assert main(["import", "table", str(groups), "--map", str(other), "--out", str(tmp_path / "out")]) == 1
    assert "was imported otherwise" in capsys.readouterr().err


def test_a_map_that_names_nothing_says_what_there_is(groups, tmp_path, capsys):
    for a, b, words in (
        ('"runs/take_*"', '"runs/episode_*"', "episodes = 'runs/episode_*' names nothing; it holds runs/take_0"),
        ('action = "cmd"', 'action = "cmds"', "there is no 'cmds' (did you mean 'cmd'?); it holds"),
        ('"obs/gripper"', '"obs/grip*"', ""),
        ('state = ["obs/joint_*"', 'state = ["obs/arm_*"', "there is no 'obs/arm_*'"),
        ('time_unit = "ms"', "", "a step takes 66.7 s; state time_unit"),
        ('time_unit = "ms"', 'time_unit = "ms"\nfps = 30', "fps = 30, but 'clock' has 15 steps a second"),
        ('texts = "@goal"', 'texts = "@task"', "its attribute 'runs/take_0@task' is no text"),
        ('front = "front"', 'front = "cmd"', "instead of images"),
        ('front = "front"', 'front = "fronts"', "there is no 'fronts' (did you mean 'front'?)"),
        ('front = "front"', 'front = "videos/{stem}.mp4"', "no episode has the video of camera front"),
        ('robot = "arm7"', 'robots = "arm7"', "robots"),
        ('robot = "arm7"', "robot = ", "is no TOML"),
        ('timestamps = "clock"\n', "", "neither fps nor timestamps"),
    ):
        if words:
            assert a in MAP
            said = refused(groups, MAP.replace(a, b), tmp_path, capsys, "--missing-views", "mask")
            assert words in said, said
    assert not (tmp_path / "bad/data").exists()
    assert (
        main(["import", "table", str(groups), "--map", str(tmp_path / "none.toml"), "--out", str(tmp_path / "b")]) == 1
    )
    assert "none.toml" in capsys.readouterr().err


def test_files_of_a_folder_with_videos_beside_them_and_one_more_observation(tmp_path):
    for e in range(3):
        state, action = values(e)
        np.savez(tmp_path / f"take_{e}.npz", q=np.r_[state, state[-1:]], a=action, done=np.arange(T) > 9)
        write_video(tmp_path / f"videos/take_{e}_top.mp4", square_frames(T + 1, seed=e), 20)
    mapping = """
        fps = 20
        episodes = "take_*.npz"
        state = ["q"]
        action = ["a"]
        text = "stack"
        success = "done"
        [cameras]
        top = "videos/{stem}_top.mp4"
    """
    store = imported(tmp_path, mapping, tmp_path)
    check(store, 3)
    assert store.episodes[0].text == "stack" and store.layout.rewards


def test_a_parquet_table_of_all_steps_with_png_images_and_texts_a_step(tmp_path):
    pairs = [values(e) for e in range(2)]
    images = np.concatenate([square_frames(T, seed=e) for e in range(2)])
    table = pa.table({
        "episode_index": np.repeat([4, 9], T),
        "qpos": list(np.concatenate([p[0] for p in pairs])),
        "action": list(np.concatenate([p[1] for p in pairs])),
        "instruction": ["reach"] * 5 + ["grasp"] * (T - 5) + ["push"] * T,
        "image": [{"bytes": png_encode(x), "path": ""} for x in images],
        "frame": np.tile(np.arange(T), 2),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "all.parquet")
    mapping = """
        fps = 10
        episode_index = "episode_index"
        state = ["qpos"]
        action = ["action"]
        texts = "instruction"
        extras = { step = "frame" }
        [cameras]
        top = "image"
    """
    store = imported(tmp_path / "all.parquet", mapping, tmp_path)
    check(store, 2)
    assert [m.source for m in store.episodes] == ["4", "9"]
    frames = open_frames(store, (48, 64))[0]
    assert [frames.text_at(t) for t in (0, 4, 5, T - 1, T)] == ["reach", "reach", "grasp", "grasp", "push"]


def test_a_zarr_store_with_ends_of_episodes_and_a_csv_file_of_a_robot_without_cameras(tmp_path):
    pairs = [values(e) for e in range(2)]
    for name, x in (
        ("data/state", np.concatenate([p[0] for p in pairs])),
        ("data/action", np.concatenate([p[1] for p in pairs])),
        ("meta/episode_ends", np.array([T, 2 * T])),
    ):
        place = tmp_path / "lab.zarr" / name
        place.mkdir(parents=True)
        about = {"zarr_format": 2, "shape": x.shape, "chunks": x.shape, "dtype": x.dtype.str, "order": "C",
                 "compressor": None, "fill_value": 0, "filters": None}  # fmt: skip
        save(place / ".zarray", json.dumps(about))
        (place / ".".join("0" * x.ndim)).write_bytes(x.tobytes())
    mapping = """
        fps = 10
        episode_ends = "meta/episode_ends"
        state = ["data/state"]
        action = ["data/action"]
        text = "wave"
    """
    check(imported(tmp_path / "lab.zarr", mapping, tmp_path), 2)

    (tmp_path / "csv").mkdir()
    for e in range(2):
        state, action = values(e)
        times = np.arange(T) / 50 + (0.1 if e else 0) * (np.arange(T) > 6)
        names = ["t", *(f"q{i}" for i in range(7)), *(f"u{i}" for i in range(7))]
        rows = np.c_[times, state, action].astype(np.float64)
        lines = [",".join(names), *(",".join(repr(float(x)) for x in row) for row in rows)]
        save(tmp_path / f"csv/run{e}.csv", "\n".join(lines) + "\n")
    mapping = 'timestamps = "t"\nepisodes = "*.csv"\nstate = ["q*"]\naction = ["u*"]\ntext = "wave"'
    (tmp_path / "second").mkdir()
    store = imported(tmp_path / "csv", mapping, tmp_path / "second")
    check(store, 2)
    assert store.layout.fps == 50 and store.layout.action_names == tuple(f"u{i}" for i in range(7))
    assert list(noted(store.root)) == ["run1.csv"] and "step 6 takes 0.12 s" in noted(store.root)["run1.csv"][0]


def test_what_is_suggested_is_imported_as_it_stands(groups, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["import", "table", "lab.h5", "--suggest"]) == 0
    said, text = capsys.readouterr().out, (tmp_path / "map.toml").read_text()
    assert text in said and 'episodes = "runs/take_*"' in text and 'front = "front"' in text
    assert 'action = ["cmd"]' in text and '"obs/joint_5", "obs/gripper"]' in text and 'texts = "@goal"' in text
    assert main(["import", "table", "lab.h5", "--suggest"]) == 1 and "is there already" in capsys.readouterr().err
    assert main(["import", "table", "lab.h5", "--out", "out", "--missing-views", "mask"]) == 0
    check(Store.open(tmp_path / "out"), 3)
    assert main(["import", "table", "nothing", "--suggest", "--map", "other.toml"]) == 1
    (tmp_path / "empty").mkdir()
    assert main(["import", "table", "empty", "--suggest", "--map", "other.toml"]) == 1
    assert "there is no table in it" in capsys.readouterr().err


def test_links_objects_and_lies_about_sizes_are_refused(tmp_path, capsys):
    state, action = values(0)
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file["action"] = action
        file["state"] = h5py.ExternalLink("/etc/hostname", "x")
    mapping = 'fps = 10\nstate = ["state"]\naction = ["action"]'
    assert "there is no 'state'" in refused(tmp_path / "links.h5", mapping, tmp_path, capsys)
    np.savez(tmp_path / "objects.npz", state=np.array([{}] * T, object), action=action)
    assert "there is no 'state'" in refused(tmp_path / "objects.npz", mapping, tmp_path, capsys)
    np.savez(tmp_path / "odd.npz", state=state[:7], action=action)
    assert "'state' has 7 steps for 12 actions" in refused(tmp_path / "odd.npz", mapping, tmp_path, capsys)
    save(tmp_path / "notes.txt", "")
    assert "tables are .hdf5" in refused(tmp_path / "notes.txt", mapping, tmp_path, capsys)
    video = mapping + '\n[cameras]\ntop = "../{stem}.mp4"'
    assert "leads out" in refused(tmp_path / "odd.npz", video, tmp_path, capsys).replace("outside", "leads out")

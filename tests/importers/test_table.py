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
from wamkit.data.importers.table_suggest import suggest_map
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


def levels(n: int, step: int = 6) -> np.ndarray:
    """Frames (n, 48, 64, 3) of which each is a grey level of its own."""
    return np.broadcast_to((np.arange(n) * step).astype(np.uint8)[:, None, None, None], (n, 48, 64, 3))


def shown(store: Store, step: int = 6) -> list[int]:
    """The number of the frame that each row of a data set shows, by its grey level."""
    frames = open_frames(store, (48, 64))[0]
    means = np.asarray(frames.images[np.arange(store.frames)]).astype(float).mean((1, 2, 3, 4))
    return np.rint(means / step).astype(int).tolist()


def two(path: Path, n: int, **more: np.ndarray) -> Path:
    """State and action of n rows."""
    rng = np.random.default_rng(list(str(path).encode()))
    np.savez(path, q=rng.normal(0, 1, (n, 2)), a=rng.normal(0, 1, (n, 2)), **more)
    return path


ROWS = 'state = ["q"]\naction = ["a"]\ntext = "x"\n'
TOP = '[cameras]\ntop = "{stem}.mp4"\n'


def test_episodes_that_are_rows_of_a_file_show_their_own_part_of_its_video(tmp_path, capsys):
    source = two(tmp_path / "lab.v2.npz", 30, episode_index=np.repeat([3, 4], 15), ends=np.array([15, 30]))
    write_video(tmp_path / "lab.v2.mp4", levels(30), 10)
    index = 'fps = 10\nepisode_index = "episode_index"\n' + ROWS
    assert shown(imported(source, index + TOP, tmp_path)) == list(range(30))
    # The same file at half the rate of its rows: every frame is shown twice.
    (tmp_path / "half").mkdir()
    two(tmp_path / "half/b.npz", 40, ends=np.array([20, 40]))
    write_video(tmp_path / "half/b.mp4", levels(20), 5)
    halved = 'fps = 10\nepisode_ends = "ends"\n' + ROWS + TOP
    assert shown(imported(tmp_path / "half/b.npz", halved, tmp_path / "half")) == [i // 2 for i in range(40)]
    with h5py.File(tmp_path / "lab.h5", "w") as file:
        for e in range(2):
            file[f"demo_{e}/q"], file[f"demo_{e}/a"] = np.ones((15, 2)), np.ones((15, 2))
    write_video(tmp_path / "lab.mp4", levels(30), 10)
    said = refused(tmp_path / "lab.h5", 'fps = 10\nepisodes = "demo_*"\n' + ROWS + TOP, tmp_path, capsys)
    assert "lab.mp4 is the video of demo_0 and demo_1: put {episode} into the path" in said


def test_a_video_with_a_frame_for_each_row_is_read_by_number_whatever_rate_it_states(tmp_path, capsys):
    for name, rate in (("slow", 10), ("fast", 60)):
        source = two(tmp_path / f"{name}.npz", 30)
        write_video(tmp_path / f"{name}.mp4", levels(30), rate)
        (tmp_path / name).mkdir()
        assert shown(imported(source, "fps = 30\n" + ROWS + TOP, tmp_path / name)) == list(range(30))
    write_video(tmp_path / "slow.mp4", levels(40), 10)
    said = refused(tmp_path / "slow.npz", "fps = 30\n" + ROWS + TOP, tmp_path, capsys)
    assert "40 frames at 10 a second last 4 s, 30 rows at 30 last 1 s; write it with a frame for each row" in said


def test_a_video_alone_has_as_many_steps_as_its_rate_gives(tmp_path):
    (tmp_path / "in").mkdir()
    two(tmp_path / "in/a.npz", 30)
    write_video(tmp_path / "in/a.mp4", levels(30), 30)
    store = imported(tmp_path / "in", 'fps = 10\ntext = "x"\n' + TOP, tmp_path)
    assert shown(store) == list(range(0, 30, 3))


@pytest.mark.parametrize(("rate", "digits"), [(30, 2), (29.97, 3), (60, 3), (15, 3)])
def test_the_rate_of_a_clock_that_rounds_is_the_true_one(rate, digits, tmp_path):
    source = two(tmp_path / "a.npz", 120, t=np.round(np.arange(120) / rate, digits))
    assert imported(source, 'timestamps = "t"\n' + ROWS, tmp_path).layout.fps == pytest.approx(rate, rel=4e-4)


def test_names_with_brackets_units_and_sides_are_kept(tmp_path):
    names = ["q[0]", "q[1]", "elbow [rad]", "wrist (rad/s)", "gripper", "a"]
    rows = [",".join(names), *(",".join(str(i * k) for k in range(6)) for i in range(T))]
    save(tmp_path / "a.csv", "\n".join(rows) + "\n")
    mapping = f'fps = 10\nstate = {json.dumps(names[:5])}\naction = ["a"]\ntext = "x"'
    store = imported(tmp_path / "a.csv", mapping, tmp_path)
    assert store.layout.proprio_names == tuple(names[:5])
    assert np.array_equal(store.numeric()["observation.state"], np.arange(T)[:, None] * np.arange(5.0))
    units = {f.name: (f.kind, f.unit, f.representation) for f in load_metadata(store.root).state}
    assert ("joint", "rad/s", "velocity") in units.values() and ("joint", "rad", "") in units.values()
    with h5py.File(tmp_path / "arms.h5", "w") as file:
        for side in ("left", "right"):
            file[f"{side}/joint_pos_rad"], file[f"{side}/gripper"] = np.ones((T, 3)), np.ones(T)
        file["a"] = np.ones((T, 8))
    (tmp_path / "arms").mkdir()
    both = 'fps = 10\nstate = ["left/*", "right/*"]\naction = ["a"]\ntext = "x"'
    state = load_metadata(imported(tmp_path / "arms.h5", both, tmp_path / "arms").root).state
    assert [(f.name, f.unit) for f in state if f.kind == "joint"] == [("left_joints", "rad"), ("right_joints", "rad")]
    assert [f.name for f in state if f.kind == "gripper"] == ["left_gripper", "right_gripper"]


def test_ends_of_episodes_that_do_not_fit_the_rows(tmp_path, capsys):
    for i, (ends, words) in enumerate(
        (([9, 19], "'ends' ends at 19, 'a' has 20 rows"), ([10, 30], "ends at 30, 'a' has 20 rows"))
    ):
        source = two(tmp_path / f"a{i}.npz", 20, ends=np.array(ends))
        assert words in refused(source, 'fps = 10\nepisode_ends = "ends"\n' + ROWS, tmp_path, capsys)
    source = two(tmp_path / "b.npz", 20, ends=np.array([8, 15]), i=np.tile([0, 1], 10))
    assert "sort the rows by episode" in refused(source, 'fps = 10\nepisode_index = "i"\n' + ROWS, tmp_path, capsys)
    store = imported(source, 'fps = 10\nepisode_ends = "ends"\n' + ROWS, tmp_path)
    assert [m.length for m in store.episodes] == [8, 7]
    assert noted(store.root) == {"1": ["rows 15 to 19 of the file belong to no episode"]}


def test_videos_beside_the_file_of_each_episode_and_a_text_for_each(tmp_path, capsys):
    for e in range(2):
        (tmp_path / f"in/ep{e}").mkdir(parents=True)
        two(tmp_path / f"in/ep{e}/data.npz", T)
        write_video(tmp_path / f"in/ep{e}/top.mp4", levels(T)[:: 1 - 2 * e], 10)
    mapping = 'fps = 10\nepisodes = "*/data.npz"\n' + ROWS + '[cameras]\ntop = "top.mp4"\n'
    assert shown(imported(tmp_path / "in", mapping, tmp_path)) == [*range(T), *range(T)[::-1]]
    source = two(tmp_path / "a.npz", 2 * T, ends=np.array([T, 2 * T]), task=np.array(["reach", "push"]))
    (tmp_path / "texts").mkdir()
    mapping = 'fps = 10\nepisode_ends = "ends"\n' + ROWS.replace('text = "x"', 'texts = "task"')
    assert [m.text for m in imported(source, mapping, tmp_path / "texts").episodes] == ["reach", "push"]
    source = two(tmp_path / "c.npz", 3 * T, ends=np.array([T, 2 * T, 3 * T]), task=np.array(["reach", "push"]))
    assert "there must be one for all, or one for each step or episode" in refused(source, mapping, tmp_path, capsys)


def test_times_of_day_and_grey_jpegs(tmp_path):
    rows = ["t,q,a", *(f"2024-01-01 00:00:00.{i:02d}0000,{i},{i}" for i in range(0, 60, 5))]
    save(tmp_path / "a.csv", "\n".join(rows) + "\n")
    store = imported(tmp_path / "a.csv", 'timestamps = "t"\nstate = ["q"]\naction = ["a"]\ntext = "x"', tmp_path)
    assert store.layout.fps == 20
    with h5py.File(tmp_path / "grey.h5", "w") as file:
        file["q"], file["a"] = np.ones((T, 2)), np.ones((T, 2))
        jpeg = file.create_dataset("top", (T,), h5py.vlen_dtype(np.uint8))
        for t, image in enumerate(levels(T)):
            jpeg[t] = np.frombuffer(jpeg_encode(np.ascontiguousarray(image[..., 0]), level=95), np.uint8)
    (tmp_path / "grey").mkdir()
    store = imported(tmp_path / "grey.h5", "fps = 10\n" + ROWS + '[cameras]\ntop = "top"\n', tmp_path / "grey")
    assert shown(store) == list(range(T))


@pytest.mark.parametrize(
    ("groups", "pattern"),
    [
        (["2024-01-05_10-15-33", "2024-01-05_10-17-02", "2024-01-06_09-00-00"], "*-*-*_*-*-*"),
        (["ep_0_ok", "ep_1_ok"], "ep_*_ok"),
        (["monday/take_1", "monday/take_2", "tuesday/take_1"], "*/*"),
    ],
)
def test_a_suggested_pattern_names_all_groups(groups, pattern, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for e, name in enumerate(groups):
            file[f"{name}/qpos"], file[f"{name}/action"] = values(e)
    text = suggest_map(tmp_path / "a.h5")
    assert f'episodes = "{pattern}"  # {len(groups)} groups' in text
    assert len(imported(tmp_path / "a.h5", text, tmp_path)) == len(groups)

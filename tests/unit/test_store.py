"""The store: round trips, LeRobot's layout, damage, kills, full disks, the codec and the decoded cache."""

import dataclasses
import json
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wamkit.data.format import frame_cache as cache_module
from wamkit.data.format.frame_cache import FrameCache
from wamkit.data.format.snapshots import pack_snapshots, unpack_snapshots
from wamkit.data.format.store import Store, StoreError
from wamkit.data.format.video import decode_video, encode_video
from wamkit.files import exclusive
from wamkit.types import Episode, Snapshot

SIZE, FPS, CAMERAS = 32, 20.0, ("front", "wrist")
LAYOUT = {
    "cameras": CAMERAS,
    "image_shape": (3, SIZE, SIZE),
    "proprio_names": ("x", "y", "z"),
    "action_names": ("dx", "dy"),
    "fps": FPS,
    "robot_type": "test",
}
PROCESSES = multiprocessing.get_context("fork")  # a child starts in milliseconds, and only to be killed


def pictures(seed, steps, size=SIZE):
    """A saturated square that moves over wood-like grain, as a renderer would draw it: uint8 (steps, 3, size, size)."""
    rng = np.random.default_rng(seed)
    out = np.empty((steps, 3, size, size), np.uint8)
    out[:] = rng.integers(90, 130, (3, 1, size)) + np.arange(size)[:, None] // 2
    y, x = rng.integers(0, size // 4, 2)
    for step in range(steps):
        top, left = y + step % (size // 2), x + 2 * step % (size // 2)
        out[step, :, top : top + 8, left : left + 8] = np.array([200, 20, 30])[:, None, None]
    return out


def make_episode(seed, steps=9, **changes):
    rng = np.random.default_rng(seed)
    expert = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
    episode = Episode(
        task=f"task-{seed % 2}",
        text=("press the button", "open the drawer")[seed % 2],
        seed=100 + seed,
        fps=FPS,
        cameras=CAMERAS,
        images=np.stack([pictures(seed, steps), pictures(seed + 50, steps)], axis=1),
        proprio=rng.normal(size=(steps, 3)).astype(np.float32),
        action=expert + np.float32(0.1),
        action_expert=expert,
        reward=rng.uniform(size=steps).astype(np.float32),
        success=np.arange(steps) >= steps - 2,
        is_demonstration=seed % 3 != 2,
        noise=0.1 * seed,
        snapshots=tuple(Snapshot(rng.normal(size=5), {"body_pos": np.ones((4, 3))}, {"t": t}) for t in range(steps)),
    )
    return dataclasses.replace(episode, **changes)


def fill(root, count):
    """Opens or creates the store in `root` and appends what is missing up to `count` episodes."""
    store = Store.open_or_create(root, **LAYOUT)
    for seed in range(len(store), count):
        store.append(make_episode(seed, 7 + seed))
    store.finalize()
    return store


def content(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(Path(root).rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    root = tmp_path_factory.mktemp("store") / "data"
    fill(root, 3)
    return root


@pytest.fixture
def copy(filled, tmp_path):
    """A store of three episodes that the test may damage."""
    root = tmp_path / "data"
    for name, data in content(filled).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def test_what_is_appended_comes_back(filled):
    store = Store.open(filled)
    assert len(store) == 3 and store.frames == 7 + 8 + 9
    for index in range(3):
        wrote, read = make_episode(index, 7 + index), store.episode(index, snapshots=True)
        for name in ("task", "text", "seed", "fps", "cameras", "is_demonstration", "noise"):
            assert getattr(read, name) == getattr(wrote, name)
        for name in ("proprio", "action", "action_expert", "reward", "success"):
            a, b = getattr(read, name), getattr(wrote, name)
            assert a.dtype == b.dtype and np.array_equal(a, b), name
        assert read.images.shape == wrote.images.shape and psnr(read.images, wrote.images) > 38
        assert [s.attributes["t"] for s in read.snapshots] == list(range(7 + index))
        assert read.snapshots[2].physics.tobytes() == wrote.snapshots[2].physics.tobytes()
    assert [m.from_index for m in store.episodes] == [0, 7, 15] and all(m.success for m in store.episodes)
    columns = store.numeric()
    assert np.array_equal(columns["episode_index"], np.repeat([0, 1, 2], [7, 8, 9]))
    assert np.array_equal(columns["task_index"], np.repeat([0, 1, 0], [7, 8, 9]))
    assert np.array_equal(columns["index"], np.arange(24))
    assert np.array_equal(columns["timestamp"], columns["frame_index"].astype(np.float32) / np.float32(FPS))


def test_meta_files_are_what_lerobot_expects(filled):
    info = json.loads((filled / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 20 and isinstance(info["fps"], int)
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 24, 2)
    assert info["features"]["observation.images.front"]["shape"] == [SIZE, SIZE, 3]
    tasks = pq.read_table(filled / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]
    data = pq.read_table(filled / "data/chunk-000/file-001.parquet")
    assert data.schema.field("action").type == pa.list_(pa.float32(), 2)
    assert data.schema.field("next.success").type == pa.bool_()
    features = json.loads(data.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["action"]["length"] == 2 and set(features) == set(data.column_names)
    facts = pq.read_table(filled / "meta/episodes/chunk-000/file-002.parquet").to_pylist()[0]
    assert facts["videos/observation.images.wrist/file_index"] == 2 and facts["dataset_to_index"] == 24
    assert len(facts["stats/observation.images.front/mean"]) == 3


def test_statistics_are_those_of_the_values(filled):
    store, stats = Store.open(filled), json.loads((filled / "meta/stats.json").read_text())
    action = store.numeric()["action"].astype(float)
    assert np.allclose(stats["action"]["q01"], np.quantile(action, 0.01, axis=0))
    assert np.allclose(stats["action"]["std"], action.std(0)) and stats["action"]["count"] == [24]
    images = np.concatenate([store.decode(e, "wrist") for e in range(3)]).transpose(1, 0, 2, 3).reshape(3, -1) / 255
    for name, q in {"q01": 0.01, "q50": 0.5, "q99": 0.99, "min": 0, "max": 1}.items():
        assert np.allclose(np.ravel(stats["observation.images.wrist"][name]), np.quantile(images, q, axis=1))
    assert np.allclose(np.ravel(stats["observation.images.wrist"]["std"]), images.std(1))


def test_same_episodes_same_bytes(filled, tmp_path):
    store = Store.create(tmp_path / "data", **LAYOUT)
    for seed in range(3):
        episode = make_episode(seed, 7 + seed)
        encoded = {camera: encode_video(episode.images[:, v], FPS) for v, camera in enumerate(CAMERAS)}
        store.append(dataclasses.replace(episode, images=None), encoded)
    store.finalize()
    assert content(tmp_path / "data") == content(filled)


def test_several_episodes_in_one_video_whose_times_drift(copy):
    """lerobot's own files: one video for many episodes, its number unlike the data's, start times summed as floats."""
    lengths, key = (7, 8, 9), "observation.images.front"
    joined = np.concatenate([make_episode(s, n).images[:, 0] for s, n in enumerate(lengths)])
    (copy / f"videos/{key}/chunk-000/file-005.mp4").write_bytes(encode_video(joined, FPS))
    rows = []
    for path in sorted((copy / "meta/episodes/chunk-000").iterdir()):
        rows += pq.read_table(path).to_pylist()
        path.unlink()
    for row, start in zip(rows, (0, 7, 15), strict=True):
        row |= {f"videos/{key}/file_index": 5, f"videos/{key}/from_timestamp": (start + 0.4) / FPS}
    pq.write_table(pa.Table.from_pylist(rows), copy / "meta/episodes/chunk-000/file-000.parquet")
    store = Store.open(copy)
    for index, length in enumerate(lengths):
        frames = store.decode(index, "front")
        assert frames.shape == (length, 3, SIZE, SIZE) and psnr(frames, make_episode(index, length).images[:, 0]) > 38
    rows[2][f"videos/{key}/from_timestamp"] = 14.4 / FPS  # a whole frame early
    pq.write_table(pa.Table.from_pylist(rows), copy / "meta/episodes/chunk-000/file-000.parquet")
    with pytest.raises(StoreError, match="episode 2, camera front.*starts at frame 14.*end at 15"):
        Store.open(copy)


def test_codec_keeps_every_frame_in_its_place():
    frames = pictures(3, 31, 64)
    video = encode_video(frames, 80.0)
    assert video == encode_video(frames, 80.0)
    decoded = decode_video(video, 80.0, range(31), (64, 64), total=31)
    error = ((decoded[:, None].astype(np.float32) - frames[None]) ** 2).mean((2, 3, 4))
    assert (error.argmin(1) == np.arange(31)).all()
    assert (10 * np.log10(255**2 / error.diagonal())).min() > 40
    some = [1, 2, 17, 18, 30]
    assert np.array_equal(decode_video(video, 80.0, some, (64, 64)), decoded[some])
    small = decode_video(video, 80.0, [5], (64, 64), size=(32, 32))[0].astype(float)
    assert psnr(small, decoded[5].reshape(3, 32, 2, 32, 2).mean((2, 4))) > 35


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"numbers": [9]}, "frame 9 is missing"),
        ({"shape": (32, 48)}, "16x16 instead of 32x48"),
        ({"total": 8}, "9 frames instead of 8"),
    ],
)
def test_decoding_what_is_not_there(arguments, reason):
    video = encode_video(pictures(0, 9, 16), FPS)
    with pytest.raises(StoreError, match=reason):
        decode_video(video, FPS, **{"numbers": [0], "shape": (16, 16), **arguments})


def same(a, b):
    """Equal in every type and bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or a != a and b != b


def test_a_playlist_in_a_videos_place_is_not_followed(tmp_path):
    """FFmpeg would read whatever files it names."""
    (tmp_path / "other.mp4").write_bytes(encode_video(pictures(0, 4), FPS))
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(StoreError, match="cannot be decoded"):
        decode_video(tmp_path / "a.mp4", FPS, [0], (SIZE, SIZE))


def test_snapshots_come_back_bit_by_bit():
    def attributes(step):
        rng = np.random.default_rng(step)
        return {
            "generator": rng.bit_generator.state,
            "old_generator": np.random.RandomState(3).get_state(),
            "nested": {"a": [1, (2.5, None, True), {"b": ()}], 7: "seven", (1, 2): []},
            "numbers": (np.float64(0.1), np.float32(0.1), np.int64(-1), np.bool_(True), -0.0, float("nan"), 2**100),
            "arrays": [np.zeros((0, 3)), np.array(5.0), np.asfortranarray(rng.normal(size=(2, 3))), np.array([True])],
            "big_endian": np.array([1, 2], ">f4"),
            "text": np.array(["a", "bcd"]),
            "bytes": b"\x00\xff",
            "sometimes": None if step < 2 else np.arange(step),
        } | ({"only at 1": step} if step == 1 else {})

    model = {"body_pos": np.ones((3, 3)), "site_pos": np.ones((2, 3), np.float32)}
    snapshots = tuple(Snapshot(np.random.default_rng(t).normal(size=20), model, attributes(t)) for t in range(4))
    data = pack_snapshots(snapshots)
    assert data == pack_snapshots(snapshots)
    for wrote, read in zip(snapshots, unpack_snapshots(data), strict=True):
        assert same(wrote.physics, read.physics) and same(wrote.model, read.model)
        assert set(wrote.attributes) == set(read.attributes)
        assert all(same(wrote.attributes[k], read.attributes[k]) for k in wrote.attributes)
    first, second = unpack_snapshots(data)[:2]
    first.model["body_pos"][:] = 9  # a simulator may write into what it got
    assert (second.model["body_pos"] == 1).all()


def test_constant_parts_are_stored_once():
    rng, big = np.random.default_rng(0), np.random.default_rng(1).normal(size=1000)
    one, many = (
        len(pack_snapshots([Snapshot(rng.normal(size=2), {"geom": big}, {"x": big + 1})] * n)) for n in (1, 100)
    )
    assert many < one + 2000


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([object()]), np.zeros(2, "f4,i4")])
def test_snapshots_of_other_things_are_refused(value):
    with pytest.raises(StoreError, match=r"attributes/thing\[0\]"):
        pack_snapshots([Snapshot(np.zeros(2), {}, {"thing": [value]})])


def edit_json(**changes):
    def edit(root):
        path = root / "meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def edit_data(change):
    def edit(root):
        path = root / "data/chunk-000/file-001.parquet"
        pq.write_table(change(pq.read_table(path)), path)

    return edit


def poke_nan(table):
    values = np.array(table["action"].to_pylist(), np.float32)
    values[3, 1] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 2)
    return table.set_column(table.column_names.index("action"), "action", column)


def as_text(table):
    column = pa.array([str(x) for x in table["next.reward"].to_pylist()])
    return table.set_column(table.column_names.index("next.reward"), "next.reward", column)


def edit_feature(key, **changes):
    """Changes a feature of info.json; a value of None takes the field out."""

    def edit(root):
        path = root / "meta/info.json"
        info = json.loads(path.read_text())
        feature = info["features"][key] | changes
        info["features"][key] = {k: v for k, v in feature.items() if v is not None}
        path.write_text(json.dumps(info))

    return edit


def edit_facts(**changes):
    """Changes columns of episode 1 in meta/episodes; a value of None takes the column out."""

    def edit(root):
        path = root / "meta/episodes/chunk-000/file-001.parquet"
        facts = pq.read_table(path).to_pylist()[0] | changes
        pq.write_table(pa.Table.from_pylist([{k: v for k, v in facts.items() if v is not None}]), path)

    return edit


def without_feature(root):
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"].pop("action")
    path.write_text(json.dumps(info))


def cut(name, keep):
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:keep])


def flip(name, where):
    def edit(root):
        data = bytearray((root / name).read_bytes())
        data[where if where >= 0 else len(data) + where] ^= 4
        (root / name).write_bytes(data)

    return edit


def empty(root):
    for path in sorted(root.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


DATA, VIDEO = "data/chunk-000/file-001.parquet", "videos/observation.images.wrist/chunk-000/file-001.mp4"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (empty, "is empty .*wamkit collect"),
        (lambda root: (root / "meta/info.json").unlink(), "is incomplete"),
        (cut("meta/info.json", 100), "info.json cannot be read"),
        (edit_json(codebase_version="v2.1"), "codebase_version is v2.1, wamkit reads v3.0"),
        (without_feature, "feature 'action' is missing"),
        (edit_json(features=["action"]), "info.json: features is a list"),
        (edit_json(fps="x"), "info.json: fps is 'x', not a positive number"),
        (edit_json(fps=-20), "info.json: fps is -20"),
        (edit_json(total_episodes="x"), "info.json: total_episodes is 'x'"),
        (edit_json(total_frames=None), "info.json: total_frames is None"),
        (edit_json(data_path="data/{nothing}"), "info.json: data_path is 'data/{nothing}'"),
        (edit_json(video_path=None), "info.json: video_path is None"),
        (edit_feature("action", shape="junk"), "info.json: feature 'action' needs a shape"),
        (edit_feature("action", shape=[2, 1]), "info.json: feature 'action' needs a shape with one number"),
        (edit_feature("action", dtype="int64"), "info.json: feature 'action' needs a floating-point dtype"),
        (edit_feature("action", dtype="junk"), "info.json: feature 'action' needs a floating-point dtype"),
        (edit_feature("next.reward", dtype=None), "info.json: feature 'next.reward' has no dtype"),
        (edit_feature("observation.images.front", shape=[32, 32]), r"front' needs the shape \[height, width, 3\]"),
        (edit_facts(length="8"), r"file-001.parquet \(episode 1\): length: expected int, found '8'"),
        (edit_facts(tasks=[" "]), r"file-001.parquet \(episode 1\): tasks is \[' '\], .* needs an instruction"),
        (edit_facts(**{"data/file_index": "x"}), r"file-001.parquet \(episode 1\): "),
        (edit_facts(length=None), "file-001.parquet: column 'length' is missing"),
        (edit_data(as_text), r"file-001.parquet \(episode 1\): column 'next.reward': it holds string"),
        (edit_json(total_episodes=4), "4 episodes are promised but meta/episodes has 3"),
        (edit_json(total_frames=25), "25 frames are promised but 3 episodes have 24"),
        (lambda root: (root / "meta/episodes/chunk-000/file-001.parquet").unlink(), "episode 1 is missing"),
        (lambda root: (root / "meta/tasks.parquet").unlink(), "tasks.parquet cannot be read"),
        (lambda root: (root / DATA).unlink(), r"file-001.parquet \(episode 1\) is missing"),
        (cut(DATA, 900), r"file-001.parquet \(episode 1\) cannot be read"),
        (flip(DATA, 60), r"file-001.parquet \(episode 1\) cannot be read"),
        (edit_data(poke_nan), r"file-001.parquet \(episode 1, step 3\): action is NaN"),
        (edit_data(lambda t: t.drop_columns(["next.reward"])), r"episode 1\): columns \['next.reward'\] are missing"),
        (edit_data(lambda t: t.slice(0, 5)), r"episode 1\): 5 frames instead of 8"),
        (edit_data(lambda t: t.take(list(range(7, -1, -1)))), "is numbered differently"),
        (lambda root: (root / VIDEO).unlink(), r"wrist/chunk-000/file-001.mp4 \(episode 1\) is missing"),
    ],
)
def test_damage_is_found_when_opened(copy, damage, reason):
    damage(copy)
    with pytest.raises(StoreError, match=reason):
        Store.open(copy)


@pytest.mark.parametrize("damage", [cut(VIDEO, 700), cut(VIDEO, -30), flip(VIDEO, 200), flip(VIDEO, -5)])
def test_a_damaged_video_is_found_when_decoded(copy, damage):
    damage(copy)
    store = Store.open(copy)
    assert len(store.decode(0, "wrist")) == 7
    with pytest.raises(StoreError, match=r"file-001.mp4 \(episode 1, camera wrist\): .*changed"):
        store.decode(1, "wrist")
    with pytest.raises(StoreError, match="episode 1, camera wrist"):
        FrameCache.build_or_open(store)
    assert not list((copy / ".cache").iterdir())


def test_a_video_of_another_size_is_found_without_checksum(copy):
    (copy / VIDEO).write_bytes(encode_video(pictures(0, 8, 16), FPS))
    path = copy / "meta/episodes/chunk-000/file-001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([n for n in table.column_names if "sha256" in n]), path)
    with pytest.raises(StoreError, match=r"episode 1, camera wrist\): its frames are 16x16 instead of 32x32"):
        Store.open(copy).decode(1, "wrist")
    (copy / VIDEO).write_bytes(encode_video(pictures(0, 8), FPS)[:-400])
    with pytest.raises(StoreError, match="episode 1, camera wrist"):
        Store.open(copy).decode(1, "wrist")


def test_a_video_of_another_rate_or_length_is_found_without_checksum(copy):
    edit_facts(**{f"wamkit/sha256/observation.images.{camera}": None for camera in CAMERAS})(copy)
    (copy / VIDEO).write_bytes(encode_video(pictures(0, 13), FPS))
    with pytest.raises(StoreError, match=r"episode 1, camera wrist\): it has 13 frames instead of 8"):
        Store.open(copy).decode(1, "wrist")
    edit_json(fps=10)(copy)
    with pytest.raises(StoreError, match=r"episode 1, camera front\): it has 20 frames a second, but .* says fps 10"):
        Store.open(copy).decode(1, "front")


def test_vectors_are_read_as_float32(copy):
    for episode in range(3):
        path = copy / f"data/chunk-000/file-00{episode}.parquet"
        table = pq.read_table(path)
        whole = pa.array([[1, 2]] * len(table), pa.list_(pa.int64(), 2))
        pq.write_table(table.set_column(table.column_names.index("action"), "action", whole), path)
    edit_feature("observation.state", dtype="float64")(copy)
    columns = Store.open(copy).numeric()
    assert columns["action"].dtype == columns["observation.state"].dtype == np.float32
    assert (columns["action"] == [1, 2]).all()


def test_damaged_or_missing_snapshots(copy):
    name = "snapshots/chunk-000/episode-000001.npz"
    flip(name, 200)(copy)
    with pytest.raises(StoreError, match=r"episode-000001.npz \(episode 1\): the snapshots are damaged"):
        Store.open(copy).snapshots(1)
    (copy / name).unlink()
    with pytest.raises(StoreError, match="episode 1.*is missing"):
        Store.open(copy)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"action": np.full((9, 2), np.nan, np.float32)}, "seed 101: action is NaN or infinite at step 0"),
        ({"proprio": np.zeros((9, 4), np.float32)}, r"proprio is \(9, 4\), the store has \(9, 3\)"),
        ({"images": np.zeros((9, 2, 3, 16, 16), np.uint8)}, "images is"),
        ({"images": None}, "images is None"),
        ({"text": " "}, "instruction is empty"),
        ({"cameras": ("front", "top")}, "cameras"),
        ({"fps": 30.0}, "30.0 steps a second"),
        ({"snapshots": ()}, "0 snapshots for 9 steps"),
        ({"snapshots": (Snapshot(np.zeros(2), {}, {"thing": object()}),) * 9}, "attributes/thing"),
    ],
)
def test_append_refuses_what_does_not_fit(copy, changes, reason):
    before, store = content(copy), Store.open(copy)
    with pytest.raises(StoreError, match=reason):
        store.append(make_episode(1, **changes))
    short = {camera: encode_video(pictures(1, 8), FPS) for camera in CAMERAS}
    with pytest.raises(StoreError, match="camera front.*8 frames instead of 9"):
        store.append(make_episode(1), short)
    assert content(copy) == before and len(store) == 3


def test_create_and_layout_errors(filled, tmp_path):
    with pytest.raises(StoreError, match="not empty"):
        Store.create(filled, **LAYOUT)
    with pytest.raises(StoreError, match="recorded with fps = 20.0, not 30.0"):
        Store.open_or_create(filled, **LAYOUT | {"fps": 30.0})
    with pytest.raises(StoreError, match="image_shape"):
        Store.create(tmp_path / "new", **LAYOUT | {"image_shape": (SIZE, SIZE, 3)})
    with pytest.raises(StoreError, match="no episode 3"):
        Store.open(filled).decode(3, "front")
    with pytest.raises(StoreError, match="no camera 'top'"):
        Store.open(filled).decode(0, "top")
    with pytest.raises(StoreError, match="no such folder"):
        Store.open(tmp_path / "nothing")
    assert not (tmp_path / "new").exists()


def run(function, *arguments):
    process = PROCESSES.Process(target=function, args=arguments)
    process.start()
    return process


def fill_until_rename(root, count, renames):
    """Fills, and dies as if by `kill -9` just before the given rename."""
    rename, left = os.replace, [renames]

    def dying(*arguments):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*arguments)

    os.replace, os.fsync = dying, id  # a kill, unlike a power cut, loses nothing that was written
    fill(root, count)


def test_a_kill_at_every_rename_loses_and_doubles_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", id)
    fill(tmp_path / "whole", 2)
    whole, renames = content(tmp_path / "whole"), 0
    while True:
        renames += 1
        root = tmp_path / f"killed-{renames}"
        process = run(fill_until_rename, root, 2, renames)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        if (root / "meta/info.json").exists():
            stored = len(list(root.glob("meta/episodes/*/*.parquet")))
            assert len(Store.open(root)) == stored == sum(renames > last for last in (7, 12))
        fill(root, 2)
        assert content(root) == whole
    assert renames == 2 + 2 * 5 + 3 + 1  # create, two episodes of five files, finalize


def test_kills_at_random_moments(tmp_path):
    fill(tmp_path / "whole", 5)
    rng, kills, root = np.random.default_rng(0), 0, tmp_path / "killed"
    while kills < 10:
        process = run(fill, root, 5)
        process.join(0.02 + 0.1 * rng.uniform())
        process.kill()
        process.join()
        kills += 1
    fill(root, 5)
    assert content(root) == content(tmp_path / "whole")


def append_with_little_room(root, limit, answer):
    store = Store.open(root)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        store.append(make_episode(3, 10))
    except StoreError as error:
        answer.put((str(error), len(store)))


def test_a_full_disk_leaves_the_store_as_it_was(copy, tmp_path):
    fill(tmp_path / "whole", 4)
    names = [name for name in content(tmp_path / "whole") if "003" in name]
    before = content(copy)
    assert len(names) == 5
    for name in names:
        answer = PROCESSES.Queue()
        run(append_with_little_room, copy, (tmp_path / "whole" / name).stat().st_size - 1, answer).join()
        message, episodes = answer.get(timeout=5)
        assert "could not write" in message and "free some space" in message and episodes == 3
        assert content(copy) == before
    fill(copy, 4)
    assert content(copy) == content(tmp_path / "whole")


def test_two_writers(copy):
    one, two = Store.open(copy), Store.open(copy)
    with exclusive(copy), pytest.raises(StoreError, match="another process is writing"):
        one.append(make_episode(3))
    one.append(make_episode(3))
    with pytest.raises(StoreError, match="another process has stored episode 3"):
        two.append(make_episode(4))
    assert len(Store.open(copy)) == 4


def test_totals_are_mended_after_a_kill(copy):
    Store.open(copy).append(make_episode(3, text="a new instruction"))
    assert json.loads((copy / "meta/info.json").read_text())["total_episodes"] == 3
    store = Store.open(copy)
    assert json.loads((copy / "meta/info.json").read_text())["total_episodes"] == 4
    assert store.numeric()["task_index"][-1] == 2
    assert pq.read_table(copy / "meta/tasks.parquet").num_rows == 3


def test_cache_holds_what_is_decoded_and_is_built_once(copy, monkeypatch):
    store = Store.open(copy)
    cache = FrameCache.build_or_open(store)
    expected = np.concatenate([store.episode(e).images for e in range(3)])
    assert np.array_equal(cache.frames, expected) and len(cache) == 24
    index = np.array([[3, 20], [0, 3]])
    assert cache[index].shape == (2, 2, 2, 3, SIZE, SIZE) and np.array_equal(cache[index], expected[index])
    assert not cache.frames.flags.writeable
    monkeypatch.setattr(cache_module, "_build", lambda *_: pytest.fail("built twice"))
    assert FrameCache.build_or_open(Store.open(copy)).path == cache.path


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data.replace(b'"format"', b'"farmot"'),
        lambda data: data[:9000] + bytes([data[9000] ^ 4]) + data[9001:],
    ],
)
def test_a_damaged_cache_is_built_again(copy, damage):
    store = Store.open(copy)
    path = FrameCache.build_or_open(store).path
    good = path.read_bytes()
    path.write_bytes(damage(good))
    assert FrameCache.build_or_open(store).path == path and path.read_bytes() == good


def test_changed_recordings_get_a_new_cache(copy):
    store = Store.open(copy)
    small = FrameCache.build_or_open(store, size=(16, 16))
    assert small.frames.shape == (24, 2, 3, 16, 16)
    old = FrameCache.build_or_open(store)
    store.append(make_episode(3))
    new = FrameCache.build_or_open(store)
    assert len(new) == 33 and np.array_equal(new.frames[:24], old.frames)
    assert small.path.exists() and new.path.exists() and not old.path.exists()


def build(root):
    FrameCache.build_or_open(Store.open(root))


def test_cache_survives_kills_and_two_builders(copy):
    for delay in (0.01, 0.03, 0.05):
        process = run(build, copy)
        time.sleep(delay)
        process.kill()
        process.join()
    builders = [run(build, copy) for _ in range(2)]
    for process in builders:
        process.join()
        assert process.exitcode == 0
    store = Store.open(copy)
    assert np.array_equal(FrameCache.build_or_open(store).frames[7:15, 1], store.decode(1, "wrist"))
    assert [p.suffix for p in (copy / ".cache").iterdir()] == [".frames"]


def test_an_empty_store_has_no_frames(tmp_path):
    store = Store.create(tmp_path / "data", **LAYOUT)
    assert Store.open(tmp_path / "data").numeric()["action"].shape == (0, 2)
    with pytest.raises(StoreError, match="has no images"):
        FrameCache.build_or_open(store)

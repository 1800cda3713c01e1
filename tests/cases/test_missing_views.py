"""A camera that is missing in some episodes: one mask from the files to the losses and to the answers."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import struct
import zipfile
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot_folders import Recordings, square_frames, write_v3, write_v21, write_video
from recordings import LAYOUT, make_episode

from wamkit.cli.main import main
from wamkit.data.embodiment import Embodiment
from wamkit.data.format.frame_cache import FrameCache
from wamkit.data.format.store import Store, StoreError
from wamkit.data.importers import SourceError
from wamkit.data.importers.run import Import, import_data
from wamkit.data.importers.tfrecord import crc32c, masked
from wamkit.data.loading.augment import Augment, augmented
from wamkit.data.loading.dataset import open_frames, spec_of
from wamkit.data.loading.lazy_frames import VideoFrames
from wamkit.data.loading.windows import Windows
from wamkit.data.validate import validate
from wamkit.eval.metrics.image import fidelity
from wamkit.eval.queries import answerable, query_windows, whole_windows, window_seeds
from wamkit.eval.suites.clip_distribution import clip_set
from wamkit.eval.suites.open_loop import imagine
from wamkit.eval.suites.recording import query_recording
from wamkit.inference.model import load
from wamkit.types import Observation, ObservationError, Query
from wamkit.viz.dataset_browser import Site

WRIST = "observation.images.wrist"


def lacking(seed: int, *absent: str):
    episode = make_episode(seed, absent=absent)
    seen = [c not in absent for c in episode.cameras]
    return dataclasses.replace(episode, images=np.where(np.array(seen)[:, None, None, None], episode.images, 0))


@pytest.fixture
def store(tmp_path):
    store = Store.create(tmp_path / "data", **LAYOUT, optional=("wrist",))
    for episode in (make_episode(0), lacking(1, "wrist"), make_episode(2)):
        store.append(episode)
    store.finalize()
    return store


def test_a_store_knows_which_views_an_episode_lacks(store):
    opened = Store.open(store.root)
    assert [m.absent for m in opened.episodes] == [(), ("wrist",), ()] and opened.layout.optional == ("wrist",)
    back = opened.episode(1)
    assert back.absent == ("wrist",) and not back.images[:, 1].any() and back.images[:, 0].any()
    expected = np.concatenate([opened.episode(e).images for e in range(3)])
    assert np.array_equal(FrameCache.build_or_open(opened).frames, expected)
    assert np.array_equal(VideoFrames(opened)[np.arange(len(expected))], expected)
    assert "camera wrist saw nothing of 1 of 3 episodes" in [f.message for f in validate(store.root, progress=False)]
    files = sorted((store.root / "videos" / WRIST / "chunk-000").iterdir())
    with av.open(str(files[1])) as video:  # other programs see black
        assert max(f.to_ndarray(format="rgb24").max() for f in video.decode(video=0)) == 0
    facts = [pq.read_table(p) for p in sorted(store.root.glob("meta/episodes/*/*.parquet"))]
    assert [t["wamkit/absent"].to_pylist() for t in facts] == [[[]], [["wrist"]], [[]]]
    assert pa.concat_tables(facts).num_rows == 3  # of one schema, as lerobot reads them


def test_an_unexpected_gap_is_refused_and_the_store_stays(tmp_path, store):
    plain = Store.create(tmp_path / "plain", **LAYOUT)
    with pytest.raises(StoreError, match="it lacks camera wrist, which the store does not know as optional"):
        plain.append(lacking(1, "wrist"))
    with pytest.raises(StoreError, match="it lacks camera front"):
        store.append(lacking(3, "front", "wrist"))
    plain.append(make_episode(0))
    (facts,) = plain.root.glob("meta/episodes/*/*.parquet")
    assert len(store) == 3 and "wamkit/absent" not in pq.read_schema(facts).names


def test_windows_carry_the_mask_and_augmentation_keeps_absent_views_black(store):
    frames, _ = open_frames(store)
    windows = frames.windows(spec_of(store, 4, (2, 4)), seed=0, batch_size=len(frames))
    batch = windows.gather(np.arange(len(frames)))
    assert torch.equal(batch.view_valid[:, 0], torch.ones(len(frames), dtype=torch.bool))
    assert batch.view_valid[:, 1].tolist() == (frames.episode != 1).tolist()
    for seed in range(5):
        out = augmented(batch, Augment(2, 0.5, 0.9), np.random.default_rng(seed))
        assert out.view_valid.any(1).all() and not (out.view_valid & ~batch.view_valid).any()
        for images in (out.obs, out.future.transpose(1, 2).flatten(2)):
            assert not images[~out.view_valid].any()
    whole = dataclasses.replace(frames, has_view=None)
    assert whole.windows(windows.spec, seed=0, batch_size=4).gather(np.arange(4)).view_valid is None
    robot = Embodiment("r", "", (1, -1, 0), (), (), 0, 0)
    assert dataclasses.replace(frames, embodiment=robot).views_seen().tolist() == [
        [True, False, True],
        [False, False, True],
        [True, False, True],
    ]


def two_cameras(root, missing: int, version: str):
    """A LeRobotDataset of two cameras, of which the wrist has no video of episode `missing`."""
    write = {"v2.1": write_v21, "v3.0": write_v3}[version]
    data = Recordings(lengths=(12, 12, 12), fps=10, height=32, width=32)
    image = {"dtype": "video", "shape": [32, 32, 3], "names": ["height", "width", "channel"]}
    write(root, dataclasses.replace(data, info={"features": data.features("channel") | {WRIST: image}}))
    there = [e for e in range(3) if e != missing]
    if version == "v2.1":
        for e in there:
            path = root / f"videos/chunk-000/{WRIST}/episode_{e:06d}.mp4"
            write_video(path, square_frames(12, 32, 32, e + 5), 10)
        return root
    frames = np.concatenate([square_frames(12, 32, 32, e + 5) for e in there])
    write_video(root / f"videos/{WRIST}/chunk-000/file-000.mp4", frames, 10, g="2", bf="0")
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    for name, kind in (("chunk_index", pa.int64()), ("file_index", pa.int64()), ("from_timestamp", pa.float64())):
        column = [None if e == missing else there.index(e) * 1.2 if name == "from_timestamp" else 0 for e in range(3)]
        table = table.append_column(f"videos/{WRIST}/{name}", pa.array(column, kind))
    pq.write_table(table, path)
    return root


def test_v3_whose_index_leaves_a_camera_out_is_read(tmp_path):
    store = Store.open(two_cameras(tmp_path / "data", 1, "v3.0"))
    assert [m.absent for m in store.episodes] == [(), ("wrist",), ()]
    assert not store.decode(1, "wrist").any() and store.episode(1).absent == ("wrist",)
    frames, _ = open_frames(store)
    assert frames.has_view.tolist() == [[True, True], [True, False], [True, True]]
    square = store.decode(2, "wrist")[3].astype(int) - square_frames(12, 32, 32, 7)[3].transpose(2, 0, 1)
    assert np.abs(square).mean() < 12
    assert Site(store).respond("/frames/1/wrist/0").status == 200 and main(["describe", str(store.root)]) == 0
    found = [
        f.message for f in validate(store.root, progress=False) if f.level == "error" or "saw nothing" in f.message
    ]
    assert found == ["camera wrist saw nothing of 1 of 3 episodes"]
    store.finalize()


def test_a_lost_video_is_refused_and_imported_with_a_mask_that_reaches_the_model(tmp_path, capsys):
    source, out, run = two_cameras(tmp_path / "source", 1, "v2.1"), tmp_path / "data", tmp_path / "run"
    command = ["import", "lerobot2", str(source), "--out", str(out)]
    assert main(command) != 0
    assert "(episode 000001): it is missing; fetch it again, or take such" in (said := capsys.readouterr().err)
    assert "--missing-views mask" in said and "Traceback" not in said
    command[-1] = str(out := tmp_path / "masked")
    assert main([*command, "--missing-views", "mask"]) == 0
    assert [m.absent for m in Store.open(out).episodes] == [(), ("wrist",), ()]
    train = ["--train.steps", "3", "--train.batch-size", "4", "--model.width", "32", "--model.depth", "1"]
    train += ["--window.chunk", "4", "--window.frame-offsets", "2", "4", "--model.heads", "2"]
    assert main(["train", "--data", str(out), "--out", str(run), *train]) == 0
    model = load(run)
    assert model.optional_views == ("wrist",)
    images = np.full((2, 3, 32, 32), 90, np.uint8)
    obs = Observation(images, np.zeros(4, np.float32), "push")
    views = list(model.spec.cameras)
    alone = dataclasses.replace(obs, view_valid=np.array([c != "wrist" for c in views]))
    other = dataclasses.replace(alone, images=np.where(alone.view_valid[:, None, None, None], images, np.uint8(7)))
    a, b = model.sample(alone), model.sample(other)
    assert np.array_equal(a.actions, b.actions) and not np.array_equal(a.actions, model.sample(obs).actions)
    future = np.moveaxis(a.future, -4, 0)
    assert not future[views.index("wrist")].any() and future[views.index("top")].any()
    with pytest.raises(ObservationError, match="there is no image of top, which all training data had"):
        model.sample(dataclasses.replace(obs, view_valid=np.array([c == "wrist" for c in views])))
    with pytest.raises(ObservationError, match="view_valid: expected bool"):
        model.sample(dataclasses.replace(obs, view_valid=np.zeros(2, bool)))


def without(source: Path, pairs: dict[str, str]) -> None:
    """Removes members of HDF5 files: path of the file -> member."""
    h5py = pytest.importorskip("h5py")
    for file, member in pairs.items():
        with h5py.File(source / file, "r+") as content:
            del content[member]


def aloha(source):
    without(source, {"episode_0.hdf5": "observations/images/cam_left_wrist"})
    return source, "0", "cam_left_wrist"


def robomimic(source):
    without(source, {"robomimic.hdf5": "data/demo_0/obs/robot0_eye_in_hand_image"})
    return source / "robomimic.hdf5", "0", "robot0_eye_in_hand"


def libero(source):
    without(source, {"libero_demo.hdf5": "data/demo_0/obs/eye_in_hand_rgb"})
    return source / "libero_demo.hdf5", "0", "eye_in_hand"


def libero_of_empty_arrays(source):
    without(source, {"libero_demo.hdf5": "data/demo_1/obs/eye_in_hand_rgb"})
    with pytest.importorskip("h5py").File(source / "libero_demo.hdf5", "r+") as file:
        file["data/demo_1/obs/eye_in_hand_rgb"] = np.zeros((0, 32, 32, 3), np.uint8)
    return source / "libero_demo.hdf5", "1", "eye_in_hand"


def maniskill(source):
    without(source, {"maniskill.h5": "traj_0/obs/sensor_data/hand_camera"})
    return source / "maniskill.h5", "0", "hand_camera"


def calvin(source):
    for step in range(3, 11):
        path = source / f"episode_{step:07d}.npz"
        with np.load(path) as arrays:
            rest = {k: arrays[k] for k in arrays if k != "rgb_gripper"}
        np.savez_compressed(path, **rest)
    return source, "0", "rgb_gripper"


def rlds_of_empty_texts(source):
    return rlds(source, b"")


def rlds(source, empty=None):
    """The first record without its wrist images: no such feature, or an empty text in place of each image."""
    folder = source / "tiny/1.0.0"
    path = min(folder.glob("*.tfrecord-*"))
    content, key, out, at = path.read_bytes(), b"steps/observation/wrist_image", b"", 0
    while at < len(content):
        (length,) = struct.unpack("<Q", content[at : at + 8])
        message = content[at + 12 : at + 12 + length]
        if not at:
            features = []
            for number, entry in fields(fields(message)[0][1]):
                if (name := fields(entry)[0][1]) == key and empty is None:
                    continue
                if name == key:
                    steps = len(fields(fields(fields(entry)[1][1])[0][1]))
                    images = packed(1, b"".join(packed(1, empty) for _ in range(steps)))
                    entry = packed(1, key) + packed(2, images)
                features.append(packed(number, entry))
            message = packed(1, b"".join(features))
        head = struct.pack("<Q", len(message))
        sums = (struct.pack("<I", masked(crc32c(x))) for x in (head, message))
        out += head + next(sums) + message + next(sums)
        at += 16 + length
    path.write_bytes(out)
    return folder, "0", "wrist_image"


def packed(number: int, content: bytes) -> bytes:
    """A protobuf field of bytes."""
    size, out = len(content), bytearray([number << 3 | 2])
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size]) + content


def fields(message: bytes) -> list[tuple[int, bytes]]:
    """The protobuf fields of bytes in a message: number and content."""
    at, found = 0, []
    while at < len(message):
        number, size, shift = message[at] >> 3, 0, 0
        while True:
            at += 1
            size |= (message[at] & 127) << shift
            shift += 7
            if message[at] < 128:
                break
        found.append((number, message[at + 1 : at + 1 + size]))
        at += 1 + size
    return found


def umi(source):
    """A second hand that the second demonstration has no images of: its chunks are not there."""
    path = source / "session.zarr.zip"
    with zipfile.ZipFile(path) as old:
        members = {m: old.read(m) for m in old.namelist()}
    second = {m.replace("robot0", "robot1").replace("camera0", "camera1"): x for m, x in members.items()}
    chunk = re.compile(r"data/camera1_rgb/(\d+)\.")
    with zipfile.ZipFile(path, "w") as new:
        for member, content in (members | second).items():
            if not (m := chunk.match(member)) or int(m[1]) < 9:
                new.writestr(member, content)
    return path, "1", "camera1"


def lerobot2(source):
    """Images in a table, of which the first episode has none."""
    path = source / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    place, column = table.column_names.index(WRIST), table[WRIST]
    nothing = pa.array([None] * len(column), column.type)
    pq.write_table(table.set_column(place, table.schema.field(WRIST), nothing), path)
    return source, "0", "wrist"


SOURCES = {
    "hdf5": (aloha, robomimic, libero, libero_of_empty_arrays, maniskill),
    "calvin": (calvin,),
    "rlds": (rlds, rlds_of_empty_texts),
    "umi": (umi,),
    "lerobot2": (lerobot2,),
}
MAKERS = [(folder, make) for folder, makers in SOURCES.items() for make in makers]


@pytest.mark.parametrize(("folder", "make"), MAKERS, ids=[make.__name__ for _, make in MAKERS])
def test_every_importer_refuses_a_missing_camera_or_masks_it(folder, make, tmp_path, capsys):
    files = Path(__file__).parents[1] / "importers/data"
    source, episode, camera = make(Path(shutil.copytree(files / folder, tmp_path / "source")))
    name = make.__name__.partition("_of_")[0]
    command = ["import", name, str(source), "--out", str(out := tmp_path / "data")]
    command += ["--options.text", "push"] if name in ("aloha", "umi") else []
    assert main(command) != 0
    said = capsys.readouterr().err
    assert "Traceback" not in said and "take such episodes without a view by --missing-views mask" in said, said
    assert camera in said.splitlines()[-1] and said.splitlines()[-1].startswith("wamkit import: "), said
    out = tmp_path / "masked"
    command[4] = str(out)
    assert main([*command, "--missing-views", "mask"]) == 0, capsys.readouterr().err
    store = Store.open(out)
    assert {m.index: m.absent for m in store.episodes if m.absent} == {int(episode): (camera,)}
    other = next(c for c in store.cameras if c != camera)
    assert not store.decode(int(episode), camera).any() and store.decode(int(episode), other).any()
    assert any(store.decode(e, camera).any() for e in range(len(store)) if e != int(episode))
    assert [f.message for f in validate(out, progress=False) if "saw nothing of" in f.message]


def test_a_camera_that_is_there_at_some_steps_alone_is_refused(tmp_path):
    source = Path(shutil.copytree(Path(__file__).parents[1] / "importers/data/calvin", tmp_path / "source"))
    path = source / "episode_0000005.npz"
    with np.load(path) as arrays:
        rest = {k: arrays[k] for k in arrays if k != "rgb_gripper"}
    np.savez_compressed(path, **rest)
    with pytest.raises(SourceError, match=r"episode 3-10\): rgb_gripper is there at some steps of the episode alone"):
        import_data(Import(format="calvin", source=source, out=tmp_path / "out", missing_views="mask"))


def same(a, b, among=slice(None)):
    """True if two `Fidelity` have equal figures, of some windows of the first."""
    names = (f.name for f in dataclasses.fields(a) if f.name not in ("offsets", "pixels", "seen"))
    return all(np.allclose(getattr(a, k)[among], getattr(b, k), equal_nan=True) for k in names)


def test_figures_of_imagined_frames_are_those_of_the_views_that_were_seen(store):
    """Whatever is imagined for an absent view, as by an autoencoder that does not know: noise counts nowhere."""
    frames, _ = open_frames(store)
    batch = frames.windows(spec_of(store, 4, (2, 4)), seed=0, batch_size=1).gather(np.flatnonzero(frames.episode == 1))
    wrong = (batch.future.int() + 20).clamp(max=255).to(torch.uint8)
    wrong[:, :, 1] = torch.randint(256, wrong[:, :, 1].shape, generator=torch.Generator().manual_seed(0))
    both = fidelity(batch.obs, batch.future, wrong, (2, 4), batch.frame_valid, view_valid=batch.view_valid)
    front = fidelity(batch.obs[:, 0], batch.future[:, :, 0], wrong[:, :, 0], (2, 4), batch.frame_valid)
    assert same(both, front) and front.moving_count.any() and front.edges.any()
    scores = [x.score(2, np.zeros(len(batch), int), seed=0) for x in (both, front)]
    assert scores[0] == scores[1]


def test_evaluation_counts_the_views_that_an_episode_has(store, tmp_path):
    """Imagined futures, sets of clips and videos of a model on an episode without its wrist camera."""
    train = ["--train.steps", "1", "--train.batch-size", "4", "--model.width", "32", "--model.depth", "1"]
    train += ["--window.chunk", "4", "--window.frame-offsets", "2", "4", "--model.heads", "2"]
    assert main(["train", "--data", str(store.root), "--out", str(tmp_path / "run"), *train]) == 0
    model = load(tmp_path / "run")
    frames, _ = open_frames(store)
    alone = dataclasses.replace(frames, used=np.array([False, True, False]))
    found = imagine(model, alone, stride=2, progress=False)
    starts = whole_windows(alone, model.spec, 2)
    batch = Windows(alone, model.spec, seed=0, batch_size=1).gather(starts)
    for query in ("video", "forward"):
        guess = torch.from_numpy(query_windows(model, batch, Query(query), window_seeds(starts)).future)
        front = (batch.obs[:, 0], batch.future[:, :, 0], guess[:, :, 0], (2, 4), batch.frame_valid)
        assert same(found.fidelity[query], fidelity(*front))
    ceiling = model.reconstruct(batch)
    front = (batch.obs[:, 0], batch.future[:, :, 0], ceiling[:, :, 0], (2, 4), batch.frame_valid)
    assert same(found.fidelity["ceiling"], fidelity(*front))
    clips = clip_set(model, dataclasses.replace(alone, is_demonstration=np.ones(3, bool)))
    assert clips.truth.shape[:3] == (len(clips.episode), 2, 1) and set(clips.episode) == {1} and clips.truth.any()
    every = clip_set(model, dataclasses.replace(frames, is_demonstration=np.ones(3, bool)))
    assert every.truth.shape[2] == 2 and set(every.episode) == {0, 2}
    assert query_recording(model, frames, 1, Query.JOINT).views == (0,)
    assert query_recording(model, frames, 0, Query.JOINT).views == (0, 1)


def test_cameras_that_a_robot_has_and_its_model_does_not_see(store):
    frames, _ = open_frames(store)
    batch = frames.windows(spec_of(store, 4, (2, 4)), seed=0, batch_size=1).gather(np.array([0, 20]))
    wrist = answerable(batch, Embodiment("r", "", (-1, 1), (), (), 0, 0))
    assert wrist.view_valid.tolist() == [[False, True]] * 2 and not wrist.obs[:, 0].any()
    assert torch.equal(wrist.future[:, :, 1], batch.future[:, :, 1])
    front = answerable(batch, Embodiment("r", "", (0,), (), (), 0, 0))
    assert front.view_valid is None and torch.equal(front.obs, batch.obs[:, :1])
    assert answerable(batch, None) is batch


def test_a_depth_camera_that_saw_nothing_of_an_episode(tmp_path):
    store = Store.create(tmp_path / "data", **LAYOUT, depth=(("far", 8, 8),))
    with pytest.raises(StoreError, match=r"the store's \['far'\]; where a depth camera measured nothing, give zeros"):
        store.append(make_episode(0))
    root, key = two_cameras(tmp_path / "foreign", 1, "v3.0"), "observation.images.depth"
    info = json.loads((root / "meta/info.json").read_text())
    depth = {"is_depth_map": True, "depth_unit": "mm"}
    info["features"][key] = info["features"][WRIST] | {"shape": [32, 32, 1], "info": depth}
    (root / "meta/info.json").write_text(json.dumps(info))
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    for name in ("chunk_index", "file_index", "from_timestamp"):
        table = table.append_column(f"videos/{key}/{name}", table[f"videos/{WRIST}/{name}"])
    pq.write_table(table, path)
    shutil.copytree(root / f"videos/{WRIST}", root / f"videos/{key}")
    opened = Store.open(root)
    assert opened.episodes[1].absent == ("wrist", "depth") and opened.depth_cameras == ("depth",)
    assert opened.decode_depth(1, "depth").shape == (12, 32, 32) and not opened.decode_depth(1, "depth").any()

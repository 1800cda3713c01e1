"""Usable data that had no way in: read-only folders, hub downloads, grey cameras, one arm, spare frames, odd paths."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_folders import Recordings, square_frames, write_v3, write_v21, write_video

from wamkit.cli.main import main
from wamkit.data.format.frame_cache import FrameCache
from wamkit.data.format.store import Store
from wamkit.data.loading.mixture_config import MixtureConfig, parse_sources
from wamkit.data.validate import validate
from wamkit.files import StoreError, WriteError, cache_folder

SMALL = Recordings(lengths=(12, 13), height=32, width=32)


@pytest.fixture
def read_only(monkeypatch):
    """Makes a folder read-only in the eyes of everyone, root too."""

    def lock(*folders: Path):
        real = os.access
        shut = lambda path: any(Path(path).is_relative_to(f) for f in folders)  # noqa: E731
        monkeypatch.setattr(os, "access", lambda p, mode: real(p, mode) and not (mode & os.W_OK and shut(p)))
        refuse = lambda p, *a, **k: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))  # noqa: E731
        mkdir = Path.mkdir
        monkeypatch.setattr(Path, "mkdir", lambda p, *a, **k: (refuse if shut(p) else mkdir)(p, *a, **k))

    return lock


def test_frames_of_read_only_data_are_cached_in_the_users_cache(tmp_path, monkeypatch, read_only):
    store = Store.open(write_v3(tmp_path / "data", SMALL))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    read_only(store.root)
    before = sorted(p for p in store.root.rglob("*"))
    cache = FrameCache.build_or_open(store)
    assert cache.path.is_relative_to(tmp_path / "user/wamkit") and sorted(p for p in store.root.rglob("*")) == before
    assert np.array_equal(cache.frames[12:, 0], store.decode(1, "top"))
    monkeypatch.setattr("wamkit.data.format.frame_cache._build", lambda *_: pytest.fail("built twice"))
    assert FrameCache.build_or_open(Store.open(store.root)).path == cache.path
    shutil.copytree(cache.path.parent, store.root / ".cache")
    assert FrameCache.build_or_open(store).path.parent == store.root / ".cache"  # somebody who could write made it


def test_where_nothing_can_be_written_the_message_names_both_ways(tmp_path, monkeypatch, read_only):
    store = Store.open(write_v3(tmp_path / "data", SMALL))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    read_only(tmp_path)
    with pytest.raises(WriteError, match="--cache-dir.*--cache-gb 0"):
        FrameCache.build_or_open(store)


def test_the_place_of_the_users_cache(tmp_path, monkeypatch, read_only):
    read_only(tmp_path)
    for cache, home, place in (
        (str(tmp_path / "user"), "", tmp_path / "user/wamkit"),
        ("relative", str(tmp_path / "home"), tmp_path / "home/.cache/wamkit"),
        ("", "~", Path(tempfile.gettempdir(), "wamkit")),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        monkeypatch.setenv("HOME", home)
        assert cache_folder(tmp_path).parent == place
    assert cache_folder(tmp_path) == cache_folder(tmp_path / "x/..") != cache_folder(tmp_path.parent)


def test_the_folder_that_a_hub_download_leaves(tmp_path, capsys):
    for version, write in (("v3", write_v3), ("v21", write_v21)):
        real, link = write(tmp_path / version / "real", SMALL), tmp_path / version / "snapshots/abc"
        for number, file in enumerate(sorted(p for p in real.rglob("*") if p.is_file())):
            blob, place = tmp_path / version / "blobs" / f"{number:040x}", link / file.relative_to(real)
            for folder in (blob.parent, place.parent):
                folder.mkdir(parents=True, exist_ok=True)
            shutil.move(file, blob)
            place.symlink_to(os.path.relpath(blob, place.parent))
    link = tmp_path / "v3/snapshots/abc"
    assert main(["validate", str(link), "--out", str(tmp_path / "page.html")]) == 0
    assert FrameCache.build_or_open(Store.open(link)).frames.shape[0] == 25
    assert main(["import", "lerobot2", str(tmp_path / "v21/snapshots/abc"), "--out", str(tmp_path / "out")]) == 0
    assert len(Store.open(tmp_path / "out")) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_path_with_a_colon_in_a_mixture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("day:2", "day:2:0.5", "plain"):
        Path(name).mkdir()
    parse = lambda word: parse_sources([word], Path("mix.json"))[0]  # noqa: E731
    assert (parse("day:2").data, parse("day:2").weight) == ("day:2", 1.0)
    assert (parse("day:2:0.3").data, parse("day:2:0.3").weight) == ("day:2", 0.3)
    assert (parse("day:2:0.5").data, parse("day:2:0.5:2").weight) == ("day:2:0.5", 2.0)
    assert parse("plain:0.5:0-10:video") == dataclasses.replace(
        parse("plain"), weight=0.5, demonstrations=(0, 10), actions=False
    )
    assert (parse("new:0.5").data, parse("new:0.5").weight) == ("new", 0.5)


def test_folders_of_one_name_are_told_apart_in_a_mixture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("home/pick", "lab/pick", "lab/place"):
        Path(name).mkdir(parents=True)
    sources = parse_sources(["home/pick:2", "lab/pick", "lab/place"], Path("mix.json"))
    assert MixtureConfig(sources).names == ("home-pick", "lab-pick", "place")
    alone = parse_sources(["lab/place:1:0-5", "lab/place:1:5-9:video"], Path("mix.json"))
    assert MixtureConfig(alone).names == ("place", "place-video")


def grey_png(image: np.ndarray) -> bytes:
    """An 8-bit grey PNG, mode L, by FFmpeg."""
    out = io.BytesIO()
    with av.open(out, "w", format="image2pipe") as container:
        stream = container.add_stream("png")
        stream.height, stream.width, stream.pix_fmt = *image.shape, "gray"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "gray")))
        container.mux(stream.encode())
    return out.getvalue()


@pytest.mark.parametrize("stored", ["image", "video"])
def test_grey_cameras_are_cameras(tmp_path, stored):
    root, key = write_v3(tmp_path / "data", SMALL), "observation.images.top"
    greys = np.concatenate([square_frames(n, 32, 32, e).max(3) for e, n in enumerate(SMALL.lengths)])
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][key] = {"dtype": stored, "shape": [32, 32, 1], "names": ["height", "width", "channels"]}
    (root / "meta/info.json").write_text(json.dumps(info))
    if stored == "video":
        path = root / f"videos/{key}/chunk-000/file-000.mp4"
        write_video(path, np.repeat(greys[..., None], 3, 3), 10, g="2", bf="0", crf="1")
    else:
        path = root / "data/chunk-000/file-000.parquet"
        cells = [{"bytes": grey_png(g), "path": f"{i}.png"} for i, g in enumerate(greys)]
        pq.write_table(pq.read_table(path).append_column(key, pa.array(cells)), path)
    store = Store.open(root)
    assert store.cameras == ("top",) and store.depth_cameras == ()
    difference = store.decode(1, "top").astype(int) - greys[12:, None]
    assert np.abs(difference).mean() < (1e-9 if stored == "image" else 2)
    info["features"][key]["info"] = {"is_depth_map": True}
    (root / "meta/info.json").write_text(json.dumps(info))
    assert Store.open(root).depth_cameras == ("top",)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_video_longer_than_its_rows_is_read_and_a_shorter_one_is_damage(tmp_path, version, capsys):
    root = {"v2.1": write_v21, "v3.0": write_v3}[version](tmp_path / "data", SMALL)
    path = (
        root
        / "videos"
        / {"v2.1": "chunk-000/observation.images.top/episode_000001.mp4"}.get(
            version, "observation.images.top/chunk-000/file-000.mp4"
        )
    )
    frames = SMALL.images(1) if version == "v2.1" else np.concatenate([SMALL.images(0), SMALL.images(1)])
    for count, right in ((len(frames) + 3, 0), (len(frames) - 2, 1)):
        write_video(path, np.concatenate([frames, frames[:3]])[:count], 10, g="2", bf="0")
        out = tmp_path / f"out-{count}"
        if version == "v2.1":
            assert (main(["import", "lerobot2", str(root), "--out", str(out)]) != 0) == right
            store = Store.open(out)
        else:
            store = Store.open(root)
            found = [str(f) for f in validate(root, progress=False)]
            spare = "file-000.mp4 of camera top has 28 frames for 25 rows; those without a row are left alone"
            assert (f"note: episode 0: {spare}" in found) == (not right)
            assert any(f.startswith("error") for f in found) == right
        if not right:
            assert np.abs(store.decode(1, "top")[12].astype(int) - SMALL.images(1)[12].transpose(2, 0, 1)).mean() < 14


def test_frames_between_the_episodes_of_a_video_are_left_alone(tmp_path):
    """As lerobot's converter to v3.0 leaves them, which joins whole videos and places clips by their durations."""
    root, key = write_v3(tmp_path / "data", SMALL), "observation.images.top"
    spare = [np.concatenate([SMALL.images(e), np.full((2 + e, 32, 32, 3), 255, np.uint8)]) for e in range(2)]
    write_video(root / f"videos/{key}/chunk-000/file-000.mp4", np.concatenate(spare), 10, g="2", bf="0")
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table, name = pq.read_table(path), f"videos/{key}/from_timestamp"
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array([0.0, 1.4])), path)
    store = Store.open(root)
    for episode in range(2):
        right = SMALL.images(episode).transpose(0, 3, 1, 2)
        assert np.abs(store.decode(episode, "top").astype(int) - right).mean() < 14
    notes = [f.message for f in validate(root, progress=False)]
    assert any("has 30 frames for 25 rows; those without a row are left alone" in note for note in notes)
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array([0.0, 2.4])), path)
    with pytest.raises(StoreError, match="episode 0, camera top.*it has 30 frames instead of 37"):
        Store.open(root).decode(0, "top")


def test_one_arm_of_aloha(tmp_path, capsys):
    h5py = pytest.importorskip("h5py")

    def write(root: Path, joints: int) -> Path:
        root.mkdir()
        with h5py.File(root / "episode_0.hdf5", "w") as file:
            for key in ("action", "observations/qpos", "observations/qvel"):
                file[key] = np.random.default_rng(0).normal(size=(6, joints)).astype(np.float32)
            file["observations/images/cam_high"] = square_frames(6, 32, 32)
        return root

    command = ["import", "aloha", str(write(tmp_path / "one", 7)), "--options.text", "push", "--out"]
    assert main([*command, str(tmp_path / "out")]) == 0
    layout = Store.open(tmp_path / "out").layout
    assert layout.action_names[0] == "waist" and layout.action_names[6] == "gripper" and len(layout.proprio_names) == 7
    command[2] = str(write(tmp_path / "odd", 9))
    assert main([*command, str(tmp_path / "other")]) != 0
    assert "qpos has 9 values a step, and ALOHA's arms 7 each, 14 both" in capsys.readouterr().err

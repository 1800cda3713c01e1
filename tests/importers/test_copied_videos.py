"""Imports copy videos in which nothing has to change, and encode the others, with the reason."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
from lerobot_folders import Recordings, square_frames, write_v21
from lerobot_folders import write_video as encode
from video_headers import TURNS, remux, trim, turn, write

from video_files import write_video
from wamkit.cli.main import main
from wamkit.data.format import copied, store
from wamkit.data.format.copied import reason_to_encode
from wamkit.data.format.store import Store, StoreError
from wamkit.data.format.video import Video
from wamkit.data.importers import IMPORTERS, SourceError
from wamkit.data.importers.run import Import, describe_videos, import_data
from wamkit.files import atomic_copy
from wamkit.registry import load_package

load_package("wamkit.data.importers")
DATA = Recordings(lengths=(14, 9, 11), second_camera="observation.images.wrist", height=32)
USUAL = {"video.codec": "h264", "video.pix_fmt": "yuv444p", "video.g": 2}


def source_of(root: Path, **changes) -> Path:
    return write_v21(root, replace(DATA, **changes))


def video_of(root: Path, episode: int, camera: str = "top") -> Path:
    return root / f"videos/chunk-000/observation.images.{camera}/episode_{episode:06d}.mp4"


def run(source: Path, name: str = "out", options=None, format: str = "lerobot2", **more) -> tuple[Store, Counter[str]]:
    videos: Counter[str] = Counter()
    store = import_data(Import(format=format, source=source, out=source.parent / name, **more), options, videos)
    return Store.open(store.root), videos


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("[!.]*")) if p.is_file()}


def test_videos_are_copied_byte_for_byte(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where `validate` writes its page
    source = source_of(tmp_path / "in", encoder={"bf": "2", "g": "12"})
    encode(video_of(source, 1), square_frames(13, 32), **{"bf": "2"})  # four frames without rows
    store, videos = run(source)
    assert videos == {"": 6} and describe_videos(videos) == "videos: 6 copied, 0 encoded"
    shutil.move(source, tmp_path / "moved")
    for episode, steps in enumerate(DATA.lengths):
        for camera in ("top", "wrist"):
            path = video_of(tmp_path / "moved", episode, camera)
            assert store.video_path(episode, camera).read_bytes() == path.read_bytes()
            assert not store.video_path(episode, camera).is_symlink()
            with Video(path, 10, (32, 64)) as video:
                assert np.array_equal(store.decode(episode, camera), video.frames(range(steps)))
    info = json.loads((store.root / "meta/info.json").read_text())["features"]["observation.images.top"]["info"]
    assert info == {
        "video.height": 32, "video.width": 64, "video.channels": 3, "video.codec": "h264", "video.pix_fmt": "yuv420p",
        "video.fps": 10, "video.is_depth_map": False, "has_audio": False,
    }  # fmt: skip
    assert main(["validate", str(store.root), "--every-frame"]) == 0
    stored = store.video_path(0, "top")
    stored.write_bytes(stored.read_bytes().replace(b"mdat", b"mdat", 1) + b"\0")
    with pytest.raises(StoreError, match=r"its content has changed since it was recorded"):
        Store.open(store.root).decode(0, "top")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: turn(write(p, 14), TURNS["upside-down"][0]), "its frames are turned"),
        (lambda p: write(p, 14, aspect=Fraction(2)), "its pixels are not square"),
        (lambda p: write(p, 14, times=[2 * k + (k == 5) for k in range(14)]), "its frames are not 10 a second, from 0"),
        (lambda p: write(p, 14, times=[2 * k + 1 for k in range(14)], avoid_negative_ts="disabled"), "from 0 on"),
        (lambda p: write(p, 14, rate=Fraction(1001, 100)), "its frames are not 10 a second, from 0 on"),
        (lambda p: trim(write(p, 20), 3, 17), "its edit list leaves frames out"),
        (lambda p: remux(write(p, 14), p.with_suffix(".mkv")).rename(p), "its container is matroska"),
        (lambda p: write(p.with_suffix(".avi"), 14, codec="mpeg4").rename(p), "its container is avi"),
        (lambda p: write(p, 14, codec="mjpeg", pixels="yuvj420p"), "its codec is mjpeg"),
        (lambda p: write(p, 14, pixels="yuv420p10le"), "its pixels are yuv420p10le"),
    ],
)
def test_a_video_in_which_something_changes_is_encoded(tmp_path, make, reason):
    source = source_of(tmp_path / "in", lengths=(14, 9))
    make(video_of(source, 0))
    store, videos = run(source)
    (found,) = videos.keys() - {""}
    assert reason in found and videos == {"": 3, found: 1}
    assert store.video_path(0, "top").read_bytes() != video_of(source, 0).read_bytes()
    images = np.stack(
        list(IMPORTERS.get("lerobot2")(source, IMPORTERS.get("lerobot2").Options()).read("000000").images["top"]())
    )
    assert np.abs(store.decode(0, "top").transpose(0, 2, 3, 1).astype(int) - images).mean() < 2
    info = json.loads((store.root / "meta/info.json").read_text())["features"]["observation.images.top"]["info"]
    assert USUAL.items() <= info.items(), "it describes the first video"
    assert describe_videos(videos) == f"videos: 3 copied, 1 encoded (1: {found})"


def test_another_size_is_encoded_and_told(tmp_path, capsys):
    source = source_of(tmp_path / "in", lengths=(6,))
    assert main(["import", "lerobot2", str(source), "--out", str(tmp_path / "out"), "--options.size", "16", "32"]) == 0
    assert "videos: 0 copied, 2 encoded (2: its frames are 32x64 instead of 16x32)" in capsys.readouterr().out
    assert main(["import", "lerobot2", str(source), "--out", str(tmp_path / "same"), "--options.size", "32", "64"]) == 0
    assert "videos: 2 copied, 0 encoded\n" in capsys.readouterr().out


def test_damage_and_missing_frames_are_the_sources(tmp_path):
    source = source_of(tmp_path / "in")
    path = video_of(source, 1)
    whole = path.read_bytes()
    at = whole.index(b"mdat") + 900
    path.write_bytes(whole[:at] + bytes(120) + whole[at + 120 :])
    with pytest.raises(SourceError, match=r"episode_000001\.mp4 \(episode 000001\)"):
        run(source)
    encode(path, square_frames(8, 32))
    with pytest.raises(SourceError, match="8 frames, 10 a second, instead of 9"):
        run(source)
    store, videos = run(source, on_error="skip")
    assert [m.source for m in store.episodes] == ["000000", "000002"] and videos == {"": 2}


@pytest.mark.parametrize("broken", ["_write_totals", "_commit"])
def test_a_killed_import_continues_to_the_same_bytes(tmp_path, monkeypatch, broken):
    source = source_of(tmp_path / "in")
    whole, _ = run(source, "whole")
    plain, calls = getattr(store.Store, broken), []

    def killed(self, *args, **more):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(store.Store, broken, killed)
        with pytest.raises(KeyboardInterrupt):
            run(source)
    run(source)
    assert content(tmp_path / "out") == content(whole.root)


def test_an_import_that_an_earlier_version_began_goes_on(tmp_path, monkeypatch):
    """The earlier version encoded everything; later episodes are copied beside those."""
    monkeypatch.chdir(tmp_path)
    source = source_of(tmp_path / "in")
    with monkeypatch.context() as patch:
        patch.setattr("wamkit.data.importers.run.reason_to_encode", lambda *_: "no")
        run(source, limit=1)
    store, videos = run(source)
    assert videos == {"": 4} and len(store) == 3
    for episode, steps in enumerate(DATA.lengths):
        with Video(video_of(source, episode), 10, (32, 64)) as video:
            difference = store.decode(episode, "top").astype(int) - video.frames(range(steps))
        assert np.abs(difference).mean() < (2 if episode == 0 else 1e-9)
    info = json.loads((store.root / "meta/info.json").read_text())["features"]["observation.images.top"]["info"]
    assert USUAL.items() <= info.items()
    assert main(["validate", str(store.root), "--every-frame"]) == 0


def test_cameras_that_are_missing(tmp_path):
    """The first episode lacks a camera, so another one tells how its videos are encoded; the black one is ours."""
    source = source_of(tmp_path / "in")
    video_of(source, 0, "wrist").unlink()
    store, videos = run(source, missing_views="mask")
    assert videos == {"": 5} and store.episodes[0].absent == ("wrist",)
    features = json.loads((store.root / "meta/info.json").read_text())["features"]
    for camera in ("top", "wrist"):
        info = features[f"observation.images.{camera}"]["info"]
        assert info["video.pix_fmt"] == "yuv420p" and info["wamkit.optional"]
    assert store.layout.optional == ("top", "wrist") and not store.decode(0, "wrist").any()


def test_a_source_that_changes_while_it_is_copied(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"1")
    with pytest.raises(StoreError, match="a changed while it was copied"):
        atomic_copy(tmp_path / "b", tmp_path / "a", 64 * "0")
    with pytest.raises(StoreError, match="nowhere cannot be read"):
        atomic_copy(tmp_path / "b", tmp_path / "nowhere", 64 * "0")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_folders_of_videos_that_keep_size_and_rate(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for i, fps in enumerate((30, 30, 10)):
        write_video(source / f"{i}.mp4", 20, fps=fps, mark=4 * i)
    cls = IMPORTERS.get("video")
    store, videos = run(source, options=cls.Options(text="x", size=(48, 64), fps=30.0), format="video")
    assert videos == {"": 2, "its frames are not 30 a second": 1}
    assert store.video_path(0, "video").read_bytes() == (source / "0.mp4").read_bytes() and len(store.episode(2)) == 60
    _, videos = run(source, "small", cls.Options(text="x", fps=10.0), "video")
    assert videos == {"its frames are 48x64 instead of 64x64": 3}


def test_egodex_keeps_its_videos_at_their_size(tmp_path):
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in/0.mp4", 12)
    with h5py.File(tmp_path / "in/0.hdf5", "w") as file:
        file["transforms/camera"] = np.tile(np.eye(4, dtype=np.float32), (12, 1, 1))
        file["camera/intrinsic"] = np.eye(3, dtype=np.float32)
        file.attrs["llm_description"] = "fold"
    store, videos = run(tmp_path / "in", options=IMPORTERS.get("egodex").Options(size=(48, 64)), format="egodex")
    assert videos == {"": 1} and len(store.episode(0)) == 12


def test_a_file_that_is_no_video_has_a_reason(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    assert "cannot be decoded" in reason_to_encode(tmp_path / "a.mp4", 10, (32, 64), 3)
    assert copied.video_info(encode(tmp_path / "b.mp4", square_frames(3, 32)), 12.5)["video.fps"] == 12.5

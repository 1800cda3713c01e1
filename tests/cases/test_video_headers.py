"""Videos are read as players show them: turned, mirrored, with square pixels, in the order and at the times of display.

Every expectation follows from how the file was made.
"""

from __future__ import annotations

import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest
from lerobot_folders import Recordings, write_v3, write_v21
from video_headers import CORNERS, TURNS, corners, image, remux, shown, trim, turn, write

from wamkit.data.format.orientation import turn_of
from wamkit.data.format.stills import decode_image
from wamkit.data.format.store import Store, StoreError
from wamkit.data.format.video import RgbConverter
from wamkit.data.importers import IMPORTERS, SourceError
from wamkit.data.importers.run import Import, import_data
from wamkit.data.importers.video_files import frame_count, probe_video, read_all_frames, read_frames
from wamkit.registry import load_package

load_package("wamkit.data.importers")
BY_TIME = lambda video, size: read_frames(video, video.fps, size)  # noqa: E731
BY_NUMBER = lambda video, size: read_all_frames(video, size, video.frames)  # noqa: E731


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("name", TURNS)
def test_a_turn_in_the_header_is_carried_out(tmp_path, name, ending):
    matrix, expected = TURNS[name]
    path = turn(write(tmp_path / ("a.mov" if ending == "mov" else "a.mp4"), 2), matrix)
    path = remux(path, tmp_path / "a.mkv") if ending == "mkv" else path
    video = probe_video(path)
    size = (64, 32) if matrix[0] == 0 else (32, 64)
    assert video.size == size
    for read in (BY_TIME, BY_NUMBER):
        first, second = read(video, size)
        assert first.shape == (*size, 3) and np.array_equal(corners(first), np.array(expected)), "upright"
        assert np.array_equal(corners(next(read(video, (16, 16)))), np.array(expected).round(-1)), "and cut to a square"
        assert shown([first, second]) == [0, 1]


def test_a_turn_by_another_angle_is_named(tmp_path):
    path = turn(write(tmp_path / "a.mp4", 2), (0.866, 0.5, -0.5, 0.866))
    with pytest.raises(SourceError, match=r"a\.mp4: its header turns frames by 30 degrees, .* encode it again"):
        probe_video(path)


@pytest.mark.parametrize("height", [32, 64])
@pytest.mark.parametrize("name", ["clockwise", "upside-down", "transposed"])
def test_lerobot_videos_that_are_turned(tmp_path, name, height):
    """Whether info.json has the size of the stored frames or of the upright ones."""
    matrix, expected = TURNS[name]
    upright = (64, height) if matrix[0] == 0 else (height, 64)
    for declared in {(height, 64), upright}:
        data = Recordings(lengths=(5, 4), height=declared[0], width=declared[1])
        tag = f"{declared[0]}"
        new, old = write_v3(tmp_path / f"v3-{tag}", data), write_v21(tmp_path / f"v21-{tag}", data)
        first = 0
        for episode, steps in enumerate(data.lengths):
            path = old / f"videos/chunk-000/{data.camera}/episode_{episode:06d}.mp4"
            turn(write(path, steps, height=height), matrix)
        turn(write(new / f"videos/{data.camera}/chunk-000/file-000.mp4", sum(data.lengths), height=height), matrix)
        out = tmp_path / f"out-{tag}"
        for store in (Store.open(new), import_data(Import(format="lerobot2", source=old, out=out))):
            assert store.layout.size("top") == upright
            for episode, steps in enumerate(data.lengths):
                frames = store.decode(episode, "top").transpose(0, 2, 3, 1)
                assert frames.shape == (steps, *upright, 3)
                number = first + (5 * episode if store.root == new else 0)
                assert shown(frames) == list(range(number, number + steps))
            assert np.array_equal(corners(store.decode(0, "top")[0].transpose(1, 2, 0)), np.array(expected))


def test_a_turned_video_among_others_is_named(tmp_path):
    root = write_v3(tmp_path / "v3", Recordings(lengths=(5,), height=32))
    video = root / "videos/observation.images.top/chunk-000/file-000.mp4"
    with Store.open(root).open_video(0, "top") as opened:
        turn(write(video, 5), TURNS["clockwise"][0])
        assert opened.frames([0]).shape == (1, 3, 32, 64)
    store = Store.open(root)
    write(video, 5)
    with pytest.raises(StoreError, match="its frames are 32x64 instead of 64x32"):
        store.decode(0, "top")


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "avi"])
def test_pixels_that_are_not_square(tmp_path, ending):
    """A frame of 32x64 pixels that are twice as wide as high is shown as 32x128, and cut accordingly."""
    video = probe_video(write(tmp_path / f"a.{ending}", 2, aspect=Fraction(2)))
    assert video.size == (32, 128)
    whole = next(read_frames(video, 10.0, (32, 128)))
    middle = next(read_frames(video, 10.0, (32, 32)))
    assert np.array_equal(corners(whole), CORNERS.round(-1))
    assert np.abs(middle.astype(int) - whole[:, 48:80]).max() < 12, "the middle quarter, not the whole squeezed"


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "webm", "avi"])
def test_frames_come_in_the_order_of_display(tmp_path, ending):
    video = probe_video(write(tmp_path / f"a.{ending}", codec="libvpx-vp9" if ending == "webm" else "libx264"))
    assert shown(BY_TIME(video, (32, 64))) == shown(BY_NUMBER(video, (32, 64))) == list(range(12))


@pytest.mark.parametrize(("ending", "start"), [("mp4", 10), ("mov", 10), ("mkv", 10), ("webm", 10), ("webm", -10)])
def test_a_video_that_does_not_start_at_zero(tmp_path, ending, start):
    times = [2 * k + start for k in range(30)]
    codec = "libvpx-vp9" if ending == "webm" else "libx264"
    video = probe_video(write(tmp_path / f"a.{ending}", 30, times=times, codec=codec, avoid_negative_ts="disabled"))
    assert video.frames == 30 and abs(video.seconds - 3) < 0.01
    assert shown(BY_TIME(video, (32, 64))) == shown(BY_NUMBER(video, (32, 64))) == list(range(30))
    assert shown(read_frames(video, 10.0, (32, 64), 1.5, 1.8)) == [15, 16, 17], "seconds count from the first frame"


def test_a_video_that_begins_after_its_sound(tmp_path):
    """Seconds count from where a player starts; it shows the first frame until the second one comes."""
    video = probe_video(write(tmp_path / "a.mkv", times=[2 * k + 10 for k in range(12)], sound=True))
    assert shown(BY_TIME(video, (32, 64))) == [0] * 5 + list(range(12))
    assert shown(read_frames(video, 10.0, (32, 64), 1.2, 1.5)) == [7, 8, 9]
    assert shown(BY_NUMBER(video, (32, 64))) == list(range(12))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_video_that_ends_before_its_sound(tmp_path, ending):
    """Half a second of frames with a second of sound: the last frame is not repeated for the rest."""
    video = probe_video(write(tmp_path / f"a.{ending}", 5, sound=True))
    assert (video.frames, round(video.seconds, 2)) == (5, 0.5)
    assert shown(BY_TIME(video, (32, 64))) == shown(BY_NUMBER(video, (32, 64))) == list(range(5))


@pytest.mark.parametrize("times", [None, [0, 2, 4, 5, 6, 7, 8, 12, 14, 16, 18, 20]])
def test_a_live_recording_that_does_not_say_how_long_it_lasts(tmp_path, times):
    video = probe_video(write(tmp_path / "a.mkv", times=times, live="1"))
    assert (video.frames, round(video.seconds, 2)) == (12, 1.2 if times is None else 1.1)
    assert shown(BY_NUMBER(video, (32, 64))) == list(range(12))
    assert shown(BY_TIME(video, (32, 64)))[-1] == 11


def test_a_cover_before_the_video_is_not_shown(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, size in zip(streams, ((16, 16), (32, 64)), strict=True):
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        frames = [(streams[0], av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24"))]
        frames += [(streams[1], av.VideoFrame.from_ndarray(image(k), format="rgb24")) for k in range(12)]
        packets = [p for stream, frame in frames for p in stream.encode(frame)]
        container.mux([*packets, *(p for stream in streams for p in stream.encode())])
    video = probe_video(tmp_path / "a.mkv")
    assert video.size == (32, 64) and shown(BY_TIME(video, (32, 64))) == list(range(12))


@pytest.mark.parametrize(("first", "frames"), [(0, 20), (7, 23), (4, 10)])
def test_what_the_edit_list_leaves_out_is_not_shown(tmp_path, first, frames):
    video = probe_video(trim(write(tmp_path / "a.mp4", 30), first, frames))
    kept = list(range(first, first + frames))
    assert video.frames == frames == frame_count(video, 10.0)
    assert shown(BY_TIME(video, (32, 64))) == shown(BY_NUMBER(video, (32, 64))) == kept
    assert shown(read_frames(video, 5.0, (32, 64))) == kept[::2]


@pytest.mark.parametrize("ending", ["mp4", "mkv", "webm"])
def test_frames_of_different_lengths(tmp_path, ending):
    """By time, the frame that shows at each instant; by number, each frame once."""
    times = [0, 2, 4, 5, 6, 7, 8, 12, 14, 16, 18, 20]  # in twentieths of a second
    codec = "libvpx-vp9" if ending == "webm" else "libx264"
    video = probe_video(write(tmp_path / f"a.{ending}", 12, times=times, codec=codec))
    right = [max(k for k, t in enumerate(times) if t <= 2 * i) for i in range(11)]
    assert shown(read_frames(video, 10.0, (32, 64), 0, 1.05)) == right
    assert shown(read_all_frames(video, (32, 64), 12)) == list(range(12))


def test_an_importer_turns_videos(tmp_path):
    turn(write(tmp_path / "in/a.mp4"), TURNS["clockwise"][0])
    options = IMPORTERS.get("video").Options(text="x", size=(64, 32))
    store = import_data(Import(format="video", source=tmp_path / "in", out=tmp_path / "out"), options)
    frames = store.decode(0, "video").transpose(0, 2, 3, 1)
    assert np.array_equal(corners(frames[0]), np.array(TURNS["clockwise"][1])) and shown(frames) == list(range(12))


def test_a_photo_that_says_how_it_was_held(tmp_path):
    """JPEG in a column of the data files, as `datasets.Image` shows it to lerobot: turned as EXIF says."""
    context = av.CodecContext.create("mjpeg", "w")
    context.height, context.width, context.pix_fmt, context.time_base = 32, 64, "yuvj420p", Fraction(1)
    frame = av.VideoFrame.from_ndarray(image(0), format="rgb24").reformat(format="yuvj420p")
    data = b"".join(bytes(p) for p in [*context.encode(frame), *context.encode()])
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6: clockwise
    data = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    decoded, out = decode_image(data, (64, 32)), np.empty((3, 64, 32), np.uint8)
    RgbConverter().write(decoded, out, turn_of(decoded))
    assert np.array_equal(corners(out.transpose(1, 2, 0)), np.array(TURNS["clockwise"][1]))


def _turned(name: str):
    return lambda path: trim(turn(write(path / "a.mp4", 30), TURNS[name][0]), 7, 20)


_UNEVEN = [0, 2, 4, 5, 6, 7, 8, 12, 14, 16, 18, 20]
OF_FFMPEG = {name: _turned(name) for name in TURNS} | {
    "uneven.mp4": lambda path: write(path / "a.mp4", times=_UNEVEN),
    "uneven.mkv": lambda path: write(path / "a.mkv", times=_UNEVEN),
    "uneven.webm": lambda path: write(path / "a.webm", times=_UNEVEN, codec="libvpx-vp9"),
    "vp9.webm": lambda path: write(path / "a.webm", codec="libvpx-vp9"),
    "live.mkv": lambda path: write(path / "a.mkv", live="1"),
    "after-its-sound.mkv": lambda path: write(path / "a.mkv", times=[2 * k + 10 for k in range(12)], sound=True),
    "late.webm": lambda path: write(path / "a.webm", times=[2 * k + 10 for k in range(12)], codec="libvpx-vp9"),
    "turned.mkv": lambda path: remux(turn(write(path / "b.mp4"), TURNS["clockwise"][0]), path / "a.mkv"),
}


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="compares with the program ffmpeg, which is not installed")
@pytest.mark.parametrize("name", OF_FFMPEG)
def test_frames_are_those_of_ffmpeg(tmp_path, name):
    path = OF_FFMPEG[name](tmp_path)
    video = probe_video(path)
    flags = ["-fps_mode", "passthrough", "-sws_flags", "accurate_rnd+full_chroma_inp", "-pix_fmt", "rgb24"]
    done = subprocess.run(["ffmpeg", "-v", "error", "-i", path, *flags, "-f", "rawvideo", "-"], capture_output=True)
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, *video.size, 3)
    assert len(frames) == video.frames
    assert np.abs(np.stack(list(BY_NUMBER(video, video.size))).astype(int) - frames).max() <= 2

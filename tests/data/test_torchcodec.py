"""Videos by torchcodec are those by PyAV to the bit; what it cannot be trusted with is left to PyAV."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from recordings import CAMERAS, LAYOUT, SIZE, grainy_frames, make_episode

from wamkit.cli.main import main
from wamkit.data.format.store import Store, StoreError
from wamkit.data.format.torchcodec import TorchcodecVideo, torchcodec_decoders
from wamkit.data.format.video import Video, encode_video
from wamkit.data.loading.lazy_frames import VideoFrames

STEPS, LENGTHS = 20, (7, 9, 8, 30)


@pytest.fixture
def decoders():
    try:
        return torchcodec_decoders()
    except StoreError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("torchcodec") / "data"
    store = Store.create(root, **LAYOUT)
    for seed, length in enumerate(LENGTHS):
        store.append(make_episode(seed, length))
    return root


def encoded(width: int, codec: str, pixels: str, skip: int = -1, form: str = "mp4", **tags: int) -> bytes:
    """A video of STEPS frames of 48 x width at 10 a second, without frame `skip`."""
    film, frames = io.BytesIO(), grainy_frames(0, STEPS, 96)[:, :, :48, :width].transpose(0, 2, 3, 1)
    with av.open(film, "w", format=form) as container:
        stream = container.add_stream(codec, rate=10, options={"preset": "12" if codec == "libsvtav1" else "medium"})
        stream.height, stream.width, stream.pix_fmt, stream.codec_context.gop_size = 48, width, pixels, 5
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format=pixels)
            frame.pts = number
            if number != skip:
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return film.getvalue()


@pytest.mark.parametrize(
    "codec, pixels, width, tags, used",
    [
        ("libx264", "yuv444p", 64, {}, True),
        ("libx264", "yuv444p", 70, {}, True),
        ("libx264", "yuv420p", 96, {}, True),
        ("libx264", "yuv420p", 64, {"colorspace": 1}, True),  # BT.709
        ("libx264", "yuv420p", 64, {"color_range": 2}, False),  # full
        ("libx264", "yuv420p", 70, {}, True),
        ("libx264", "yuv422p", 64, {}, False),
        ("libsvtav1", "yuv420p", 64, {}, True),
    ],
)
def test_images_are_those_of_pyav(decoders, tmp_path, codec, pixels, width, tags, used):
    try:
        film = encoded(width, codec, pixels, **tags)
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"PyAV was built without {codec}")
    (tmp_path / "a.mp4").write_bytes(film)
    rng = np.random.default_rng(0)
    with Video(film, 10, (48, width), STEPS) as pyav, TorchcodecVideo(tmp_path / "a.mp4", 10, (48, width)) as other:
        assert (other._film is not None) == used
        for size in (None, (16, 24)):
            for _ in range(5):
                numbers = np.sort(rng.choice(STEPS - 3, 5, replace=False)).tolist()
                assert np.array_equal(other.frames(numbers, size, start=3), pyav.frames(numbers, size, start=3))
            assert other.frames([], size).shape == (0, 3, *(size or (48, width)))


def test_a_store_gives_the_same_images(decoders, root):
    ours, theirs = Store.open(root), Store.open(root, "torchcodec")
    index = np.random.default_rng(0).integers(0, sum(LENGTHS), (6, 4))
    assert np.array_equal(VideoFrames(theirs)[index], VideoFrames(ours)[index])
    assert np.array_equal(theirs.decode(3, CAMERAS[1], (16, 16)), ours.decode(3, CAMERAS[1], (16, 16)))
    with theirs.open_video(0, CAMERAS[0]) as video:
        assert isinstance(video, TorchcodecVideo) and video._film is not None


def test_only_an_mp4_that_pyav_has_seen_is_opened(decoders, monkeypatch, tmp_path):
    """The other FFmpeg would follow a playlist, or read what only looks like an MP4 to one of them."""
    opened: list[object] = []
    monkeypatch.setattr(decoders, "VideoDecoder", lambda *args, **options: opened.append(args))
    (tmp_path / "other.mp4").write_bytes(encode_video(grainy_frames(0, 4), 10))
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(StoreError, match="cannot be decoded"):
        TorchcodecVideo(tmp_path / "a.mp4", 10, (SIZE, SIZE))
    with TorchcodecVideo(encoded(64, "libx264", "yuv444p", form="matroska"), 10, (48, 64)) as film:
        assert film.frames([4]).shape == (1, 3, 48, 64)
    with pytest.raises(StoreError, match="48x64 instead of 32x32"):
        TorchcodecVideo(encoded(64, "libx264", "yuv444p"), 10, (32, 32))
    assert not opened


def test_missing_frames_are_named(decoders):
    for number, film in ((7, encoded(64, "libx264", "yuv420p", skip=7)), (25, encoded(64, "libx264", "yuv420p"))):
        with TorchcodecVideo(film, 10, (48, 64)) as video:
            assert video.frames([2, 5]).shape == (2, 3, 48, 64)
            with pytest.raises(StoreError, match=f"{number} (is missing|cannot be decoded)"):
                video.frames([2, 5, number])


def test_damage_of_recordings_is_found(decoders, tmp_path, root):
    shutil.copytree(root, tmp_path / "data")
    path = Store.open(tmp_path / "data").video_path(1, "wrist")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(StoreError, match=r"episode 1, camera wrist.*has changed since it was recorded"):
        Store.open(tmp_path / "data", "torchcodec").decode(1, "wrist")


def test_what_is_missing_is_named_before_anything_is_read(tmp_path, monkeypatch, root, capsys):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(StoreError, match=r"pip install 'wamkit\[torchcodec\]'"):
        Store.open(root, "torchcodec")
    assert main(["train", "--data", str(root), "--out", str(tmp_path / "run"), "--decoder", "torchcodec"]) != 0
    assert "pip install 'wamkit[torchcodec]'" in capsys.readouterr().err and not (tmp_path / "run").exists()
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec/__init__.py").write_text("raise RuntimeError('Could not load libtorchcodec')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StoreError, match="apt-get install ffmpeg"):
        Store.open(root, "torchcodec")

"""Folders of videos: which image stands at which instant, captions, damage."""

from __future__ import annotations

import multiprocessing
import os
import struct
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from tqdm import tqdm

from video_files import frames_shown, write_video
from wamkit.cli.main import main
from wamkit.data.format.store import Store
from wamkit.data.importers import IMPORTERS, SourceError
from wamkit.data.importers.run import Import, import_data, require_whole
from wamkit.data.importers.video_files import cropped_intrinsics, frame_count, frame_numbers, probe_video, read_frames
from wamkit.files import StoreError
from wamkit.registry import load_package
from wamkit.types import Span

load_package("wamkit.data.importers")


def importer(root, **options):
    cls = IMPORTERS.get("video")
    return cls(root, cls.Options(**options))


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx-vp9"])
def test_each_instant_has_the_image_that_showed_then(tmp_path, codec):
    path = tmp_path / ("a.webm" if "vp9" in codec else "a.mp4")
    write_video(path, 50, codec=codec)
    film = probe_video(path)
    assert (film.fps, film.frames, film.size) == (30.0, 50, (48, 64))
    assert frames_shown(read_frames(film, 30.0, (48, 64))) == list(range(50))
    assert frames_shown(read_frames(film, 10.0, (48, 64))) == list(range(0, 50, 3))
    assert frames_shown(read_frames(film, 60.0, (48, 64), 0.0, 0.2)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert frames_shown(read_frames(film, 15.0, (48, 64), 1.2, 1.5)) == [36, 38, 40, 42, 44]
    assert frame_count(film, 15.0, 1.2, 1.5) == 5 and frame_count(film, 30.0, 1.6, 9.0) == 2


@pytest.mark.parametrize("fps", [7.0, 10.0, 12.5, 29.97, 45.0, 60.0])
@pytest.mark.parametrize("source", [24, 25, 30])
def test_rows_beside_a_video_are_those_of_its_images(tmp_path, fps, source):
    write_video(tmp_path / "a.mp4", 50, fps=source)
    film = probe_video(tmp_path / "a.mp4")
    assert frames_shown(read_frames(film, fps, (48, 64))) == frame_numbers(film, fps).tolist()


def test_a_camera_sees_a_point_where_it_is_shown(tmp_path):
    """A point of the scene falls on the same spot of an image by the matrix as by cutting and resizing."""
    write_video(tmp_path / "a.mp4", 1, size=(90, 170))  # black up to x = 21
    matrix = np.array([[100, 0, 85], [0, 100, 45], [0, 0, 1]])
    for size in ((45, 80), (30, 50), (90, 150)):
        picture = next(read_frames(probe_video(tmp_path / "a.mp4"), 30.0, size))
        x = (np.reshape(cropped_intrinsics(matrix, (90, 170), size), (3, 3)) @ [(21 - 85) / 100, 0, 1])[0]
        dark = 1 - picture[size[0] // 2].mean(1) / picture[size[0] // 2, -1].mean()
        assert dark.sum() == pytest.approx(x, abs=0.3)


def test_images_are_cut_around_the_middle_then_resized(tmp_path):
    write_video(tmp_path / "a.mp4", 3, size=(48, 96))
    (wide,) = {p.shape for p in read_frames(probe_video(tmp_path / "a.mp4"), 30.0, (32, 32))}
    first = next(read_frames(probe_video(tmp_path / "a.mp4"), 30.0, (32, 32)))
    assert wide == (32, 32, 3) and first.min() > 10, "the black edge, an eighth of the width, is cut away"
    whole = next(read_frames(probe_video(tmp_path / "a.mp4"), 30.0, (16, 32)))
    assert whole[:, :3].max() < 10 and abs(float(whole[:, 6:].mean()) - 20) < 3


@pytest.mark.parametrize("size", [(96, 128), (48, 64), (30, 41), (60, 60)])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p"])
def test_images_are_as_bright_as_the_video(tmp_path, pixels, size):
    """BT.601's formula says how bright; FFmpeg's short cuts round down, by one to two grey levels."""
    films, rng = [], np.random.default_rng(0)
    for level in range(30, 226, 13):
        luma = np.clip(rng.normal(16 + 219 / 255 * level, 6, (96, 128)).round(), 16, 235).astype(np.uint8)
        blue, red = rng.integers(124, 133, 2)
        films.append((luma, blue, red))
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"qp": "0", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt, stream.codec_context.thread_count = 96, 128, pixels, 1
        for luma, blue, red in films:
            frame = av.VideoFrame(128, 96, pixels)
            for plane, values in zip(frame.planes, (luma, blue, red), strict=True):
                rows = np.zeros((plane.height, plane.line_size), np.uint8)
                rows[:, : plane.width] = values
                plane.update(rows.tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    errors = []
    middle = slice(16, 112) if size == (60, 60) else slice(None)  # what is kept of a video that is cut
    shown = read_frames(probe_video(tmp_path / "a.mp4"), 30.0, size)
    for picture, (luma, blue, red) in zip(shown, films, strict=True):
        light, b, r = 255 / 219 * (luma[:, middle].mean() - 16), (blue - 128) * 255 / 224, (red - 128) * 255 / 224
        rgb = light + 1.402 * r, light - 0.344136 * b - 0.714136 * r, light + 1.772 * b
        errors.append(picture.mean((0, 1)) - rgb)
    assert np.abs(errors).max() < 0.3, "at every level"
    assert np.abs(np.mean(errors, 0)).max() < 0.1, "on average"


def test_captions_of_files_and_of_parts(tmp_path):
    (tmp_path / "deep").mkdir()
    for i, name in enumerate(("a.mp4", "deep/b.mp4", "c.mp4")):
        write_video(tmp_path / name, 30, mark=4 * i)
    (tmp_path / "a.txt").write_text("cut the bread\n")
    (tmp_path / "captions.csv").write_text(
        "file,text,start,stop\ndeep/b.mp4,open the fridge,0.2,0.5\ndeep/b.mp4,close it,0.5,99\n"
    )
    (tmp_path / "captions.jsonl").write_text('{"file": "c.mp4", "text": "stir"}\n')
    source = importer(tmp_path)
    assert list(source.episodes()) == ["a.mp4", "c.mp4", "deep/b.mp4"]
    assert [source.read(n).text for n in source.episodes()] == ["cut the bread", "stir", ""]
    assert source.read("deep/b.mp4").spans == (Span(6, 15, "open the fridge"), Span(15, 30, "close it"))
    store = import_data(Import(format="video", source=tmp_path, out=tmp_path.parent / "out"))
    assert len(store) == 3 and store.layout.action_names == store.layout.proprio_names == ()
    assert store.episode(2).texts() == [""] * 6 + ["open the fridge"] * 9 + ["close it"] * 15
    assert np.abs(store.decode(0, "video").mean((1, 2, 3)) - (20 + 4 * np.arange(30))).max() < 4
    (tmp_path / "captions.csv").write_text("file,text\nd.mp4,nobody\n")
    with pytest.raises(SourceError, match="the caption 'nobody' is of d.mp4, which does not exist"):
        importer(tmp_path).read("a.mp4")


def _import_by_itself(*args) -> None:
    """With its own lock for the progress bar: a shared lock would stay held when the process is killed."""
    tqdm.set_lock(threading.RLock())
    import_data(*args)


def test_killed_at_any_moment_an_import_goes_on(tmp_path):
    """Killed ten times, nothing is lost but the current episode, and the store equals that of an undisturbed import."""
    (tmp_path / "films").mkdir()
    for i in range(6):
        write_video(tmp_path / f"films/{i}.mp4", 50, size=(96, 96), mark=4 * i)
    args = lambda name: Import(format="video", source=tmp_path / "films", out=tmp_path / name)  # noqa: E731
    importing = multiprocessing.get_context("fork")
    options = IMPORTERS.get("video").Options(text="look", size=(96, 96))
    whole = import_data(args("whole"), options)
    rng, stored = np.random.default_rng(0), [0]
    for _ in range(10):
        process = importing.Process(target=_import_by_itself, args=(args("killed"), options))
        process.start()
        process.join(0.1 + 0.3 * rng.uniform())
        process.kill()
        process.join()
        if (tmp_path / "killed/meta/info.json").exists():
            stored.append(len(Store.open(tmp_path / "killed")))
            if (
                0 < stored[-1] < 6
            ):  # without episodes nobody takes it for a data set, whether import.json was reached or not
                with pytest.raises(StoreError, match="is not complete|was cut off"):
                    require_whole(tmp_path / "killed")
    assert stored == sorted(stored)
    import_data(args("killed"), options)
    assert contents(tmp_path / "killed") == contents(whole.root)


def contents(root: Path) -> dict[str, bytes]:
    """What a reader sees; a half-written draft that a kill leaves is hidden, and nobody's."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("[!.]*")) if p.is_file()}


def test_damage_is_named(tmp_path):
    write_video(tmp_path / "a.mp4", 40)
    whole = (tmp_path / "a.mp4").read_bytes()
    for content, message in ((whole[:300], "a.mp4"), (b"no video at all", "a.mp4")):
        (tmp_path / "a.mp4").write_bytes(content)
        with pytest.raises(SourceError, match=message):
            importer(tmp_path, text="x").layout()
    spoiled = bytearray(whole)
    at = whole.index(b"mdat") + 1200
    spoiled[at : at + 400] = bytes(400)
    (tmp_path / "a.mp4").write_bytes(spoiled)
    with pytest.raises(SourceError, match=r"a.mp4 \(episode a.mp4\)|it ends after"):
        list(importer(tmp_path, text="x").read("a.mp4").images["video"]())


def test_what_does_not_fit_is_refused(tmp_path, capsys):
    write_video(tmp_path / "a.mp4", 4, fps=30)
    write_video(tmp_path / "b.mp4", 4, fps=25)
    with pytest.raises(SourceError, match=r"a.mp4 has 30 frames a second, .*b.mp4 has 25: .*--options.fps 25"):
        importer(tmp_path).layout()
    assert importer(tmp_path, fps=5.0).layout().fps == 5
    with pytest.raises(SourceError, match="it has no text; add a caption"):
        importer(tmp_path, fps=5.0).read("a.mp4")
    (tmp_path / "captions.csv").write_text("file,text,start,stop\n../secret.mp4,x,,\n")
    with pytest.raises(SourceError, match="leads out of this folder"):
        importer(tmp_path, fps=5.0).read("a.mp4")
    (tmp_path / "captions.csv").unlink()
    (tmp_path / "captions.jsonl").write_text("[1]")
    with pytest.raises(SourceError, match=r"a row of captions has no file or text: \[1\]"):
        importer(tmp_path, fps=5.0).read("a.mp4")
    (tmp_path / "captions.jsonl").unlink()
    (tmp_path / "captions.csv").write_text("file,text,start,stop\na.mp4,x,3,1\n")
    with pytest.raises(SourceError, match="the caption 'x' of a.mp4 is from 3 to 1 seconds"):
        importer(tmp_path, fps=5.0).read("a.mp4")
    (tmp_path / "empty").mkdir()
    assert main(["import", "video", str(tmp_path / "empty"), "--out", str(tmp_path / "o")]) == 1
    assert "it contains no episodes" in capsys.readouterr().err


def test_a_playlist_called_a_video_is_not_followed(tmp_path):
    """FFmpeg goes by content: it would play whatever file the list names."""
    write_video(tmp_path / "secret.mp4", 4)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\nduration 0.13\n")
    (tmp_path / "in/secret.mp4").write_bytes((tmp_path / "secret.mp4").read_bytes())
    with pytest.raises(SourceError, match="a.mp4"):
        probe_video(tmp_path / "in/a.mp4")


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.mp4"])
def test_a_video_that_was_cut_off_is_not_filled_with_its_last_frame(tmp_path, name):
    path = tmp_path / name
    write_video(path, 50, codec="libvpx-vp9" if name == "a.webm" else "libx264")
    whole = path.read_bytes()
    assert frames_shown(read_frames(probe_video(path), 30.0, (48, 64))) == list(range(50))
    path.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(SourceError, match=name):
        list(read_frames(probe_video(path), 30.0, (48, 64)))


def test_frames_that_an_mp4_declares_and_does_not_have(tmp_path):
    """The table of sizes says how many frames there are; those beyond the others have no bytes."""
    path = tmp_path / "a.mp4"
    write_video(path, 20)
    data = bytearray(path.read_bytes())
    for box in (b"stts", b"mdhd", b"mvhd", b"tkhd"):
        assert box in data
    at = data.index(b"stsz") + 8
    assert int.from_bytes(data[at + 4 : at + 8], "big") == 20
    data[at : at + 8] = (1).to_bytes(4, "big") + (2**31).to_bytes(4, "big")  # 2^31 frames of one byte
    path.write_bytes(data)
    with pytest.raises(SourceError, match="a.mp4"):
        list(importer(tmp_path, text="x").read("a.mp4").images["video"]())


def test_a_webm_that_declares_years(tmp_path):
    path = tmp_path / "a.webm"
    write_video(path, 20, codec="libvpx-vp9")
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3
    path.write_bytes(data[:at] + struct.pack(">d", 1e15) + data[at + 8 :])
    with pytest.raises(SourceError, match="a.webm.* frames in .* bytes: no video is like that"):
        importer(tmp_path, text="x").read("a.webm")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.jsonl", "[" * 200_000, "captions.jsonl.*nested more than 64 deep"),
        ("captions.jsonl", '{"file": "a.mp4", "text": "x", "start": 0, "stop": 1e308}', "from 0 to 1e.308 seconds"),
        ("captions.jsonl", '{"file": "a.mp4", "text": "x", "start": [], "stop": 1}', "episode a.mp4"),
        ("captions.jsonl", '{"file": "a.mp4", "text": "x", "start": 0}', "from 0 to None seconds"),
        ("captions.csv", "file,text\n\xff,x\n", "captions.csv is not UTF-8 text"),
        ("captions.csv", 'file,text\na.mp4,"' + "x" * 200_000 + '"\n', "captions.csv.*field larger"),
        ("a.txt", "\xff", "a.txt is not UTF-8 text .*save it as UTF-8"),
    ],
)
def test_captions_are_checked(tmp_path, name, content, message):
    write_video(tmp_path / "a.mp4", 4)
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(SourceError, match=message) as error:
        importer(tmp_path).read("a.mp4")
    assert len(str(error.value)) < 900 and "\n" not in str(error.value)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(SourceError, match=f"{name}.*pipe or a device"):
        importer(tmp_path).read("a.mp4")

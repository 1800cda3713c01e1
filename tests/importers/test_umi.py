"""UMI, on a session that zarr 2 wrote: rows, images and what was done next belong together; damage is named."""

from __future__ import annotations

import json
import os
import pickle  # house: writes what the importer must refuse
import zipfile
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr

from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.importers import IMPORTERS, SourceError
from wamkit.data.importers.run import Import, import_data
from wamkit.data.importers.zarr2 import Zarr
from wamkit.files import StoreError
from wamkit.registry import load_package

load_package("wamkit.data.importers")
SESSION = Path(__file__).parent / "data/umi/session.zarr.zip"


def importer(path=SESSION, **options):
    cls = IMPORTERS.get("umi")
    return cls(path, cls.Options(**{"text": "stack the cups"} | options))


def rewritten(path: Path, **changes: bytes | None) -> Path:
    """A copy of the session with other members: name -> content, None to leave it out."""
    with zipfile.ZipFile(SESSION) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.infolist():
            content = changes.pop(member.filename, old.read(member))
            if content is not None:
                new.writestr(member.filename, content)
        for name, content in changes.items():
            new.writestr(name, content)
    return path


def test_rows_images_and_what_was_done_next(tmp_path):
    """Row t has x = t / 1000 and an image whose upper half is 10 t. Its action is the pose of row t + 1."""
    store = import_data(Import(format="umi", source=SESSION, out=tmp_path / "out"), importer().options)
    assert [m.length for m in store.episodes] == [8, 5] and store.layout.fps == pytest.approx(59.94)
    for e, first in ((0, 0), (1, 9)):
        episode, rows = store.episode(e), first + np.arange(store.episodes[e].length)
        np.testing.assert_allclose(episode.proprio[:, 0], rows / 1000, atol=1e-7)
        np.testing.assert_allclose(episode.action[:, 0], (rows + 1) / 1000, atol=1e-7)
        np.testing.assert_array_equal(episode.proprio[1:], episode.action[:-1])
        shown = episode.images[:, 0, :, 2:14].astype(float).mean((1, 2, 3))
        np.testing.assert_allclose(shown, 10 * rows, atol=2)
    metadata = load_metadata(store.root)
    assert metadata.embodiment == "umi" and metadata.cameras["camera0"].role == "wrist"
    assert [(f.kind, f.rotation, f.stop) for f in metadata.action] == [
        ("position", "", 3),
        ("rotation", "axis_angle", 6),
        ("gripper", "", 7),
    ]


def test_numbers_are_those_of_the_file():
    """Against the writer's own seed, number for number."""
    rng = np.random.default_rng(0)
    position = rng.normal(0, 0.1, (15, 3)).astype(np.float32)
    turn, width = rng.normal(0, 0.3, (15, 3)).astype(np.float32), rng.uniform(0, 0.08, (15, 1)).astype(np.float32)
    read = importer().read("1")
    np.testing.assert_array_equal(read.state[:, 1:3], position[9:14, 1:])
    np.testing.assert_array_equal(read.state[:, 3:], np.c_[turn, width][9:14])


def test_fewer_rows_a_second():
    source = importer(every=3)
    read = source.read("0")
    assert source.layout().fps == pytest.approx(19.98) and len(read) == 2
    np.testing.assert_allclose(read.state[:, 0], [0, 0.003], atol=1e-7)
    np.testing.assert_allclose(read.action[:, 0], [0.003, 0.006], atol=1e-7)
    assert [round(float(p[:16].mean()) / 10) for p in read.images["camera0"]()] == [0, 3]


def test_a_folder_reads_like_its_zip(tmp_path):
    with zipfile.ZipFile(SESSION) as file:
        file.extractall(tmp_path / "session.zarr")
    np.testing.assert_array_equal(importer(tmp_path / "session.zarr").read("0").state, importer().read("0").state)


def test_damage_is_named(tmp_path):
    cut = tmp_path / "cut.zarr.zip"
    cut.write_bytes(SESSION.read_bytes()[:9000])
    with pytest.raises(SourceError, match=r"cut.zarr.zip: .*not a zip file"):
        importer(cut).layout()
    spoiled = rewritten(tmp_path / "spoiled.zip", **{"data/camera0_rgb/10.0.0.0": b"no picture"})
    with pytest.raises(SourceError, match=r"spoiled.zip \(episode 1\)"):
        list(importer(spoiled).read("1").images["camera0"]())
    ends = rewritten(tmp_path / "ends.zip", **{"meta/episode_ends/0": np.array([9, 9], np.int64).tobytes()})
    with pytest.raises(SourceError, match="episode_ends is not a list of ascending row numbers"):
        importer(ends).episodes()
    long = rewritten(tmp_path / "long.zip", **{"meta/episode_ends/0": np.array([9, 99], np.int64).tobytes()})
    with pytest.raises(SourceError, match=r"data/robot0_eef_pos is \(15, 3\), but the demonstrations have 99 rows"):
        importer(long).read("0")
    lost = rewritten(tmp_path / "lost.zip", **{"data/camera0_rgb/3.0.0.0": None, "data/robot0_gripper_width/0.0": None})
    with pytest.raises(SourceError, match="data/robot0_gripper_width/0.0 is missing; its content is lost"):
        importer(lost).read("0")
    lost = rewritten(tmp_path / "lost.zip", **{"data/camera0_rgb/3.0.0.0": None})
    with pytest.raises(SourceError, match="data/camera0_rgb/3.0.0.0 is missing"):
        list(importer(lost).read("0").images["camera0"]())
    empty = tmp_path / "empty.zip"
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(SourceError, match="empty.zip"):
        importer(empty).layout()


def test_dangerous_archives_are_refused(tmp_path):
    out = rewritten(tmp_path / "out.zip", **{"../../secret": b"x"})
    with pytest.raises(SourceError, match="'../../secret' leads out of the archive"):
        importer(out).layout()
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("data/x/0", bytes(50_000_000))
    with pytest.raises(SourceError, match="'data/x/0' declares 50000000 bytes; refused"):
        importer(tmp_path / "bomb.zip").layout()


def about(name: str, **changes) -> dict[str, bytes]:
    """The .zarray of an array of the session with other entries."""
    with zipfile.ZipFile(SESSION) as file:
        return {f"{name}/.zarray": json.dumps(json.loads(file.read(f"{name}/.zarray")) | changes).encode()}


class Harm:
    def __reduce__(self):
        return os.system, ("touch /tmp/wamkit-zarr-was-here",)


def test_a_codec_that_unpickles_is_refused(tmp_path):
    """numcodecs has one, and zarr takes whatever codec a file names."""
    path = rewritten(
        tmp_path / "a.zip",
        **about("data/robot0_eef_pos", compressor={"id": "pickle", "protocol": 4}),
        **{"data/robot0_eef_pos/0.0": pickle.dumps(Harm())},
    )
    with pytest.raises(SourceError, match="the compressor 'pickle' is not one of blosc"):
        importer(path).read("0")
    path = rewritten(tmp_path / "b.zip", **about("data/robot0_eef_pos", filters=[{"id": "pickle", "protocol": 4}]))
    with pytest.raises(SourceError, match="filters are not read; refused"):
        importer(path).read("0")
    assert not Path("/tmp/wamkit-zarr-was-here").exists()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "data/robot0_eef_pos",
            {"chunks": [1, 1], "shape": [500_000_000, 1]},
            "is .500000000, 1., but",
        ),
        ("meta/episode_ends", {"chunks": [1], "shape": [50_000_000]}, "declares 50000000 chunks"),
        ("meta/episode_ends", {"chunks": [1], "shape": [1_000_000]}, "meta/episode_ends/1 is missing"),
        ("data/camera0_rgb", {"shape": [15, 16_000, 16_000, 3]}, "declares 16000x16000 pixels"),
        ("data/camera0_rgb", {"chunks": [1, 16_000, 16_000, 3]}, "are larger than any array"),
        ("data/camera0_rgb", {"chunks": [1, 1, 1, 1]}, "data/camera0_rgb/0.0.0.1 is missing"),
        ("data/camera0_rgb", {"chunks": [1, 32, 0, 3]}, "chunks is 0 instead of a whole number"),
        ("data/camera0_rgb", {"chunks": [1, 64, 64, 3]}, "0.0.0.0 is damaged"),
        ("data/camera0_rgb", {"shape": [40, 32, 32, 3]}, "camera0 has 40 images for 15 rows"),
        ("data/robot0_eef_pos", {"chunks": [7, 3]}, "robot0_eef_pos/1.0 is missing"),
        ("data/robot0_eef_pos", {"chunks": [30, 3]}, "unpacks to 180 bytes instead of 360"),
        ("data/robot0_eef_pos", {"dtype": "|O"}, "is no array of numbers"),
        ("data/robot0_eef_pos", {"dtype": [["a", "<f4"]]}, "'dtype' is a list instead of a str"),
        ("data/robot0_eef_pos", {"shape": None}, "'shape' is None instead of a list"),
        ("data/robot0_eef_pos", {"zarr_format": 3}, "zarr_format is 3, and version 2 is read"),
    ],
)
def test_declared_shapes_are_checked_before_anything_is_unpacked(tmp_path, name, changes, message):
    path = rewritten(tmp_path / "a.zip", **about(name, **changes))
    with pytest.raises(SourceError, match=rf"a.zip.*: .*{message}") as error:
        source = importer(path)
        source.layout()
        list(source.read("0").images["camera0"]())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("codec", [None, "blosc", "zlib", "gzip", "bz2", "zstd", "lz4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_those_that_zarr_writes(tmp_path, codec, order):
    """With chunks that end beyond the array, read in whole and in part; then with a chunk that unpacks to more."""
    values = np.random.default_rng(0).normal(size=(23, 5)).astype(np.float32)
    compressor = codec and numcodecs.get_codec({"id": codec})
    group = zarr.open_group(str(tmp_path / "a"), mode="w", zarr_format=2)
    made = group.create_array("x", shape=(23, 5), chunks=(4, 3), dtype="f4", compressors=compressor, order=order)
    made[:] = values
    array = Zarr(tmp_path / "a").array("x")
    np.testing.assert_array_equal(array.read(), values)
    for start, stop in ((0, 1), (3, 9), (22, 23), (8, 8)):
        np.testing.assert_array_equal(array.read(start, stop), values[start:stop])
    more = np.zeros(10_000, np.float32).tobytes()
    (tmp_path / "a/x/1.1").write_bytes(more if codec is None else bytes(compressor.encode(more)))
    with pytest.raises((SourceError, StoreError), match="x/1.1"):
        array.read()


def test_a_folder_whose_files_lead_out_or_never_end(tmp_path):
    folder = tmp_path / "session.zarr"
    with zipfile.ZipFile(SESSION) as file:
        file.extractall(folder)
    chunk = folder / "data/robot0_eef_pos/0.0"
    chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="leads out of this folder"):
        importer(folder).read("0")
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(SourceError, match="is a pipe, not a file"):
        importer(folder).read("0")

"""UMI, on a session that zarr 2 wrote: rows, images and what was done next belong together; damage is named."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.importers import IMPORTERS, SourceError
from wamkit.data.importers.run import Import, import_data
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

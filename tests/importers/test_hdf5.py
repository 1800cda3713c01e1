"""robomimic, LIBERO and ALOHA: numbers exact, images in their rows and upright, what is dangerous refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.importers import IMPORTERS, SourceError
from wamkit.data.importers.run import Import, import_data
from wamkit.registry import load_package

load_package("wamkit.data.importers")
FILES = Path(__file__).parent / "data/hdf5"
SOURCES = {
    "robomimic": FILES / "robomimic.hdf5",
    "libero": FILES / "libero_demo.hdf5",
    "aloha": FILES,
    "maniskill": FILES / "maniskill.h5",
}


def importer(name, path=None, **options):
    cls = IMPORTERS.get(name)
    return cls(SOURCES[name] if path is None else path, cls.Options(**options))


def stored(name, out, **options):
    made = importer(name, **options)
    return import_data(Import(format=name, source=SOURCES[name], out=out), made.options)


def grey(film, rows=slice(-6, None)) -> list[int]:
    """Which row each image (T, 3, H, W) is of."""
    return (film[:, :, rows].astype(float).mean((1, 2, 3)) / 10).round().astype(int).tolist()


def test_robomimic(tmp_path):
    store = stored("robomimic", tmp_path / "o", text="lift the cube")
    assert [m.source for m in store.episodes] == ["demo_0", "demo_2", "demo_10"]
    with h5py.File(SOURCES["robomimic"]) as file:
        for e, name in ((1, "demo_2"), (2, "demo_10")):
            demo, episode = file[f"data/{name}"], store.episode(e)
            np.testing.assert_array_equal(episode.action, demo["actions"][()].astype(np.float32))
            want = np.concatenate([demo[f"obs/robot0_{k}"][()] for k in ("eef_pos", "eef_quat", "gripper_qpos")], 1)
            np.testing.assert_array_equal(episode.proprio, want.astype(np.float32))
            assert grey(episode.images[:, 0]) == list(range(len(episode)))
            assert grey(episode.images[:, 1]) == list(range(1, len(episode) + 1))
            assert episode.success.tolist() == [False] * (len(episode) - 1) + [True] and episode.text == "lift the cube"
    assert list(importer("robomimic", filter="train").episodes()) == ["demo_0", "demo_10"]
    with pytest.raises(SourceError, match="there is no filter 'test'; there are train"):
        importer("robomimic", filter="test").episodes()
    metadata = load_metadata(store.root)
    assert (
        metadata.embodiment == "Panda"
        and metadata.cameras["robot0_eye_in_hand"].role == "wrist"
        and store.layout.fps == 20
    )


def test_libero_images_come_after_each_action(tmp_path):
    """Action t is t / 10, the observation after it has x = t / 100. Stored, action t + 1 follows that observation."""
    store = stored("libero", tmp_path / "o")
    episode = store.episode(1)
    assert len(episode) == 7 and episode.text == "turn on the stove"
    np.testing.assert_allclose(episode.proprio[:, 0], np.arange(7) / 100, atol=1e-7)
    np.testing.assert_allclose(episode.action[:, 0], np.arange(1, 8) / 10, atol=1e-7)
    assert grey(episode.images[:, 0], slice(0, 6)) == list(range(7)) and episode.success[-1]
    before = importer("libero", offset=0).read("libero_demo.hdf5:demo_1")
    assert len(before) == 8 and load_metadata(store.root).offset == 1


@pytest.mark.parametrize(("turn", "corner"), [("", (0, 0)), ("flipped", (1, 0)), ("rotated", (1, 1))])
def test_libero_is_turned_upright(turn, corner):
    """A red quarter, above left in the file: below left when flipped, below right when rotated by half a turn."""
    source = importer("libero", turn=turn)
    picture = next(source.read("libero_demo.hdf5:demo_0").images["agentview"]()).astype(int)
    quarters = {(i, j): picture[16 * i : 16 * i + 16, 16 * j : 16 * j + 16] for i in (0, 1) for j in (0, 1)}
    assert [k for k, q in quarters.items() if q[..., 0].mean() > 150] == [corner]
    assert source.metadata().cameras["agentview"].turned == turn


def test_aloha_plain_and_compressed(tmp_path):
    plain, mobile = tmp_path / "plain", tmp_path / "mobile"
    for folder, name in ((plain, "episode_0.hdf5"), (mobile, "episode_1.hdf5")):
        folder.mkdir()
        shutil.copy(FILES / name, folder)
    for folder, T, first in ((plain, 6, 0), (mobile, 5, 1)):
        source = importer("aloha", folder, text="pick the cup")
        store = import_data(Import(format="aloha", source=folder, out=tmp_path / f"out{T}"), source.options)
        episode = store.episode(0)
        np.testing.assert_allclose(episode.proprio[:, 0], np.arange(T) / 10, atol=1e-6)
        np.testing.assert_allclose(episode.action[:, 0], np.arange(T) / 10 + 0.05, atol=1e-6)
        assert grey(episode.images[:, 0], slice(12, None)) == list(range(T))
        assert grey(episode.images[:, 1], slice(12, None)) == list(range(1, T + 1))
        assert (episode.images[:, 0, 0, :6].mean() > 200) and (episode.images[:, 0, 2, :6].mean() < 80), "red stays red"
        assert ("base_action" in episode.extras) == (first == 1) and episode.extras["observation.velocity"].shape == (
            T,
            14,
        )
    swapped = next(importer("aloha", mobile, swap=True).read("episode_1.hdf5").images["cam_high"]())
    assert swapped[:6, :, 2].mean() > 200


def test_maniskill_drops_what_was_seen_last(tmp_path):
    """Row t has joint 0 at t / 10, action t is t / 10, image t shows t. The last observation is dropped."""
    store = stored("maniskill", tmp_path / "o")
    for e, T in ((0, 5), (1, 6)):
        episode = store.episode(e)
        np.testing.assert_allclose(episode.proprio[:, 0], np.arange(T) / 10, atol=1e-6)
        np.testing.assert_allclose(episode.action[:, 0], np.arange(T) / 10, atol=1e-6)
        assert grey(episode.images[:, 0]) == list(range(T)) and grey(episode.images[:, 1]) == list(range(1, T + 1))
        assert episode.text == "pick cube" and episode.success.tolist() == [False] * (T - 1) + [True]
    with h5py.File(SOURCES["maniskill"]) as file:
        np.testing.assert_array_equal(store.episode(1).proprio[:, 9:], file["traj_1/obs/agent/qvel"][:-1])
    metadata = load_metadata(store.root)
    assert metadata.control_mode == "pd_ee_delta_pos" and [f.kind for f in metadata.action] == ["position", "gripper"]
    assert [(f.name, f.stop - f.start, f.representation, f.unit) for f in metadata.state] == [
        ("qpos", 7, "absolute", "rad"),
        ("qpos_gripper", 2, "absolute", "m"),
        ("qvel", 7, "velocity", "rad/s"),
        ("qvel_gripper", 2, "velocity", "m/s"),
    ]
    assert metadata.cameras["hand_camera"].role == "wrist"
    shutil.copy(SOURCES["maniskill"], tmp_path / "alone.h5")
    with pytest.raises(SourceError, match="alone.json: it is missing"):
        importer("maniskill", tmp_path / "alone.h5").metadata()


@pytest.fixture
def spoiled(tmp_path):
    path = tmp_path / "robomimic.hdf5"
    shutil.copy(SOURCES["robomimic"], path)
    return path


def spoil(path, change) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def replace(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace("data/demo_2/actions", np.full((8, 7), np.nan)), "actions is NaN or infinite at step 0"),
        (replace("data/demo_2/actions", np.zeros((5, 7))), r"robot0_eef_pos is \(8, 3\) instead of \(5, -1\)"),
        (lambda f: f["data/demo_2/obs"].pop("robot0_eef_quat"), "it has no 'obs/robot0_eef_quat' in /data/demo_2"),
        (
            replace("data/demo_2/actions", h5py.ExternalLink("/etc/passwd", "/x")),
            "is a link to another file, /etc/passwd; refused",
        ),
    ],
)
def test_damage_and_danger_are_named(spoiled, change, message):
    spoil(spoiled, change)
    with pytest.raises(SourceError, match=message) as error:
        importer("robomimic", spoiled, text="x").read("demo_2")
    assert "episode demo_2" in str(error.value) and str(spoiled) in str(error.value)


def test_numbers_that_lie_in_another_file_or_claim_too_much_are_refused(spoiled):
    def elsewhere(file):
        del file["data/demo_0/actions"]
        file["data/demo_0"].create_dataset("actions", (6, 7), "f8", external=[("/etc/passwd", 0, 336)])

    def huge(file):
        del file["data/demo_2/actions"]
        file["data/demo_2"].create_dataset("actions", (2**31, 7), "f8", chunks=(1024, 7))

    spoil(spoiled, elsewhere)
    spoil(spoiled, huge)
    with pytest.raises(SourceError, match="stores its values in another file; refused"):
        importer("robomimic", spoiled).read("demo_0")
    with pytest.raises(SourceError, match="declares 120259084288 bytes"):
        importer("robomimic", spoiled).read("demo_2")


def test_files_that_are_cut_off_or_another_format(tmp_path, spoiled):
    spoiled.write_bytes(spoiled.read_bytes()[:5000])
    with pytest.raises(SourceError, match="robomimic.hdf5: .*truncated file"):
        importer("robomimic", spoiled).layout()
    with pytest.raises(SourceError, match="there is no group 'data' with demonstrations in it; is it LIBERO's"):
        importer("libero", FILES / "episode_0.hdf5").layout()
    with pytest.raises(SourceError, match="there is no episode_0.hdf5 in it; is it ALOHA's"):
        importer("aloha", tmp_path / "empty").layout()


def big_jpeg(side: int) -> bytes:
    """A small JPEG image whose header declares another size."""
    from imagecodecs import jpeg_encode

    data = bytearray(jpeg_encode(np.zeros((16, 16, 3), np.uint8)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = side.to_bytes(2, "big") * 2
    return bytes(data)


def never_written(name, shape, dtype="u1", **options):
    def change(file):
        if name in file:
            del file[name]
        file.create_dataset(name, shape, dtype, **options)

    return change


IMAGE = "data/demo_0/obs/agentview_image"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (never_written(IMAGE, (6, 16_000, 16_000, 3), chunks=(1, 16_000, 16_000, 3)), "too large to unpack"),
        (never_written(IMAGE, (6, 16_000, 16_000, 3), chunks=(1, 1000, 1000, 3)), "0 of its 1536 parts are there"),
        (never_written(IMAGE, (6, 32, 32, 3)), "0 of its 1 parts are there"),
        (never_written(IMAGE, (10**9, 32, 32, 3), chunks=(1, 32, 32, 3)), "0 of its 1000000000 parts are there"),
        (replace(IMAGE, np.zeros((6, 32, 32, 4), np.uint8)), "uint8 .* instead of uint8 .H, W, 3."),
        (replace(IMAGE, np.zeros((6, 32), np.uint8)), "uint8 .6, 32. instead of uint8 .T, H, W, 3."),
        (replace("data/demo_0/actions", np.zeros((6, 70_000), "i1")), "columns of /data/demo_0/actions is 70000"),
        (replace("data/demo_0/actions", np.zeros(6)), "actions is .6,. instead of .T, n."),
        (replace("data/demo_0/actions", b"text"), "holds object instead of numbers"),
        (replace("data", h5py.ExternalLink("/dev/zero", "/x")), "is a link to another file, /dev/zero; refused"),
        (replace("data", h5py.SoftLink("/data")), "is a link to a link to a link"),
        (lambda f: f["data"].attrs.create("env_args", "[" * 1000), "attribute env_args cannot be read as JSON"),
        (lambda f: f["data"].attrs.create("env_args", "[]"), "attribute env_args is JSON, but no object"),
        (lambda f: f["data"].attrs.create("env_args", '{"env_kwargs": []}'), "env_kwargs .* is no object"),
        (lambda f: f["data"].attrs.create("env_args", '{"env_kwargs": {"control_freq": "x"}}'), "control_freq .* 'x'"),
        (lambda f: f["data"].attrs.create("env_args", 7), "attribute env_args is no text"),
    ],
)
def test_declared_sizes_and_links_are_checked_before_anything_is_read(spoiled, change, message):
    spoil(spoiled, change)
    with pytest.raises(SourceError, match=f"robomimic.hdf5.*: .*{message}") as error:
        importer("robomimic", spoiled).metadata()
    assert "\n" not in str(error.value) and ";" in str(error.value)


def test_sizes_that_overflow_and_links_behind_links(spoiled, tmp_path):
    """2^32 times 2^32 values are 0 in 64 bits. A link within the file may pass through one to another file."""
    os.mkfifo(tmp_path / "pipe.h5")

    def change(file):
        never_written("data/demo_0/actions", (2**32, 2**32), chunks=(1000, 1000))(file)
        file["away"] = h5py.ExternalLink(str(tmp_path / "pipe.h5"), "/")
        replace("data/demo_2/actions", h5py.SoftLink("/away/x"))(file)
        file["data/here"] = file["data/demo_10"]["actions"][()]
        replace("data/demo_10/actions", h5py.SoftLink("/data/here"))(file)

    spoil(spoiled, change)
    with pytest.raises(SourceError, match="actions declares 18446744073709551616 bytes"):
        importer("robomimic", spoiled).read("demo_0")
    with pytest.raises(SourceError, match="is a link to another file, .*pipe.h5; refused"):
        importer("robomimic", spoiled).read("demo_2")
    assert len(importer("robomimic", spoiled).read("demo_10")) > 1


def test_images_are_as_many_as_the_steps(spoiled):
    spoil(spoiled, replace(IMAGE, np.zeros((9, 32, 32, 3), np.uint8)))
    with pytest.raises(SourceError, match=r"agentview_image' has 9 images for 6 steps"):
        next(importer("robomimic", spoiled).read("demo_0").images["agentview"]())


def test_a_jpeg_that_declares_gigabytes_is_not_unpacked(tmp_path):
    shutil.copy(FILES / "episode_1.hdf5", tmp_path)

    def change(file):
        images = "observations/images/cam_high"
        rows, packed = np.zeros((len(file[images]), 2000), np.uint8), np.frombuffer(big_jpeg(65_000), np.uint8)
        rows[:, : len(packed)] = packed
        replace(images, rows)(file)

    spoil(tmp_path / "episode_1.hdf5", change)
    with pytest.raises(SourceError, match="cam_high' declares 65000x65000 pixels, more than 33554432; refused"):
        importer("aloha", tmp_path).layout()


@pytest.mark.parametrize(
    "content", ["[" * 100_000 + "]" * 100_000, "[]", '{"env_info": {}}', '{"env_info": 10', "\xff"]
)
def test_maniskills_facts_are_checked(tmp_path, content):
    for name in ("maniskill.h5", "maniskill.json"):
        shutil.copy(FILES / name, tmp_path)
    (tmp_path / "maniskill.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(SourceError, match="maniskill.json") as error:
        importer("maniskill", tmp_path / "maniskill.h5").metadata()
    assert len(str(error.value)) < 900
    (tmp_path / "maniskill.json").unlink()
    (tmp_path / "maniskill.json").symlink_to("/dev/zero")
    with pytest.raises(SourceError, match="maniskill.json: it is a pipe or a device instead of a file"):
        importer("maniskill", tmp_path / "maniskill.h5").metadata()

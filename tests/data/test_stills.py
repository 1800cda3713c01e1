"""Images stored as PNG or JPEG: exact, read one by one, and nothing that a file declares is trusted."""

from __future__ import annotations

import dataclasses
import io
import json
import resource
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from recordings import CAMERAS, FPS, LAYOUT, SIZE, content, make_episode, psnr, without_checksums
from still_recordings import (
    DATA,
    DEPTH,
    FRONT,
    LENGTHS,
    WRIST,
    cells_of,
    edit_features,
    png,
    put,
    still_episode,
)

from wamkit.data.format.frame_cache import FrameCache
from wamkit.data.format.stills import decode_image, depth_map, encode_png
from wamkit.data.format.store import Store, StoreError
from wamkit.data.format.video import encode_video
from wamkit.data.loading.dataset import open_frames, spec_of
from wamkit.data.loading.lazy_frames import VideoFrames
from wamkit.data.validate import validate


def test_what_is_appended_comes_back_exactly(exact):
    assert exact.cameras == CAMERAS and exact.layout.stills == CAMERAS and not (exact.root / "videos").exists()
    for index, length in enumerate(LENGTHS):
        wrote, read = still_episode(index, length), exact.episode(index)
        assert np.array_equal(read.images, wrote.images) and np.array_equal(read.action, wrote.action)
        assert np.array_equal(exact.decode_steps(index, "wrist", [1, 5, 6]), wrote.images[[1, 5, 6], 1])
        small = exact.decode(index, "front", (16, 16)).astype(float)
        assert np.abs(small - wrote.images[:, 0].reshape(length, 3, 16, 2, 16, 2).mean((3, 5))).max() <= 1
    again = Store.open_or_create(exact.root, **LAYOUT, stills=CAMERAS, depth=(DEPTH,))
    assert again.layout == exact.layout


def test_files_are_what_lerobot_writes(exact):
    info = json.loads((exact.root / "meta/info.json").read_text())
    assert info["features"][FRONT] == {
        "dtype": "image",
        "shape": [SIZE, SIZE, 3],
        "names": ["height", "width", "channels"],
    }
    assert info["video_path"] is None
    table = pq.read_table(exact.root / DATA)
    assert table.schema.field(FRONT).type == pa.struct({"bytes": pa.binary(), "path": pa.string()})
    assert table[FRONT][3].as_py()["path"] == "frame-000003.png"
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features[FRONT] == features["observation.images.far"] == {"_type": "Image"}
    stats = json.loads((exact.root / "meta/stats.json").read_text())
    images = np.concatenate([exact.decode(e, "front") for e in range(3)]) / 255
    assert np.allclose(np.ravel(stats[FRONT]["mean"]), images.mean((0, 2, 3)))
    assert pq.ParquetFile(exact.root / DATA).num_row_groups == 1, "one an episode"


def test_same_episodes_same_bytes_whoever_encodes(exact, tmp_path):
    store = Store.create(tmp_path / "data", **LAYOUT, stills=CAMERAS, depth=(DEPTH,))
    for seed, length in enumerate(LENGTHS):
        one = still_episode(seed, length)
        encoded = {c: [encode_png(p.transpose(1, 2, 0)) for p in one.images[:, v]] for v, c in enumerate(CAMERAS)}
        store.append(dataclasses.replace(one, images=None), encoded)
    store.finalize()
    assert content(tmp_path / "data") == content(exact.root)


def test_a_video_and_images_in_one_store(mixed):
    for index, length in enumerate(LENGTHS):
        images = make_episode(index, length).images
        read = mixed.episode(index).images
        assert np.array_equal(read[:, 1], images[:, 1]) and psnr(read[:, 0], images[:, 0]) > 38
    assert len(list((mixed.root / "videos").iterdir())) == 1


def test_training_and_validation_read_it(exact, mixed):
    for store in (exact, mixed):
        expected = np.concatenate([store.episode(e).images for e in range(3)])
        assert np.array_equal(FrameCache.build_or_open(store).frames, expected)
        index = np.random.default_rng(0).integers(0, sum(LENGTHS), (6, 4))
        assert np.array_equal(VideoFrames(store)[index], expected[index])
        batches = []
        for budget in (1.0, 0.0):
            frames, _ = open_frames(store.root, cache_gb=budget)
            batches.append(frames.windows(spec_of(store, 4, (2, 4)), seed=0, batch_size=6).batch(0))
        assert batches[0].obs.shape == (6, 2, 3, SIZE, SIZE)
        assert torch.equal(batches[0].obs, batches[1].obs) and torch.equal(batches[0].future, batches[1].future)
        assert not [f for f in validate(store.root, every_frame=True, progress=False) if f.level == "error"]


@pytest.mark.parametrize("groups", [7, 1000])
def test_many_episodes_in_one_file(exact, exact_copy, groups):
    """lerobot's own files; its tools do not keep a row group for each episode."""
    without_checksums(exact_copy)
    tables = [pq.read_table(exact_copy / f"data/chunk-000/file-00{e}.parquet") for e in range(3)]
    pq.write_table(pa.concat_tables(tables), exact_copy / "data/chunk-000/file-000.parquet", row_group_size=groups)
    rows = []
    for path in sorted((exact_copy / "meta/episodes/chunk-000").iterdir()):
        rows += [r | {"data/file_index": 0} for r in pq.read_table(path).to_pylist()]
        path.unlink()
    pq.write_table(pa.Table.from_pylist(rows), exact_copy / "meta/episodes/chunk-000/file-000.parquet")
    store = Store.open(exact_copy)
    for index in range(3):
        for camera in CAMERAS:
            assert np.array_equal(store.decode(index, camera), exact.decode(index, camera))
        assert np.array_equal(store.decode_depth(index, "far"), exact.decode_depth(index, "far"))
    assert np.array_equal(store.decode_steps(2, "wrist", [0, 13, 29]), exact.decode(2, "wrist")[[0, 13, 29]])
    index = np.array([[45, 0], [6, 7]])
    assert np.array_equal(VideoFrames(store)[index], VideoFrames(exact)[index])


def test_numbers_are_read_without_images(exact, monkeypatch):
    asked = []
    for name in ("read", "iter_batches"):
        original = getattr(pq.ParquetFile, name)

        def spy(self, *args, _original=original, **named):
            asked.extend(c for c in [*args, named.get("columns")] if isinstance(c, list))
            return _original(self, *args, **named)

        monkeypatch.setattr(pq.ParquetFile, name, spy)
    Store.open(exact.root).numeric()
    read = {name for names in asked for name in names}
    assert "action" in read and not read & {FRONT, WRIST, "observation.images.far"}
    asked.clear()
    exact.decode(0, "wrist")
    assert asked == [[0], [WRIST]]


def test_an_episode_is_not_held_as_a_whole(tmp_path):
    """Neither while one of its images is read, nor while all are, one after the other."""
    layout = LAYOUT | {"cameras": ("front",), "image_shape": (3, 256, 256), "stills": ("front",)}
    images = np.random.default_rng(0).integers(0, 256, (128, 1, 3, 256, 256), np.uint8)
    store = Store.create(tmp_path, **layout)
    store.append(make_episode(0, 128, cameras=("front",), images=images))
    size = (tmp_path / "data/chunk-000/file-000.parquet").stat().st_size
    pool, largest = pa.default_memory_pool(), 0
    with store.open_video(0, "front") as film:
        before = pool.bytes_allocated()
        for number, picture in enumerate(film.iter_frames(range(128))):
            assert np.array_equal(picture.to_ndarray()[::64], images[number, 0].transpose(1, 2, 0)[::64])
            largest = max(largest, pool.bytes_allocated() - before)
    assert size > 25e6 and largest < size / 3


def test_png_of_other_writers(exact):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    picture, maps = rng.integers(0, 256, (20, 30, 3), np.uint8), rng.integers(0, 65536, (20, 30)).astype(np.uint16)

    def save(array, kind, **options):
        out = io.BytesIO()
        image.fromarray(array).save(out, kind, **options)
        return out.getvalue()

    rgb = decode_image(save(picture, "PNG"), (20, 30)).to_ndarray()
    assert np.array_equal(rgb, picture) and np.array_equal(image.open(io.BytesIO(encode_png(picture))), picture)
    assert np.array_equal(depth_map(save(maps, "PNG"), (20, 30)), maps)
    assert np.array_equal(image.open(io.BytesIO(encode_png(maps))), maps)
    smooth = np.tile(np.linspace(30, 220, 32).astype(np.uint8)[:, None, None], (1, 48, 3))
    jpeg = decode_image(save(smooth, "JPEG", quality=95), (32, 48)).to_ndarray(format="rgb24")
    assert np.abs(jpeg.astype(int) - smooth).max() < 6
    for array in (maps, maps.astype(np.float32) / 1000):
        read = depth_map(save(array, "TIFF", compression="raw"), (20, 30))
        assert read.dtype == array.dtype and np.array_equal(read, array)
    with pytest.raises(StoreError, match="not an uncompressed one"):
        depth_map(save(maps, "TIFF", compression="tiff_adobe_deflate"), (20, 30))
    with pytest.raises(StoreError, match="20x30 instead of 16x16"):
        depth_map(save(maps, "TIFF", compression="raw"), (16, 16))
    whole = save(maps, "TIFF", compression="raw")
    for end in range(8, len(whole), 61):
        with pytest.raises(StoreError, match="TIFF"):
            depth_map(whole[:end], (20, 30))
    with pytest.raises(StoreError, match="cannot be decoded"):  # declares more than the data set does
        decode_image(save(np.zeros((2000, 3000, 3), np.uint8), "JPEG"), (32, 32))


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ({"bytes": png(16, 16)}, "it is 16x16 instead of 32x32"),
        ({"bytes": png(60_000, 60_000, body=b"0")}, "it is 60000x60000 instead of 32x32"),
        ({"bytes": png(32, 32, body=b"0")}, "it cannot be decoded"),
        ({"bytes": png(32, 32)[:-14]}, "it is cut off or damaged"),
        ({"bytes": png(32, 32)[:60] + b"\x07" + png(32, 32)[61:]}, "it cannot be decoded"),
        ({"bytes": None, "path": "/etc/passwd"}, "it is not in the file, only its name '/etc/passwd'"),
        (None, "it is not in the file; wamkit"),
        ({"bytes": b"ffconcat version 1.0\nfile other.png\n"}, "neither PNG nor JPEG"),
        ({"bytes": encode_png(np.zeros((SIZE, SIZE), np.uint16))}, "16 bits a channel.*is_depth_map"),
    ],
)
def test_an_image_that_is_not_what_it_should_be(exact_copy, cell, reason):
    cells = cells_of(exact_copy, WRIST)
    put(exact_copy, WRIST, [*cells[:4], cell, *cells[5:]], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    store = Store.open(exact_copy)
    assert store.decode_steps(1, "wrist", [0, 3]).shape == (2, 3, SIZE, SIZE), "the others are as they were"
    with pytest.raises(StoreError, match=rf"file-001.parquet \(episode 1, camera wrist\): {WRIST}, step 4: .*{reason}"):
        store.decode(1, "wrist")
    found = [str(f) for f in validate(exact_copy, progress=False) if f.level == "error"]
    assert len(found) == 1 and "step 4" in found[0]


def test_a_column_that_holds_no_images(exact_copy):
    put(exact_copy, WRIST, ["a.png"] * 9)
    with pytest.raises(StoreError, match=r"episode 1, camera wrist\): column .* holds 9 times string instead of"):
        Store.open(exact_copy).decode(1, "wrist")


def test_what_does_not_show_is_not_unpacked():
    """A megabyte of text beside the pixels may become hundreds."""
    pack = zlib.compressobj(1)
    text = b"".join(pack.compress(bytes(1 << 20)) for _ in range(300)) + pack.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode_image(png(32, 32, (b"zTXt", b"k\0\0" + text)), (32, 32)).width == 32
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_names_that_collide_and_paths_that_lead_out(exact_copy):
    path = exact_copy / "meta/info.json"
    info = json.loads(path.read_text())
    edit_features(exact_copy, front=info["features"][FRONT])
    with pytest.raises(StoreError, match="must be distinct names"):
        Store.open(exact_copy)
    for where in ("../data/{chunk_index}-{file_index}.parquet", "/data/{chunk_index}-{file_index}.parquet"):
        path.write_text(json.dumps(info | {"data_path": where}))
        with pytest.raises(StoreError, match=f"info.json: data_path is '{where}'"):
            Store.open(exact_copy)


def test_append_refuses_what_does_not_fit(exact_copy):
    before, store = content(exact_copy), Store.open(exact_copy)
    one = still_episode(1, 9)
    right = {c: [encode_png(p.transpose(1, 2, 0)) for p in one.images[:, v]] for v, c in enumerate(CAMERAS)}
    for wrong, reason in (
        (right["wrist"][1:], "the store has 9 PNG"),
        (encode_video(one.images[:, 1], FPS), "the store has 9 PNG"),
        ([png(16, 16)] * 9, "it is 16x16 instead of 32x32"),
    ):
        with pytest.raises(StoreError, match=f"camera wrist: the images do not fit the episode: {reason}"):
            store.append(one, right | {"wrist": wrong})
    for maps, reason in (
        ({}, r"depth maps are of \[\], the store's \['far'\]"),
        ({"far": one.depth["far"][:, :9]}, r"depth of far is uint16 \(9, 9, 40\) instead of uint16 \(9, 24, 40\)"),
        ({"far": one.depth["far"].astype(np.float32)}, "depth of far is float32"),
    ):
        with pytest.raises(StoreError, match=reason):
            store.append(dataclasses.replace(one, depth=maps))
    assert content(exact_copy) == before
    with pytest.raises(StoreError, match="distinct names"):
        Store.create(exact_copy / "new", **LAYOUT, depth=(("wrist", 8, 8),))
    with pytest.raises(StoreError, match="must be some of the cameras"):
        Store.create(exact_copy / "new", **LAYOUT, stills=("top",))

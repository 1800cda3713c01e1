"""Pictures kept one by one, depth maps and what is said within an episode: exact, told apart, and nothing that a file
claims is believed.
"""

import dataclasses
import io
import json
import resource
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.unit.test_store import CAMERAS, FPS, LAYOUT, SIZE, content, make_episode, psnr

from wamkit.data.format import depth
from wamkit.data.format.frame_cache import FrameCache
from wamkit.data.format.stills import decode_image, depth_map, encode_png
from wamkit.data.format.store import Store, StoreError
from wamkit.data.format.video import encode_video
from wamkit.data.loading.dataset import open_frames, spec_of
from wamkit.data.loading.lazy_frames import VideoFrames
from wamkit.data.validate import validate
from wamkit.types import Span

LENGTHS, FRONT, WRIST = (7, 9, 30), "observation.images.front", "observation.images.wrist"
DATA = "data/chunk-000/file-001.parquet"
DEPTH = ("far", 24, 40)


def episode(seed, length):
    """As `make_episode`, with a depth map that holds all there is from nothing measured to the farthest."""
    maps = np.random.default_rng(seed).integers(0, 65536, (length, *DEPTH[1:])).astype(np.uint16)
    maps[:, 0, :2] = 0, 65535
    return dataclasses.replace(make_episode(seed, length), depth={"far": maps})


def fill(root, **changes):
    store = Store.create(root, **LAYOUT | {"stills": CAMERAS, "depth": (DEPTH,)} | changes)
    for seed, length in enumerate(LENGTHS):
        store.append(episode(seed, length) if store.depth_cameras else make_episode(seed, length))
    store.finalize()
    return Store.open(root)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("stills") / "data")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("mixed") / "data", stills=("wrist",), depth=())


@pytest.fixture
def copy(filled, tmp_path):
    for name, data in content(filled.root).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def put(root, key, cells, kind=None):
    """Puts other cells into a column of episode 1's data."""
    table = pq.read_table(root / DATA)
    table = table.drop_columns([key]) if key in table.column_names else table
    pq.write_table(
        table.append_column(key, cells if isinstance(cells, pa.Array) else pa.array(cells, kind)), root / DATA
    )


def pictures(root, key):
    return pq.read_table(root / DATA)[key].to_pylist()


def tell(root, **features):
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    for key, changes in features.items():
        info["features"].setdefault(key, {}).update(changes)
    path.write_text(json.dumps(info))


def png(height, width, *more, body=b""):
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *more]
    chunks += [(b"IDAT", zlib.compress(body or bytes(height * (3 * width + 1)))), (b"IEND", b"")]
    parts = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_what_is_appended_comes_back_exactly(filled):
    assert filled.cameras == CAMERAS and filled.layout.stills == CAMERAS and not (filled.root / "videos").exists()
    for index, length in enumerate(LENGTHS):
        wrote, read = episode(index, length), filled.episode(index)
        assert np.array_equal(read.images, wrote.images) and np.array_equal(read.action, wrote.action)
        assert np.array_equal(filled.decode_steps(index, "wrist", [1, 5, 6]), wrote.images[[1, 5, 6], 1])
        small = filled.decode(index, "front", (16, 16)).astype(float)
        assert np.abs(small - wrote.images[:, 0].reshape(length, 3, 16, 2, 16, 2).mean((3, 5))).max() <= 1
    again = Store.open_or_create(filled.root, **LAYOUT, stills=CAMERAS, depth=(DEPTH,))
    assert again.layout == filled.layout


def test_files_are_what_lerobot_writes(filled):
    info = json.loads((filled.root / "meta/info.json").read_text())
    assert info["features"][FRONT] == {
        "dtype": "image",
        "shape": [SIZE, SIZE, 3],
        "names": ["height", "width", "channels"],
    }
    assert info["video_path"] is None
    table = pq.read_table(filled.root / DATA)
    assert table.schema.field(FRONT).type == pa.struct({"bytes": pa.binary(), "path": pa.string()})
    assert table[FRONT][3].as_py()["path"] == "frame-000003.png"
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features[FRONT] == features["observation.images.far"] == {"_type": "Image"}
    stats = json.loads((filled.root / "meta/stats.json").read_text())
    images = np.concatenate([filled.decode(e, "front") for e in range(3)]) / 255
    assert np.allclose(np.ravel(stats[FRONT]["mean"]), images.mean((0, 2, 3)))
    assert pq.ParquetFile(filled.root / DATA).num_row_groups == 1, "one an episode"


def test_same_episodes_same_bytes_whoever_encodes(filled, tmp_path):
    store = Store.create(tmp_path / "data", **LAYOUT, stills=CAMERAS, depth=(DEPTH,))
    for seed, length in enumerate(LENGTHS):
        one = episode(seed, length)
        encoded = {c: [encode_png(p.transpose(1, 2, 0)) for p in one.images[:, v]] for v, c in enumerate(CAMERAS)}
        store.append(dataclasses.replace(one, images=None), encoded)
    store.finalize()
    assert content(tmp_path / "data") == content(filled.root)


def test_a_film_and_pictures_in_one_store(mixed):
    for index, length in enumerate(LENGTHS):
        images = make_episode(index, length).images
        read = mixed.episode(index).images
        assert np.array_equal(read[:, 1], images[:, 1]) and psnr(read[:, 0], images[:, 0]) > 38
    assert len(list((mixed.root / "videos").iterdir())) == 1


def test_training_and_validation_read_it(filled, mixed):
    for store in (filled, mixed):
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
        assert not [f for f in validate(store.root, every_picture=True, progress=False) if f.level == "error"]


@pytest.mark.parametrize("groups", [7, 1000])
def test_many_episodes_in_one_file(filled, copy, groups):
    """lerobot's own files; its tools do not keep a row group for each episode."""
    tables = [pq.read_table(copy / f"data/chunk-000/file-00{e}.parquet") for e in range(3)]
    pq.write_table(pa.concat_tables(tables), copy / "data/chunk-000/file-000.parquet", row_group_size=groups)
    rows = []
    for path in sorted((copy / "meta/episodes/chunk-000").iterdir()):
        rows += [r | {"data/file_index": 0} for r in pq.read_table(path).to_pylist()]
        path.unlink()
    pq.write_table(pa.Table.from_pylist(rows), copy / "meta/episodes/chunk-000/file-000.parquet")
    store = Store.open(copy)
    for index in range(3):
        for camera in CAMERAS:
            assert np.array_equal(store.decode(index, camera), filled.decode(index, camera))
        assert np.array_equal(store.decode_depth(index, "far"), filled.decode_depth(index, "far"))
    assert np.array_equal(store.decode_steps(2, "wrist", [0, 13, 29]), filled.decode(2, "wrist")[[0, 13, 29]])
    index = np.array([[45, 0], [6, 7]])
    assert np.array_equal(VideoFrames(store)[index], VideoFrames(filled)[index])


def test_numbers_are_read_without_pictures(filled, monkeypatch):
    asked = []
    for name in ("read", "iter_batches"):
        original = getattr(pq.ParquetFile, name)

        def spy(self, *args, _original=original, **named):
            asked.extend(c for c in [*args, named.get("columns")] if isinstance(c, list))
            return _original(self, *args, **named)

        monkeypatch.setattr(pq.ParquetFile, name, spy)
    Store.open(filled.root).numeric()
    read = {name for names in asked for name in names}
    assert "action" in read and not read & {FRONT, WRIST, "observation.images.far"}
    asked.clear()
    filled.decode(0, "wrist")
    assert asked == [[0], [WRIST]]


def test_an_episode_is_not_held_as_a_whole(tmp_path):
    """Neither while one of its pictures is read, nor while all are, one after the other."""
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


def test_png_of_other_writers(filled):
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
def test_a_picture_that_is_not_what_it_should_be(copy, cell, reason):
    cells = pictures(copy, WRIST)
    put(copy, WRIST, [*cells[:4], cell, *cells[5:]], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    store = Store.open(copy)
    assert store.decode_steps(1, "wrist", [0, 3]).shape == (2, 3, SIZE, SIZE), "the others are as they were"
    with pytest.raises(StoreError, match=rf"file-001.parquet \(episode 1, camera wrist\): {WRIST}, step 4: .*{reason}"):
        store.decode(1, "wrist")
    found = [str(f) for f in validate(copy, progress=False) if f.level == "error"]
    assert len(found) == 1 and "step 4" in found[0]


def test_a_column_that_holds_no_pictures(copy):
    put(copy, WRIST, ["a.png"] * 9)
    with pytest.raises(StoreError, match=r"episode 1, camera wrist\): column .* holds 9 times string instead of"):
        Store.open(copy).decode(1, "wrist")


def test_what_does_not_show_is_not_unpacked():
    """A megabyte of text beside the pixels may become hundreds."""
    pack = zlib.compressobj(1)
    text = b"".join(pack.compress(bytes(1 << 20)) for _ in range(300)) + pack.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode_image(png(32, 32, (b"zTXt", b"k\0\0" + text)), (32, 32)).width == 32
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_names_that_collide_and_paths_that_lead_out(copy):
    path = copy / "meta/info.json"
    info = json.loads(path.read_text())
    tell(copy, front=info["features"][FRONT])
    with pytest.raises(StoreError, match="must be distinct names"):
        Store.open(copy)
    for where in ("../data/{chunk_index}-{file_index}.parquet", "/data/{chunk_index}-{file_index}.parquet"):
        path.write_text(json.dumps(info | {"data_path": where}))
        with pytest.raises(StoreError, match=f"info.json: data_path is '{where}'"):
            Store.open(copy)


def test_append_refuses_what_does_not_fit(copy):
    before, store = content(copy), Store.open(copy)
    one = episode(1, 9)
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
    assert content(copy) == before
    with pytest.raises(StoreError, match="distinct names"):
        Store.create(copy / "new", **LAYOUT, depth=(("wrist", 8, 8),))
    with pytest.raises(StoreError, match="must be some of the cameras"):
        Store.create(copy / "new", **LAYOUT, stills=("top",))


def test_depth_comes_back_exactly_and_is_no_camera(filled):
    assert filled.depth_cameras == ("far",) and "far" not in filled.cameras
    for index, length in enumerate(LENGTHS):
        wrote, read = episode(index, length).depth["far"], filled.episode(index).depth["far"]
        assert read.dtype == np.uint16 and np.array_equal(read, wrote)
    info = json.loads((filled.root / "meta/info.json").read_text())["features"]["observation.images.far"]
    assert info["shape"] == [24, 40, 1] and info["info"] == {"is_depth_map": True, "depth_unit": "mm"}
    assert not filled.episode(0, images=False).depth
    with pytest.raises(StoreError, match="no depth camera 'wrist'"):
        filled.decode_depth(0, "wrist")


@pytest.mark.parametrize("said", [{"info": {"is_depth_map": True}}, {"video_info": {"video.is_depth_map": True}}])
def test_what_is_marked_as_depth_is_no_camera(copy, said):
    tell(copy, **{WRIST: said})
    store = Store.open(copy)
    assert store.cameras == ("front",) and store.depth_cameras == ("wrist", "far")
    with pytest.raises(StoreError, match=r"episode 0, camera wrist\): .*step 0: it is PNG with 8 bits"):
        store.decode_depth(0, "wrist")


def test_units_of_depth(copy, filled):
    tell(copy, **{"observation.images.far": {"info": {"is_depth_map": True, "depth_unit": "m"}}})
    maps = np.array([[0, 1], [7, 65]], np.uint16)
    put(copy, "observation.images.far", [{"bytes": encode_png(np.resize(maps, DEPTH[1:]))}] * 9)
    assert set(np.unique(Store.open(copy).decode_depth(1, "far"))) == {0, 1000, 7000, 65000}
    with pytest.raises(StoreError, match="read-only"):  # what wamkit would append is in millimetres
        Store.open(copy).append(episode(1, 9))
    tell(copy, **{"observation.images.far": {"info": {"is_depth_map": True, "depth_unit": "ft"}}})
    with pytest.raises(StoreError, match=r"episode 1, camera far\): meta/info.json says depth_unit 'ft'"):
        Store.open(copy).decode_depth(1, "far")
    measured = np.array([0.5, 1.2344, 80, np.nan, np.inf], np.float32)
    feature = {"dtype": "image", "info": {"is_depth_map": True}}
    assert depth.millimetres(measured, feature).tolist() == [500, 1234, 65535, 0, 0], "floats are metres"


QUANTISED = {"video.depth_min": 0.01, "video.depth_max": 10.0, "video.shift": 3.5, "video.use_log": True}


def film_of_codes(codes, form="gray12le"):
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        options = {"x265-params": "lossless=1:log-level=error:keyint=2:bframes=0:pools=1:frame-threads=1"}
        stream = container.add_stream("libx265", rate=Fraction(20), options=options)
        stream.height, stream.width, stream.pix_fmt = *codes.shape[1:], form
        stream.codec_context.thread_count = 1
        for number, each in enumerate(codes):
            frame = av.VideoFrame.from_ndarray(each, format="gray12le").reformat(format=form)
            frame.pts, frame.time_base = number, Fraction(1, 20)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def test_films_of_depth_maps(tmp_path):
    """As lerobot 0.6 records them: HEVC of 12-bit codes, and in info.json how those were made."""
    store = Store.create(tmp_path, **LAYOUT | {"cameras": ("front", "far"), "image_shape": (3, 32, 64)})
    images = np.zeros((9, 2, 3, 32, 64), np.uint8)
    store.append(make_episode(0, cameras=("front", "far"), images=images))
    key = "observation.images.far"
    codes = np.arange(9 * 32 * 64).astype(np.uint16).reshape(9, 32, 64) % 4096
    path = tmp_path / f"videos/{key}/chunk-000/file-000.mp4"
    path.write_bytes(film_of_codes(codes))
    facts = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(facts).drop_columns([f"wamkit/sha256/{key}"]), facts)
    tell(tmp_path, **{key: {"shape": [32, 64, 1], "info": {"is_depth_map": True} | QUANTISED}})
    store = Store.open(tmp_path)
    assert store.cameras == ("front",) and store.depth_cameras == ("far",)
    low, high = np.log(3.51), np.log(13.5)
    metres = np.exp(low + codes / 4095.0 * (high - low)) - 3.5
    found = store.decode_depth(0, "far")
    assert np.abs(found - 1000 * metres).max() <= 0.51 and found.min() == 10 and found.max() == 10_000
    tell(tmp_path, **{key: {"info": {"is_depth_map": True} | QUANTISED | {"video.use_log": False}}})
    linear = 1000 * (0.01 + codes / 4095.0 * 9.99)
    assert np.abs(Store.open(tmp_path).decode_depth(0, "far") - linear).max() <= 0.51
    path.write_bytes(film_of_codes(codes, "yuv420p12le"))
    with pytest.raises(StoreError, match=r"episode 0, camera far\): its pixels are yuv420p12le"):
        Store.open(tmp_path).decode_depth(0, "far")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"video.shift": None}, r"lacks \['video.shift'\]"),
        ({"video.use_log": "yes"}, "lacks numbers"),
        ({"video.depth_min": 12.0}, "from 12.0 to 10.0 m"),
        ({"video.shift": -1.0}, "with a shift of -1.0"),
    ],
)
def test_codes_whose_making_is_not_known_are_not_guessed(said, reason):
    with pytest.raises(StoreError, match=reason):
        depth.distances(QUANTISED | said)


def entry(style, content, timestamp=None, **more):
    out = {"role": "assistant", "content": content, "style": style, "camera": None, "tool_calls": None} | more
    return out if timestamp is None else out | {"timestamp": timestamp}


def with_language(root, persistent, events):
    """Adds lerobot 0.6's two columns, which its annotators write with types inferred from what is in them."""
    put(root, "language_persistent", persistent)
    put(root, "language_events", events)
    for other in (0, 2):
        path = root / f"data/chunk-000/file-00{other}.parquet"
        table = pq.read_table(path)
        for key in ("language_persistent", "language_events"):
            table = table.append_column(key, pa.array([[]] * len(table)))
        pq.write_table(table, path)
    language = {"dtype": "language", "shape": [1], "names": None}
    tell(root, language_persistent=language, language_events=language)
    tell(root, note={"dtype": "string", "shape": [1], "names": None})


def test_subtasks_are_the_texts_of_their_steps(copy):
    said = [
        entry("task_aug", "push it", 0.0, role="user"),
        entry("plan", "1. reach 2. push", 0.0),
        entry("subtask", "reach", float(np.float32(0.1))),
        entry("subtask", "push", 0.3),
        entry("subtask", "reach", 0.35),
        entry("memory", None, 0.3),
    ]
    say = [{"type": "function", "function": {"name": "say", "arguments": {"text": "go"}}}]
    events = [[entry(None, None, tool_calls=say)], *[[]] * 7, [entry("vqa", "what?", camera=WRIST)]]
    with_language(copy, [said] * 9, events)
    store = Store.open(copy)
    texts = np.array(store.texts)[store.numeric()["task_index"]][7:16].tolist()
    assert texts == ["open the drawer"] * 2 + ["reach"] * 4 + ["push"] + ["reach"] * 2
    assert store.texts == ("press the button", "open the drawer", "reach", "push")
    assert store.episode(1).text == "open the drawer" and not store.episode(0).spans
    assert store.episode(1).spans == (Span(2, 6, "reach"), Span(6, 7, "push"), Span(7, 9, "reach"))
    assert open_frames(copy)[0].text_at(13) == "push"
    with pytest.raises(StoreError, match="read-only"):
        store.append(episode(1, 9))


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([[]] * 9),
        pa.array([None] * 9),
        pa.array(range(9)),
        pa.array([[{"style": "subtask", "content": None}, {"style": None, "content": "x"}]] * 9),
        pa.array([[{"style": "subtask", "content": "x", "timestamp": "soon"}]] * 9),
        None,
    ],
)
def test_language_that_says_nothing_is_no_obstacle(copy, cells):
    with_language(copy, pa.array([[]] * 9) if cells is None else cells, pa.array([[]] * 9))
    if cells is None:
        table = pq.read_table(copy / DATA)
        pq.write_table(table.drop_columns(["language_persistent", "language_events"]), copy / DATA)
    store = Store.open(copy)
    assert store.texts == ("press the button", "open the drawer") and not store.episode(1).spans
    assert not [f for f in validate(copy, progress=False) if f.level == "error"]


def test_the_declared_type_of_language(copy):
    """What lerobot's schema declares, in which calls of tools are JSON."""
    json_type = pa.json_() if hasattr(pa, "json_") else pa.string()
    names = {"role": pa.string(), "content": pa.string(), "style": pa.string(), "timestamp": pa.float32()}
    storage = pa.struct(names | {"camera": pa.string(), "tool_calls": pa.list_(pa.string())})
    kind = pa.struct(names | {"camera": pa.string(), "tool_calls": pa.list_(json_type)})
    cells = pa.array([[entry("subtask", "reach", 0.2, tool_calls=['{"a": 1}'])]] * 9, pa.list_(storage))
    put(copy, "language_persistent", cells.cast(pa.list_(kind)))
    tell(copy, language_persistent={"dtype": "language", "shape": [1], "names": None})
    path = copy / "data/chunk-000/file-000.parquet"
    assert "language_persistent" not in pq.read_table(path).column_names
    assert Store.open(copy).episode(1).spans == (Span(4, 9, "reach"),)

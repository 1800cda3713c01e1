"""Depth maps: exact, in millimetres, and never guessed."""

from __future__ import annotations

import io
import json
from fractions import Fraction

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from recordings import LAYOUT, make_episode
from still_recordings import (
    DEPTH,
    LENGTHS,
    WRIST,
    edit_features,
    put,
    still_episode,
)

from wamkit.data.format import depth
from wamkit.data.format.stills import encode_png
from wamkit.data.format.store import Store, StoreError


def test_depth_comes_back_exactly_and_is_no_camera(exact):
    assert exact.depth_cameras == ("far",) and "far" not in exact.cameras
    for index, length in enumerate(LENGTHS):
        wrote, read = still_episode(index, length).depth["far"], exact.episode(index).depth["far"]
        assert read.dtype == np.uint16 and np.array_equal(read, wrote)
    info = json.loads((exact.root / "meta/info.json").read_text())["features"]["observation.images.far"]
    assert info["shape"] == [24, 40, 1] and info["info"] == {"is_depth_map": True, "depth_unit": "mm"}
    assert not exact.episode(0, images=False).depth
    with pytest.raises(StoreError, match="no depth camera 'wrist'"):
        exact.decode_depth(0, "wrist")


@pytest.mark.parametrize("said", [{"info": {"is_depth_map": True}}, {"video_info": {"video.is_depth_map": True}}])
def test_what_is_marked_as_depth_is_no_camera(exact_copy, said):
    edit_features(exact_copy, **{WRIST: said})
    store = Store.open(exact_copy)
    assert store.cameras == ("front",) and store.depth_cameras == ("wrist", "far")
    with pytest.raises(StoreError, match=r"episode 0, camera wrist\): .*step 0: it is PNG with 8 bits"):
        store.decode_depth(0, "wrist")


def test_units_of_depth(exact_copy, exact):
    edit_features(exact_copy, **{"observation.images.far": {"info": {"is_depth_map": True, "depth_unit": "m"}}})
    maps = np.array([[0, 1], [7, 65]], np.uint16)
    put(exact_copy, "observation.images.far", [{"bytes": encode_png(np.resize(maps, DEPTH[1:]))}] * 9)
    assert set(np.unique(Store.open(exact_copy).decode_depth(1, "far"))) == {0, 1000, 7000, 65000}
    with pytest.raises(StoreError, match="read-only"):  # what wamkit would append is in millimetres
        Store.open(exact_copy).append(still_episode(1, 9))
    edit_features(exact_copy, **{"observation.images.far": {"info": {"is_depth_map": True, "depth_unit": "ft"}}})
    with pytest.raises(StoreError, match=r"episode 1, camera far\): meta/info.json says depth_unit 'ft'"):
        Store.open(exact_copy).decode_depth(1, "far")
    measured = np.array([0.5, 1.2344, 80, np.nan, np.inf], np.float32)
    feature = {"dtype": "image", "info": {"is_depth_map": True}}
    assert depth.millimetres(measured, feature).tolist() == [500, 1234, 65535, 0, 0], "floats are metres"


QUANTISED = {"video.depth_min": 0.01, "video.depth_max": 10.0, "video.shift": 3.5, "video.use_log": True}


def video_of_codes(codes, form="gray12le"):
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


def test_videos_of_depth_maps(tmp_path):
    """As lerobot 0.6 records them: HEVC of 12-bit codes, and in info.json how those were made."""
    store = Store.create(tmp_path, **LAYOUT | {"cameras": ("front", "far"), "image_shape": (3, 32, 64)})
    images = np.zeros((9, 2, 3, 32, 64), np.uint8)
    store.append(make_episode(0, cameras=("front", "far"), images=images))
    key = "observation.images.far"
    codes = np.arange(9 * 32 * 64).astype(np.uint16).reshape(9, 32, 64) % 4096
    path = tmp_path / f"videos/{key}/chunk-000/file-000.mp4"
    path.write_bytes(video_of_codes(codes))
    facts = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(facts).drop_columns([f"wamkit/sha256/{key}"]), facts)
    edit_features(tmp_path, **{key: {"shape": [32, 64, 1], "info": {"is_depth_map": True} | QUANTISED}})
    store = Store.open(tmp_path)
    assert store.cameras == ("front",) and store.depth_cameras == ("far",)
    low, high = np.log(3.51), np.log(13.5)
    metres = np.exp(low + codes / 4095.0 * (high - low)) - 3.5
    found = store.decode_depth(0, "far")
    assert np.abs(found - 1000 * metres).max() <= 0.51 and found.min() == 10 and found.max() == 10_000
    edit_features(tmp_path, **{key: {"info": {"is_depth_map": True} | QUANTISED | {"video.use_log": False}}})
    linear = 1000 * (0.01 + codes / 4095.0 * 9.99)
    assert np.abs(Store.open(tmp_path).decode_depth(0, "far") - linear).max() <= 0.51
    path.write_bytes(video_of_codes(codes, "yuv420p12le"))
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

"""The video codec: every frame in its place, and what cannot be decoded."""

from __future__ import annotations

import numpy as np
import pytest
from recordings import FPS, SIZE, grainy_frames, psnr

from wamkit.data.format.store import StoreError
from wamkit.data.format.video import decode_video, encode_video


def test_codec_keeps_every_frame_in_its_place():
    frames = grainy_frames(3, 31, 64)
    video = encode_video(frames, 80.0)
    assert video == encode_video(frames, 80.0)
    decoded = decode_video(video, 80.0, range(31), (64, 64), total=31)
    error = ((decoded[:, None].astype(np.float32) - frames[None]) ** 2).mean((2, 3, 4))
    assert (error.argmin(1) == np.arange(31)).all()
    assert (10 * np.log10(255**2 / error.diagonal())).min() > 40
    some = [1, 2, 17, 18, 30]
    assert np.array_equal(decode_video(video, 80.0, some, (64, 64)), decoded[some])
    small = decode_video(video, 80.0, [5], (64, 64), size=(32, 32))[0].astype(float)
    assert psnr(small, decoded[5].reshape(3, 32, 2, 32, 2).mean((2, 4))) > 35


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"numbers": [9]}, "frame 9 is missing"),
        ({"shape": (32, 48)}, "16x16 instead of 32x48"),
        ({"total": 10}, "9 frames instead of 10"),
    ],
)
def test_decoding_what_is_not_there(arguments, reason):
    video = encode_video(grainy_frames(0, 9, 16), FPS)
    with pytest.raises(StoreError, match=reason):
        decode_video(video, FPS, **{"numbers": [0], "shape": (16, 16), **arguments})


def test_a_playlist_in_a_videos_place_is_not_followed(tmp_path):
    """FFmpeg would read whatever files it names."""
    (tmp_path / "other.mp4").write_bytes(encode_video(grainy_frames(0, 4), FPS))
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(StoreError, match="cannot be decoded"):
        decode_video(tmp_path / "a.mp4", FPS, [0], (SIZE, SIZE))


@pytest.mark.parametrize("height, width", [(32, 32), (64, 48), (32, 80)])
def test_the_same_frames_give_the_same_bytes_whatever_lies_in_memory(height, width):
    """x264's macroblock trees read beyond small images: one encoding in fifty differed."""
    rng = np.random.default_rng(0)
    frames = np.ascontiguousarray(grainy_frames(3, 9, 96)[:, :, :height, :width])
    junk, found = [], set()
    for _ in range(150):
        junk = [*junk[-6:], np.full(rng.integers(500, 300_000), rng.integers(0, 255), np.uint8)]
        found.add(encode_video(frames, FPS))
    assert len(found) == 1

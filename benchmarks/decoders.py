"""torchcodec against PyAV: frames per CPU-second of the same videos, for random single frames and windows of 8.

Usage: pip install 'wamkit[torchcodec]', FFmpeg's libraries (apt-get install ffmpeg), then python benchmarks/decoders.py
  Videos of textured blobs, 128x128: H.264 as wamkit writes it, H.264 and AV1 as lerobot does (4:2:0, GOP 2)
"""

from __future__ import annotations

import io
import statistics
import time

import av
import numpy as np
from loading import STEPS, WINDOW, blobs

from wamkit.data.format.torchcodec import TorchcodecVideo, torchcodec_decoders
from wamkit.data.format.video import Video, encode_video

SIZE, FPS, DRAWS, ROUNDS = (128, 128), 10.0, 512, 5


def as_lerobot(images: np.ndarray, codec: str, options: dict[str, str]) -> bytes:
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=int(FPS), options=options)
        stream.height, stream.width, stream.pix_fmt, stream.codec_context.gop_size = *SIZE, "yuv420p", 2
        for image in images.transpose(0, 2, 3, 1):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    return data.getvalue()


def rate(video: Video, length: int, seed: int) -> float:
    starts = np.random.default_rng(seed).integers(0, STEPS - length, DRAWS // length)
    began = time.process_time()
    for start in starts.tolist():
        video.frames(range(start, start + length))
    return len(starts) * length / (time.process_time() - began)


def main() -> None:
    torchcodec_decoders()  # raises if it is missing
    images = blobs(0, SIZE[0])[:, 0]
    videos = {
        "H.264, wamkit's": encode_video(images, FPS),
        "H.264, 4:2:0": as_lerobot(images, "libx264", {"crf": "23"}),
        "AV1, 4:2:0": as_lerobot(images, "libsvtav1", {"crf": "30", "preset": "12"}),
    }
    for name, data in videos.items():
        decoders, opening = [], []
        for kind in (Video, TorchcodecVideo):
            began = time.process_time()
            for _ in range(20):
                kind(data, FPS, SIZE, STEPS).close()
            opening.append((time.process_time() - began) / 20 * 1000)
            decoders.append(kind(data, FPS, SIZE, STEPS))
        print(f"{name}: opening {opening[0]:.2f} ms by PyAV, {opening[1]:.2f} by torchcodec")
        for length in (1, WINDOW):
            rates = [[rate(video, length, seed) for video in decoders] for seed in range(ROUNDS + 1)][1:]
            pyav, torchcodec = (statistics.median(r) for r in zip(*rates, strict=True))
            ratio = torchcodec / pyav
            print(
                f"{name}, {length} each, frames a CPU-s: PyAV {pyav:,.0f}, torchcodec {torchcodec:,.0f} ({ratio:.2f})"
            )


if __name__ == "__main__":
    main()

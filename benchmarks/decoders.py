"""Is torchcodec worth it? Frames per second of CPU by either decoder, of the same films, random single frames and
windows of 8.

Usage: pip install 'wamkit[torchcodec]', FFmpeg's libraries (apt-get install ffmpeg), then python benchmarks/decoders.py
  H.264 as wamkit writes it, and H.264 and AV1 as lerobot does (4:2:0, a keyframe every two), textured blobs, 128x128
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


def as_lerobot(pictures: np.ndarray, codec: str, options: dict[str, str]) -> bytes:
    film = io.BytesIO()
    with av.open(film, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=int(FPS), options=options)
        stream.height, stream.width, stream.pix_fmt, stream.codec_context.gop_size = *SIZE, "yuv420p", 2
        for picture in pictures.transpose(0, 2, 3, 1):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
    return film.getvalue()


def rate(video: Video, length: int, seed: int) -> float:
    starts = np.random.default_rng(seed).integers(0, STEPS - length, DRAWS // length)
    began = time.process_time()
    for start in starts.tolist():
        video.frames(range(start, start + length))
    return len(starts) * length / (time.process_time() - began)


def main() -> None:
    torchcodec_decoders()  # loads it
    pictures = blobs(0, SIZE[0])[:, 0]
    films = {
        "H.264, wamkit's": encode_video(pictures, FPS),
        "H.264, 4:2:0": as_lerobot(pictures, "libx264", {"crf": "23"}),
        "AV1, 4:2:0": as_lerobot(pictures, "libsvtav1", {"crf": "30", "preset": "12"}),
    }
    for name, film in films.items():
        videos, opening = [], []
        for kind in (Video, TorchcodecVideo):
            began = time.process_time()
            for _ in range(20):
                kind(film, FPS, SIZE, STEPS).close()
            opening.append((time.process_time() - began) / 20 * 1000)
            videos.append(kind(film, FPS, SIZE, STEPS))
        print(f"{name}: opening {opening[0]:.2f} ms by PyAV, {opening[1]:.2f} by torchcodec")
        for length in (1, WINDOW):
            rates = [[rate(video, length, seed) for video in videos] for seed in range(ROUNDS + 1)][1:]
            pyav, torchcodec = (statistics.median(r) for r in zip(*rates, strict=True))
            print(
                f"{name}, {length} at once: {pyav:,.0f} frames a CPU-second by PyAV, {torchcodec:,.0f} by torchcodec "
                f"({torchcodec / pyav:.2f})"
            )


if __name__ == "__main__":
    main()

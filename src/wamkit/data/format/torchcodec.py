"""Video decoding by torchcodec, for the pixel formats in which it equals PyAV bit for bit: yuv420p and yuv444p.

Other videos are left to PyAV. Verified with torchcodec 0.13.0 and FFmpeg 5.1 for H.264 and AV1
(tests/data/test_torchcodec.py). docs/data.md has its speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import av
import numpy as np
from jaxtyping import UInt8

from wamkit.data.format.video import Video, empty_frames
from wamkit.files import StoreError

_EQUAL = ("yuv420p", "yuv444p")
_AT_ONCE = 64  # frames of full size in memory


class TorchcodecVideo(Video):
    """A `Video` that decodes by torchcodec. `Video` checks the file first: torchcodec gets nothing but a valid MP4.

    Unlike PyAV it conceals damage. Only where the store has a checksum of the recording is damage sure to be found.
    """

    def __init__(self, source: Path | bytes, fps: float, shape: tuple[int, int], total: int | None = None):
        decoders = torchcodec_decoders()
        super().__init__(source, fps, shape, total)
        self._decoder = None
        if self._is_mp4(source) and self._stream.codec_context.pix_fmt in _EQUAL:
            content = source if isinstance(source, bytes) else str(source)
            try:
                decoder = decoders.VideoDecoder(content, stream_index=self._stream.index, dimension_order="NHWC")
            except (RuntimeError, ValueError) as error:
                self.close()
                raise StoreError(f"torchcodec cannot open it ({error})") from error
            self._decoder = None if decoder.metadata.rotation else decoder  # `Video` turns such frames

    def _is_mp4(self, source: Path | bytes) -> bool:
        """True if the first bytes are those of an MP4, which no FFmpeg takes for a playlist.

        torchcodec's own FFmpeg has no list of allowed containers.
        """
        if isinstance(source, Path):
            with open(source, "rb") as file:
                source = file.read(8)
        return source[:1] == b"\0" and source[4:8] == b"ftyp"

    def frames(
        self, numbers: Sequence[int], size: tuple[int, int] | None = None, start: int = 0
    ) -> UInt8[np.ndarray, "N 3 H W"]:
        """RGB frames by number, as `Video.frames`. Raises StoreError for a frame that is missing or undecodable."""
        if self._decoder is None:
            return super().frames(numbers, size, start)
        out = empty_frames((len(numbers), 3, *(size or self._shape)))
        for first in range(0, len(numbers), _AT_ONCE):
            wanted = [start + number for number in numbers[first : first + _AT_ONCE]]
            try:
                found = self._decoder.get_frames_at(wanted)
            except (RuntimeError, ValueError, IndexError) as error:
                raise StoreError(f"frames {wanted[0]} to {wanted[-1]} cannot be decoded ({error})") from error
            seconds = found.pts_seconds.numpy() - float(self._began * self._stream.time_base)
            shown = (seconds * float(self._fps)).round().astype(int)
            if missing := set(wanted) - set(shown.tolist()):
                raise StoreError(f"frame {min(missing)} is missing")
            images = found.data.numpy()
            if images.shape[1:3] != self._shape:
                raise StoreError(f"its frames are decoded as {images.shape[1]}x{images.shape[2]}")
            if size in (None, self._shape):
                out[first : first + _AT_ONCE] = images.transpose(0, 3, 1, 2)
                continue
            for row, image in enumerate(images, first):
                self._rgb.write(av.VideoFrame.from_ndarray(image, format="rgb24"), out[row])
        return out

    def close(self) -> None:
        """Closes the file and the decoders."""
        self._decoder = None
        super().close()


def torchcodec_decoders() -> ModuleType:
    """The module `torchcodec.decoders`. Raises StoreError, with advice, where it or FFmpeg's libraries are missing."""
    try:
        import torchcodec.decoders
    except ImportError as error:
        raise StoreError("the package torchcodec is missing: pip install 'wamkit[torchcodec]', or use PyAV") from error
    except (RuntimeError, OSError) as error:
        raise StoreError(
            "torchcodec does not find FFmpeg's libraries: install them (Debian, Ubuntu: sudo apt-get install ffmpeg), "
            "or use PyAV"
        ) from error
    return torchcodec.decoders

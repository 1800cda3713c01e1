"""Reading of NumPy's .npy and .npz files that others wrote: declared sizes are compared with the bytes that are there.

`numpy.load` allocates what a header declares, and decompresses whatever a member holds.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from tokenize import TokenError

import numpy as np

from wamkit.files import StoreError

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_KINDS = "biufcSUmM"
_METHODS, _ENCRYPTED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), 0x1


def unpack_npz(data: bytes, where: str, max_bytes: int = 1 << 30) -> dict[str, np.ndarray]:
    """The read-only arrays in the bytes of an .npz file, by name.

    where: the file, for errors.
    max_bytes: size that all of them together may have once they are decompressed.

    Raises StoreError for damage, for larger arrays, and for arrays of Python objects.
    """
    out: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if (size := sum(m.file_size for m in members)) > max_bytes:
                raise StoreError(f"{where} declares {size} bytes, and at most {max_bytes} are read")
            for member in members:
                if member.compress_type not in _METHODS or member.flag_bits & _ENCRYPTED:
                    raise ValueError(f"{member.filename!r} is neither stored nor deflated")
                with archive.open(member) as file:
                    content = file.read(member.file_size)  # without a number, zipfile would inflate 2 GB of a bomb
                    content += file.read(1)  # at its end the checksum is compared
                out[member.filename.removesuffix(".npy")] = parse_npy(content, member.filename)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, LookupError, NotImplementedError) as error:
        raise StoreError(f"{where} cannot be read ({error})") from error
    return out


def parse_npy(data: bytes, where: str) -> np.ndarray:
    """The read-only array in the bytes of an .npy file. Raises ValueError for anything but plain values of its size."""
    file = io.BytesIO(data)
    try:
        shape, in_columns, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    except (ValueError, LookupError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError) as error:
        raise ValueError(f"{where} has no valid header ({error})") from error
    size = math.prod(shape) * dtype.itemsize
    if dtype.kind not in _KINDS or not dtype.itemsize or size != len(data) - file.tell():
        have = len(data) - file.tell()
        raise ValueError(f"{where} declares {dtype} {shape}, {size} bytes, and has {have} bytes of plain values")
    return np.ndarray(shape, dtype, data, file.tell(), order="F" if in_columns else "C")

"""A guest's screen as PNG, whatever form the hypervisor gives it in. Pure.

PPM: http://netpbm.sourceforge.net/doc/ppm.html. PNG: RFC 2083.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Final, Optional

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_HEADER: Final = re.compile(rb"P6(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)\s")
_MAX_PIXELS: Final = 64 << 20
_BYTES_A_PIXEL: Final = 3


def as_png(data: bytes) -> Optional[bytes]:
    """PNG from PNG or PPM; None for anything else."""
    if data.startswith(_PNG):
        return data
    header = _HEADER.match(data)
    if header is None:
        return None
    width, height, most = (int(word) for word in header.groups())
    row = width * _BYTES_A_PIXEL
    if most != 255 or not 0 < width * height <= _MAX_PIXELS or len(data) < header.end() + row * height:
        return None
    # Each line of a PNG begins with its filter; 0 is none.
    starts = range(header.end(), header.end() + row * height, row)
    lines = b"".join(b"\0" + data[start : start + row] for start in starts)
    facts = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return _PNG + _chunk(b"IHDR", facts) + _chunk(b"IDAT", zlib.compress(lines)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

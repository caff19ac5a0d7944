"""An image read again from its drive, and compared with what was received. Touches the open image, for reading."""

from __future__ import annotations

from typing import Callable, Optional

from anvil_dr.errors import ImageIOError
from anvil_dr.ports import Image
from anvil_dr.wire import digest, scan
from anvil_dr.wire.digest import SEGMENT_BYTES, ImageDigest


def what_is_wrong(
    image: Image, wanted: str, size_bytes: int, advanced: Callable[[int], None] = lambda done_bytes: None
) -> Optional[str]:
    """Read it all; None if its digest is the wanted one, or else in words what it is, or which byte can't be read.

    `advanced` is told how far it is, and may raise to end it. What memory still holds of the image is not believed.
    Raise ProtocolError for a digest that this machine cannot take.
    """
    digester = digest.digester(wanted.partition(":")[0])
    whole = ImageDigest(digester, size_bytes)
    try:
        image.forget_cached()
        for one in scan.segments(digester, image, size_bytes):
            whole.add(digester.segment(one.digests))
            advanced(min(size_bytes, (one.segment + 1) * SEGMENT_BYTES))
    except ImageIOError as error:
        return str(error)
    return None if whole.text() == wanted else f"its bytes have digest {whole.text()}, and {wanted} was received"

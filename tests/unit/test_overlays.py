"""Overlays that cannot be made say why in few words, and leave nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Tuple

import pytest

from anvil_dr.activation.overlays import Overlays
from anvil_dr.errors import CommandError, StoreError
from anvil_dr.model import Owner, StoredImage
from anvil_dr.ports import Completed


def test_a_full_disk_is_called_by_its_name_and_nothing_is_left(tmp_path: Path) -> None:
    def full(argv: Tuple[str, ...], *, timeout_seconds: float = 1, stdin: bytes = b"") -> Completed:
        said = f"qemu-img: {argv[-1]}: Could not write qcow2 header: No space left on device\n"
        raise CommandError(argv, 1, b"", said.encode())

    image = StoredImage(Owner("Web01", "Web01_0"), 1, "inode:1", 4096, "/srv/dr/Web01_Web01_0_1.raw", "")
    with pytest.raises(StoreError) as raised:
        Overlays(str(tmp_path), full).make("Web01", 1, "now", [(image, image.path)])
    assert str(raised.value) == f"overlays for Web01 cannot be made in {tmp_path}: No space left on device"
    assert list(tmp_path.iterdir()) == []

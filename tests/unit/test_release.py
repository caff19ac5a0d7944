"""What a server wrote on overlays is put into its images or thrown away; what lies between is called neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Tuple

import pytest

from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.overlays import Overlays
from anvil_dr.activation.release import Wish, release
from anvil_dr.errors import CommandError, StoreError, UsageError
from anvil_dr.ports import Completed
from anvil_dr.records.state import State
from anvil_dr.stores.directory import DirectoryStore
from tests.doubles.filled_box import FilledBox


class QemuImg:
    """`ok` commits succeed, the next one fails; every overlay is empty."""

    def __init__(self, ok: int) -> None:
        self.ok = ok

    def __call__(self, argv: Tuple[str, ...], **unused: Any) -> Completed:
        if argv[1] == "create":
            Path(argv[-1]).touch()
        elif self.ok == 0:
            raise CommandError(argv, 1, b"", b"No space left on device")
        else:
            self.ok -= 1
        return Completed(argv, b"", b"")


def test_what_was_put_into_the_images_in_part_is_neither_discarded_nor_called_received(tmp_path: Path) -> None:
    box, qemu_img = FilledBox(tmp_path / "box"), QemuImg(ok=1)
    disks = [tmp_path / "0.img", tmp_path / "1.img"]
    for disk in disks:
        disk.write_bytes(b"disk")
    box.receive("Web01", disks)
    overlays = Overlays(str(tmp_path / "overlays"), qemu_img)
    with State.open(str(box.state)) as state:
        store = DirectoryStore(str(box.images), state.owners)

        def let_go(wish: Wish) -> str:
            places = FirmwarePlaces(str(box.state), str(box.definitions), str(tmp_path / "swtpm"))
            return release("Web01", wish, store, state, overlays, places, "2026-11-26T00:00:00+00:00")

        state.activate("Web01", 1, "alice")
        overlays.make("Web01", 1, "2026-11-25T00:00:00+00:00", [(image, image.path) for image in store.images()])
        with pytest.raises(StoreError):
            let_go("keep")
        (record,) = state.set_records()
        assert record.ran_here_until == "2026-11-26T00:00:00+00:00"
        assert [image.digest for image in record.images] == ["", ""]
        with pytest.raises(UsageError, match="--keep goes on with it"):
            let_go("discard")
        assert "Web01" in state.activations()

        qemu_img.ok = 2
        assert "holds what it wrote here" in let_go("keep")
        assert (overlays.of("Web01"), state.activations()) == (None, {})

"""What is in place under a server that is booted: another set than it ran from before, or overlays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Tuple

from anvil_dr import firmware
from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.boot_plan import Draft, PlannedServer
from anvil_dr.activation.footing import Ground
from anvil_dr.activation.overlays import Overlays
from anvil_dr.command import run
from anvil_dr.cycling import sets
from anvil_dr.definition import requirements
from anvil_dr.ports import Completed
from anvil_dr.records.state import State
from anvil_dr.stores.directory import DirectoryStore
from tests.doubles.filled_box import FilledBox


def test_another_set_is_booted_with_its_own_firmware_state_and_the_former_one_keeps_what_its_guest_made_of_it(
    tmp_path: Path,
) -> None:
    box, disk = FilledBox(tmp_path / "box"), tmp_path / "Web01_0.img"
    disk.write_bytes(b"disk")
    for sequence in (2, 1):
        variables = f"received with set {sequence}".encode()
        box.receive("Web01", [disk], sequence=sequence, firmware_state={"nvram": variables})
    places = FirmwarePlaces(str(box.state), str(box.definitions), str(tmp_path / "swtpm"))
    nvram = Path(places.nvram("Web01"))
    firmware_of_it = f"<os><type>hvm</type><nvram>{nvram}</nvram></os>"
    xml = f"<domain type='kvm'><name>Web01</name><memory>1</memory>{firmware_of_it}</domain>"
    with State.open(str(box.state)) as state:
        store = DirectoryStore(str(box.images), state.owners)
        newest, older = sets.assemble(store.images(), state.set_records())
        ground = Ground(store, state, Overlays(str(tmp_path / "overlays"), run), places, lambda: "now")
        draft = Draft("Web01", "", newest, needs=requirements(xml), xml=xml)
        ground.prepare(PlannedServer(draft))
        assert nvram.read_text() == "received with set 1"

        nvram.write_text("changed by its guest")
        other = replace(draft, chosen=older, activated=True)
        ground.prepare(PlannedServer(replace(other, left=newest)))
        assert nvram.read_text() == "received with set 2"
        assert newest.record is not None
        assert Path(firmware.folder(places.state, newest.record), "nvram").read_text() == "changed by its guest"

        nvram.write_text("changed by the guest of set 2")
        ground.prepare(PlannedServer(other))
        assert nvram.read_text() == "changed by the guest of set 2"


def touch(argv: Tuple[str, ...], **unused: Any) -> Completed:
    """qemu-img create, whose overlays are empty."""
    Path(argv[-1]).touch()
    return Completed(argv, b"", b"")


def test_overlays_of_a_boot_that_failed_are_taken_away_and_those_that_it_ran_on_before_stay(tmp_path: Path) -> None:
    box, disk = FilledBox(tmp_path / "box"), tmp_path / "Web01_0.img"
    disk.write_bytes(b"disk")
    (path,) = box.receive("Web01", [disk])
    xml = (
        "<domain type='kvm'><name>Web01</name><memory>1</memory><devices><disk type='file' device='disk'>"
        f"<driver name='qemu' type='raw'/><source file='{path}'/><target dev='vda'/></disk></devices></domain>"
    )
    places = FirmwarePlaces(str(box.state), str(box.definitions), str(tmp_path / "swtpm"))
    with State.open(str(box.state)) as state:
        store = DirectoryStore(str(box.images), state.owners)
        (newest,) = sets.assemble(store.images(), state.set_records())
        overlays = Overlays(str(tmp_path / "overlays"), touch)
        draft = Draft("Web01", "", newest, needs=requirements(xml), xml=xml, disk_paths=(("Web01_0", str(path)),))

        def ground() -> Ground:
            return Ground(store, state, overlays, places, lambda: "now", on_overlays=True)

        failed = ground()
        assert "Web01_0.qcow2" in failed.prepare(PlannedServer(draft))
        failed.undo(PlannedServer(draft))
        assert overlays.of("Web01") is None

        ground().prepare(PlannedServer(draft))
        again = ground()
        again.prepare(PlannedServer(draft))
        again.undo(PlannedServer(draft))
        made = overlays.of("Web01")
        assert made is not None and made.job_id == "job-1", "the set that they lie over"

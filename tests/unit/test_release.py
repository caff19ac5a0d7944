"""What a server wrote on overlays is put into its images or thrown away; what lies between is called neither."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

import pytest

from anvil_dr import durable
from anvil_dr.activation import ran_before
from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.overlays import Overlays
from anvil_dr.activation.release import Wish, release
from anvil_dr.activation.survey import survey
from anvil_dr.caching import cached_sets
from anvil_dr.caching.cached_sets import CachedImage, CachedSet
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


@dataclass
class Ran:
    """A server of two disks that ran on overlays over its set 1."""

    box: FilledBox
    store: DirectoryStore
    state: State
    overlays: Overlays
    qemu_img: QemuImg
    places: FirmwarePlaces

    def let_go(self, wish: Optional[Wish] = None) -> str:
        now = "2026-11-26T00:00:00+00:00"
        return release("Web01", wish, self.store, self.state, self.overlays, self.places, now)

    def problems(self) -> str:
        """What would keep it from being booted now, as far as its overlays are the reason."""
        (found,) = survey(self.store, self.state, str(self.box.definitions), overlays=self.overlays).servers
        findings = ran_before.on_overlays(found, found.sets[0])
        return " ".join(f"{one.text}: {one.advice}" for one in findings if one.fatal)


@pytest.fixture
def ran(tmp_path: Path) -> Iterator[Ran]:
    box, qemu_img = FilledBox(tmp_path / "box"), QemuImg(ok=2)
    disks = [tmp_path / "0.img", tmp_path / "1.img"]
    for disk in disks:
        disk.write_bytes(b"disk")
    box.receive("Web01", disks)
    overlays = Overlays(str(tmp_path / "overlays"), qemu_img)
    places = FirmwarePlaces(str(box.state), str(box.definitions), str(tmp_path / "swtpm"))
    with State.open(str(box.state)) as state:
        store = DirectoryStore(str(box.images), state.owners)
        state.activate("Web01", 1, "alice")
        images = [(image, image.path) for image in store.images()]
        overlays.make("Web01", 1, "2026-11-25T00:00:00+00:00", images, "job-1")
        yield Ran(box, store, state, overlays, qemu_img, places)


def test_what_was_put_into_the_images_in_part_is_neither_discarded_nor_called_received(ran: Ran) -> None:
    ran.qemu_img.ok = 1
    with pytest.raises(StoreError):
        ran.let_go("keep")
    (record,) = ran.state.set_records()
    assert record.ran_here_until == "2026-11-26T00:00:00+00:00"
    assert [image.digest for image in record.images] == ["", ""]
    with pytest.raises(UsageError, match="--keep goes on with it"):
        ran.let_go("discard")
    assert "Web01" in ran.state.activations()

    ran.qemu_img.ok = 2
    assert "holds what it wrote here" in ran.let_go("keep")
    assert (ran.overlays.of("Web01"), ran.state.activations()) == (None, {})


@pytest.mark.parametrize("removed", [0, 1, 2])
@pytest.mark.parametrize(
    ("wish", "other", "said", "digests"),
    [("discard", "keep", "is gone", ["sha256:00"] * 2), ("keep", "discard", "holds what it wrote here", ["", ""])],
)
def test_a_release_that_failed_while_overlays_were_removed_goes_on_as_it_was_begun(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, wish: Wish, other: Wish, said: str, digests: List[str], removed: int
) -> None:
    remove, left = durable.remove, [removed]

    def failing(path: str) -> None:
        if not left[0]:
            raise OSError(errno.EIO, "Input/output error")
        left[0] -= 1
        remove(path)

    with monkeypatch.context() as patched:
        patched.setattr(durable, "remove", failing)
        with pytest.raises(StoreError, match="Input/output error"):
            ran.let_go(wish)
    assert ran.state.activations() == {}, "a mark without overlays would say that it ran on its images"
    assert f"--release Web01 --{wish}" in ran.problems()
    with pytest.raises(UsageError, match=f"--{wish} goes on"):
        ran.let_go(other)

    ran.qemu_img.ok = 0  # an overlay that is gone cannot be committed
    assert said in ran.let_go(None if removed else wish)
    (record,) = ran.state.set_records()
    assert [image.digest for image in record.images] == digests
    assert (ran.overlays.of("Web01"), ran.state.activations(), os.listdir(ran.overlays.folder)) == (None, {}, [])


def test_what_it_wrote_is_not_put_into_a_set_that_was_received_into_the_same_images_later(ran: Ran) -> None:
    (record,) = ran.state.set_records()
    ran.state.finish(ran.state.begin("Web01", "promote", (), replace(record, job_id="job-2")))
    with pytest.raises(StoreError, match="is another one now.*then --discard"):
        ran.let_go("keep")
    assert ran.qemu_img.ok == 2, "nothing was committed"
    assert [image.digest for image in ran.state.set_records()[0].images] == ["sha256:00"] * 2
    assert "is gone" in ran.let_go("discard")


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("keep", "Set 1 holds what it wrote here, until its next job; a set that was received "
                 "2026-11-22T00:00:00+00:00, before that, waits on cache drive /dev/sdb (USB, S1) and stays there "
                 "until then"),
        ("discard", "set 1 is as it was received; a newer one, received 2026-11-22T00:00:00+00:00, "
                    "waits on cache drive /dev/sdb (USB, S1) and goes to the store once that is there"),
    ],
)  # fmt: skip
def test_a_newer_set_that_waits_on_a_cache_drive_is_told_with_what_becomes_of_it(
    ran: Ran, wish: Wish, said: str
) -> None:
    image = CachedImage("Web01_0", "/dev/vg0/Web01_0", 4, "sha256:00", "uuid", "/dev/sdb", "/dev/sdb (USB, S1)")
    cached = CachedSet("Web01", "an-a05n01", "job-9", "2026-11-22T00:00:00+00:00", (image,), "<domain/>")
    cached_sets.keep(str(ran.box.state), cached, {})
    assert ran.let_go(wish).endswith(said)

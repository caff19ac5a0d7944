"""The box itself: what its other tests rely on."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from tests.box.box import Box, BoxError, make_drive


def test_a_guest_runs_commands_and_sees_only_what_it_is_shown(make_box: Callable[..., Box], tmp_path: Path) -> None:
    shown, shared = tmp_path / "shown", tmp_path / "shared"
    for folder in (shown, shared):
        folder.mkdir()
        (folder / "here").write_text("from the host")

    box = make_box(read_only=[shown], writable=[shared])

    said = box.run(f"cat {shown}/here; echo oops >&2; exit 3", check=False)
    assert (said.exit_code, said.output) == (3, "from the hostoops\n")
    with pytest.raises(BoxError, match="exit code 3"):
        box.run("exit 3")
    assert box.run(f"touch {shown}/new", check=False).exit_code != 0
    box.run(f"echo from the guest >{shared}/new; touch /usr/only-here; rm -f /etc/hostname")
    assert (shared / "new").read_text() == "from the guest\n"
    assert Path("/etc/hostname").exists() and not Path("/usr/only-here").exists()
    box.stop()
    assert not box.running


def test_drives_are_plugged_in_and_pulled_and_keep_what_was_synced_when_the_power_is_cut(
    make_box: Callable[..., Box], tmp_path: Path
) -> None:
    first = make_drive(tmp_path / "first", "64M", "mkfs.ext4", "-q", "-L", "FIRST")
    hot = make_drive(tmp_path / "hot", "64M", "mkfs.ext4", "-q", "-L", "HOT")
    box = make_box(drives=[first])
    box.run("echo 0 >/proc/sys/vm/dirty_writeback_centisecs")
    box.run("mkdir -p /mnt/a && mount -o commit=1000 /dev/disk/by-label/FIRST /mnt/a")
    box.run("echo kept >/mnt/a/synced && sync")
    box.run("echo lost >/mnt/a/cached")
    box.mconsole("config", f"ubdb={hot}")
    box.run("udevadm settle; mkdir -p /mnt/b && mount /dev/disk/by-label/HOT /mnt/b")
    with pytest.raises(BoxError, match="open"):
        box.mconsole("remove", "ubdb")
    box.run("umount /mnt/b")
    box.mconsole("remove", "ubdb")
    number = box.begin("echo cut me; sleep 100")
    box.wait_for_line("cut me")

    box.kill()

    with pytest.raises(BoxError, match="off"):
        box.wait(number)
    again = make_box(drives=[first])
    again.run("mkdir -p /mnt/a && mount /dev/ubda /mnt/a")
    assert again.run("cat /mnt/a/synced").output == "kept\n"
    assert again.run("test -e /mnt/a/cached", check=False).exit_code != 0


def test_a_guest_with_systemd_runs_services(make_box: Callable[..., Box]) -> None:
    box = make_box(systemd=True)
    box.run("systemd-run --quiet --unit=once --property=Type=oneshot touch /run/was-here && test -e /run/was-here")
    assert box.run("systemctl --failed --no-legend").output == ""

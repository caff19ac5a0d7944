"""What LVM is asked, where its versions differ and where it answers badly. tests/box has the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import pytest

from anvil_dr import durable
from anvil_dr.errors import CommandError, StoreError
from anvil_dr.ports import Completed
from anvil_dr.stores.lvm_commands import LvmCommands
from anvil_dr.stores.lvm_report import Volume, groups, volumes

MIB = 1 << 20

GROUP = {
    "vg_name": "dr01_vg0", "vg_size": "1073741824", "vg_free": "536870912", "vg_extent_size": "4194304",
    "vg_missing_pv_count": "0", "vg_permissions": "writeable", "vg_exported": "0",
}  # fmt: skip
VOLUME = {
    "lv_uuid": "u-1", "lv_name": "Web01_Web01_0_1", "vg_name": "dr01_vg0", "lv_size": "8388608", "lv_tags": "a,b",
    "lv_attr": "-wi-ao----", "lv_active_locally": "1", "lv_device_open": "1", "lv_kernel_major": "254",
    "lv_kernel_minor": "3", "vg_extent_size": "4194304",
}  # fmt: skip


DRIVES = [{"pv_name": "/dev/sda"}, {"pv_name": "[unknown]"}, {"pv_name": "/dev/sdb"}]


def report(kind: str, *rows: Dict[str, str], drives: Sequence[Dict[str, str]] = ()) -> bytes:
    return json.dumps({"report": [{kind: list(rows), "pv": list(drives)}]}).encode()


class Lvm:
    """Stands for the commands: answers, or fails with an exit code, and remembers what it was asked."""

    def __init__(self, answer: Callable[[Tuple[str, ...]], Tuple[int, bytes]]) -> None:
        self._answer = answer
        self.asked: List[Tuple[str, ...]] = []

    def __call__(self, argv: Tuple[str, ...], *, timeout_seconds: float = 1, stdin: bytes = b"") -> Completed:
        self.asked.append(argv)
        code, output = self._answer(argv)
        if code:
            raise CommandError(argv, code, output, b"said in English")
        return Completed(argv, output, b"")


def volume(**changes: str) -> Volume:
    return volumes(report("lv", {**VOLUME, **changes}))[0]


def test_a_report_becomes_values() -> None:
    found = groups(report("vg", GROUP))["dr01_vg0"]
    assert (found.size_bytes, found.free_bytes, found.extent_bytes, found.problem) == (1 << 30, 512 * MIB, 4 * MIB, "")
    one = volume()
    assert (one.size_bytes, one.tags) == (8 * MIB, frozenset({"a", "b"}))
    assert (one.active, one.open, one.has_snapshots) == (True, True, False)
    asleep = volume(lv_active_locally="0", lv_device_open="-1", lv_kernel_major="-1", lv_kernel_minor="-1")
    assert (asleep.active, asleep.open, asleep.device) == (False, False, None)
    assert volume(lv_device_open="-1").open, "not known counts as open"
    assert volume(lv_attr="owi-aos---").has_snapshots


def test_each_volume_knows_the_drives_of_its_own_group() -> None:
    first, second = report("lv", VOLUME, drives=DRIVES), report("lv", {**VOLUME, "vg_name": "dr01_vg1"})
    both = {"report": json.loads(first)["report"] + json.loads(second)["report"]}
    found = {one.group: one.drives for one in volumes(json.dumps(both).encode())}
    assert found == {"dr01_vg0": ("/dev/sda", "/dev/sdb"), "dr01_vg1": ()}


@pytest.mark.parametrize(
    "field, value, problem",
    [
        ("vg_missing_pv_count", "2", "2 of its physical volumes"),
        ("vg_permissions", "read-only", "read-only"),
        ("vg_exported", "1", "exported"),
    ],
)
def test_a_group_that_cannot_be_written_to_says_why(field: str, value: str, problem: str) -> None:
    assert problem in groups(report("vg", {**GROUP, field: value}))["dr01_vg0"].problem


def test_what_else_lvm_puts_into_its_report_is_no_row() -> None:
    logged = {"report": [{"vg": [GROUP]}, {"seg": []}], "log": [{"log_seq_num": "1"}]}
    assert list(groups(json.dumps(logged).encode())) == ["dr01_vg0"]


@pytest.mark.parametrize(
    "garbage",
    [
        *(b"", b"{}", b"[]", b'{"report": 3}', b'{"report": [[]]}'),
        report("vg", {}),
        report("vg", {**GROUP, "vg_free": "plenty"}),
        b'{"report": [{"vg": 3}]}',
    ],
)
def test_a_report_that_cannot_be_understood_is_a_store_error(garbage: bytes) -> None:
    with pytest.raises(StoreError, match="report"):
        groups(garbage)


def test_the_missing_group_is_named_though_lvm_fails_as_a_whole() -> None:
    lvm = Lvm(lambda argv: (5, report("vg", GROUP) if argv[0] == "vgs" else b""))
    for action in (LvmCommands.groups, LvmCommands.volumes):
        with pytest.raises(StoreError, match="no volume group dr01_vg1 .*said in English"):
            action(LvmCommands(("dr01_vg0", "dr01_vg1"), lvm))


def test_a_program_that_is_not_there_is_a_store_error() -> None:
    def absent(argv: Tuple[str, ...], *, timeout_seconds: float = 1, stdin: bytes = b"") -> Completed:
        raise CommandError(argv, None, b"", b"", "No such file or directory")

    with pytest.raises(StoreError, match="No such file"):
        LvmCommands(("dr01_vg0",), absent).groups()


@pytest.mark.parametrize("code_of_fs_option, tries", [(0, 1), (3, 2)], ids=["new lvm", "old lvm"])
def test_shrinking_tells_lvm_to_ignore_file_systems_where_it_can(code_of_fs_option: int, tries: int) -> None:
    def answer(argv: Tuple[str, ...]) -> Tuple[int, bytes]:
        if argv[0] == "lvresize":
            return (code_of_fs_option if "--fs" in argv else 0), b""
        return 0, report("lv", {**VOLUME, "lv_size": str(4 * MIB)})

    lvm = Lvm(answer)
    assert LvmCommands(("dr01_vg0",), lvm).resize(volume(), 3 * MIB).size_bytes == 4 * MIB
    resizes = [argv for argv in lvm.asked if argv[0] == "lvresize"]
    assert len(resizes) == tries
    assert all(f"{4 * MIB}b" in argv and "--force" in argv for argv in resizes)


def test_what_lvm_changed_is_on_every_drive_of_the_group_before_anything_else_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: List[str] = []
    monkeypatch.setattr(durable, "sync_device", lambda path: told.append(f"flush {path}"))

    def answer(argv: Tuple[str, ...]) -> Tuple[int, bytes]:
        told.append(argv[0])
        return 0, report("lv", {**VOLUME, "lv_name": "x"}, drives=DRIVES)

    commands = LvmCommands(("dr01_vg0",), Lvm(answer))
    commands.create("dr01_vg0", "x", MIB, ())
    assert told == ["lvcreate", "lvm", "flush /dev/sda", "flush /dev/sdb"]
    (created,) = commands.volumes()
    for action, command in (
        (lambda: commands.rename(created, "y"), "lvrename"),
        (lambda: commands.remove(created), "lvremove"),
        (lambda: commands.resize(created, 12 * MIB), "lvresize"),
    ):
        told.clear()
        action()  # type: ignore[no-untyped-call]
        assert told[:3] == [command, "flush /dev/sda", "flush /dev/sdb"]


def test_a_drive_that_cannot_be_flushed_is_named(tmp_path: Path) -> None:
    commands = LvmCommands(
        ("dr01_vg0",), Lvm(lambda argv: (0, report("lv", VOLUME, drives=[{"pv_name": str(tmp_path / "sdx")}])))
    )
    (there,) = commands.volumes()
    with pytest.raises(StoreError, match="volume group dr01_vg0: cannot flush .*sdx: No such file"):
        commands.rename(there, "x")


def test_a_refusal_that_is_not_about_space_passes_on_what_lvm_said() -> None:
    def answer(argv: Tuple[str, ...]) -> Tuple[int, bytes]:
        return (0, report("vg", GROUP)) if argv[0] == "vgs" else (5, b"")

    commands = LvmCommands(("dr01_vg0",), Lvm(answer))
    actions: Tuple[Callable[[], Optional[object]], ...] = (
        lambda: commands.create("dr01_vg0", "x", MIB, ()),
        lambda: commands.resize(volume(), 12 * MIB),
        lambda: commands.resize(volume(), 4 * MIB),
        lambda: commands.rename(volume(), "x"),
        lambda: commands.remove(volume()),
        lambda: commands.activate(volume()),
    )
    for action in actions:
        with pytest.raises(StoreError, match="said in English"):
            action()

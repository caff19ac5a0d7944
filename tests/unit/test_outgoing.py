"""What is announced of a server: from a job file and from libvirt, and what is refused before anything is announced."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional, Sequence

import pytest

from anvil_dr.errors import DefinitionError, SourceChangedError, SourceError, UsageError
from anvil_dr.firmware_files import FirmwareFiles
from anvil_dr.sending.job import OutgoingServer
from anvil_dr.sending.job_file import parse
from anvil_dr.sending.keep_off import Keeper
from anvil_dr.sending.outgoing import Prepared, from_job_file
from anvil_dr.sending.outgoing_domain import DomainReader
from anvil_dr.stores import qemu_lock
from tests.doubles.machine import Machine

pytestmark = pytest.mark.on_disk  # a disk is named after its path

UUID = "5c3b1f0a-9d1e-4b6b-8a3c-0f6a1d2e3b4c"


def disk(path: object, target: str = "vda", form: str = "raw", device: str = "disk") -> str:
    return (
        f"<disk type='file' device='{device}'><driver name='qemu' type='{form}'/><source file='{path}'/>"
        f"<target dev='{target}' bus='virtio'/></disk>"
    )


def domain(name: str, *devices: str, os_more: str = "") -> str:
    return (
        f"<domain type='qemu'><name>{name}</name><uuid>{UUID}</uuid><memory unit='MiB'>256</memory>"
        f"<os><type arch='x86_64' machine='q35'>hvm</type>{os_more}</os>"
        f"<devices>{''.join(devices)}</devices></domain>"
    )


def file(path: Path, content: bytes = b"x" * 5000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# — from libvirt —


def read(
    tmp_path: Path, xml: str, *, leave_out: Sequence[str] = (), state: str = "shut off", transient: bool = False
) -> Prepared:
    machine = Machine(domains={"Web01": state}, definitions={"Web01": xml})  # type: ignore[dict-item]
    machine.transient = {"Web01"} if transient else set()
    clock, notes = machine.clock, machine.notes
    keeper = Keeper(machine.connect, shut_down=True, notes=notes, clock=clock.now, sleep=clock.sleep)
    reader = DomainReader(
        keeper, leave_out=leave_out, nvram_folder=str(tmp_path / "nvram"), tpm_folder=str(tmp_path / "swtpm")
    )
    return reader.read(["Web01"])


def only(prepared: Prepared) -> OutgoingServer:
    assert [str(outcome.error) for outcome in prepared.failed] == []
    (server,) = prepared.servers
    return server


def error(prepared: Prepared) -> Optional[Exception]:
    assert prepared.servers == ()
    return prepared.failed[0].error


def test_a_domains_definition_and_disks_are_read_from_libvirt(tmp_path: Path) -> None:
    first, second = file(tmp_path / "Web01_0.raw"), file(tmp_path / "Web01_1.img", b"y" * 70_000)
    xml = domain("Web01", disk(first), disk(second, "vdb"), disk("/mnt/install.iso", "sda", device="cdrom"))
    server = only(read(tmp_path, xml))
    assert (server.name, server.definition, server.left_out, server.firmware) == ("Web01", xml, (), {})
    assert [(one.name, one.path, one.size_bytes) for one in server.disks] == [
        ("Web01_0", str(first), 5000),
        ("Web01_1", str(second), 70_000),
    ]


def test_a_running_server_can_be_announced_though_qemu_writes_its_disk(tmp_path: Path) -> None:
    path = file(tmp_path / "Web01_0.raw")
    fd = os.open(path, os.O_RDWR)
    assert qemu_lock.take(fd)
    (announced,) = only(read(tmp_path, domain("Web01", disk(path)), state="running")).disks
    with pytest.raises(SourceError, match="is being written by a running server"):
        announced.open()
    os.close(fd)
    announced.open().close()


def test_a_disk_that_has_another_size_than_was_announced_is_not_read(tmp_path: Path) -> None:
    path = file(tmp_path / "Web01_0.raw")
    (announced,) = only(read(tmp_path, domain("Web01", disk(path)))).disks
    path.write_bytes(b"x" * 6000)
    with pytest.raises(SourceChangedError, match="had 5000 bytes when the job began and has 6000 now"):
        announced.open()


@pytest.mark.parametrize(
    ("device", "complaint"),
    [
        (disk("/srv/Web01.qcow2", form="qcow2"), "vda (/srv/Web01.qcow2) is qcow2, and only raw disks"),
        (
            "<disk type='network' device='disk'><source protocol='rbd' name='pool/web01'/><target dev='vda'/></disk>",
            "vda (rbd:pool/web01) cannot be imaged; to send the server without it: --leave-out 'rbd:pool/web01'",
        ),
        (
            "<disk type='block' device='lun'><source dev='/dev/sdq'/><target dev='sda' bus='scsi'/></disk>",
            "--leave-out '/dev/sdq'",
        ),
        (
            "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/>"
            "<address bus='0' target='3' unit='0'/></source></hostdev>",
            "--leave-out 'scsi:scsi_host0:0:3:0'",
        ),
        (disk("/dev/sdb"), "'/dev/sdb' gives no disk name; a job file can name it"),
        (disk("/nowhere/Web01.raw"), "cannot open /nowhere/Web01.raw: No such file or directory"),
        (disk("/dev/mapper/control", "vda"), "gives no disk name"),
        ("", "has no disk that could be imaged"),
    ],
)
def test_a_disk_that_cannot_be_imaged_is_refused_by_name(tmp_path: Path, device: str, complaint: str) -> None:
    assert complaint in str(error(read(tmp_path, domain("Web01", device))))


def test_a_disk_can_be_left_out_on_purpose(tmp_path: Path) -> None:
    good, lun = file(tmp_path / "Web01_0.raw"), "<disk type='block' device='lun'><source dev='/dev/sdq'/>"
    xml = domain("Web01", disk(good), lun + "<target dev='sda' bus='scsi'/></disk>", disk("/x.qcow2", "vdb", "qcow2"))
    server = only(read(tmp_path, xml, leave_out=["/dev/sdq", "vdb"]))
    assert [one.name for one in server.disks] == ["Web01_0"]
    assert server.left_out == ("/dev/sdq", "vdb")


def test_leaving_out_what_is_not_there_is_a_mistake_in_the_command(tmp_path: Path) -> None:
    xml = domain("Web01", disk(file(tmp_path / "Web01_0.raw")))
    with pytest.raises(UsageError, match="--leave-out /dev/sdz"):
        read(tmp_path, xml, leave_out=["/dev/sdz"])


def test_two_disks_that_would_have_one_name_are_refused(tmp_path: Path) -> None:
    xml = domain("Web01", disk(file(tmp_path / "a" / "root.raw")), disk(file(tmp_path / "b" / "root.raw"), "vdb"))
    assert "would both be named root; a job file can name them" in str(error(read(tmp_path, xml)))


def test_a_server_that_is_named_twice_is_a_mistake_in_the_command() -> None:
    machine = Machine(domains={"Web01": "shut off"})
    with pytest.raises(UsageError, match="Web01 is named twice"):
        DomainReader(Keeper(machine.connect, shut_down=False, notes=machine.notes)).read(["Web01", "Web01"])


def test_one_server_that_cannot_be_sent_does_not_stop_the_others(tmp_path: Path) -> None:
    xml = domain("Web01", disk(file(tmp_path / "Web01_0.raw")))
    machine = Machine(domains={"Web01": "shut off", "Db01": "running"}, definitions={"Web01": xml})
    keeper = Keeper(machine.connect, shut_down=False, notes=machine.notes)
    prepared = DomainReader(keeper).read(["Db01", "Web01", "Gone01"])
    assert [server.name for server in prepared.servers] == ["Web01"]
    assert [(outcome.name, type(outcome.error)) for outcome in prepared.failed] == [
        ("Db01", SourceError),
        ("Gone01", SourceError),
    ]


def test_firmware_state_comes_along_from_where_libvirt_keeps_it(tmp_path: Path) -> None:
    file(tmp_path / "nvram" / "Web01_VARS.fd", b"variables")
    state = tmp_path / "swtpm" / UUID / "tpm2"
    file(state / "tpm2-00.permall", b"keys")
    file(state / ".lock", b"")
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    xml = domain("Web01", disk(file(tmp_path / "Web01_0.raw")), tpm, os_more="<firmware/>").replace(
        "<os>", "<os firmware='efi'>"
    )
    server = only(read(tmp_path, xml))
    assert server.firmware == {"nvram": b"variables", "tpm/tpm2-00.permall": b"keys"}
    file(state / "tpm2-00.permall", b"more keys")
    assert server.read_firmware is not None
    assert server.read_firmware()["tpm/tpm2-00.permall"] == b"more keys"


def test_the_definitions_own_nvram_file_is_taken_and_one_that_never_was_is_not_missed(tmp_path: Path) -> None:
    own = file(tmp_path / "elsewhere.fd", b"variables")
    xml = domain("Web01", disk(file(tmp_path / "Web01_0.raw")), os_more=f"<nvram>{own}</nvram>")
    assert only(read(tmp_path, xml)).firmware == {"nvram": b"variables"}
    own.unlink()
    assert only(read(tmp_path, xml)).firmware == {}


def test_firmware_state_that_is_no_file_or_too_large_or_a_link_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a regular file"):
        FirmwareFiles(nvram="/dev/zero").read()
    large = tmp_path / "large.fd"
    with open(large, "wb") as sparse:
        sparse.truncate(65 << 20)
    with pytest.raises(SourceError, match="too large"):
        FirmwareFiles(nvram=str(large)).read()
    (tmp_path / "tpm").mkdir()
    (tmp_path / "tpm" / "tpm2-00.permall").symlink_to("/etc/hostname")
    with pytest.raises(SourceError, match="symlink"):
        FirmwareFiles(tpm=str(tmp_path / "tpm")).read()


def test_a_transient_server_whose_tpm_would_be_lost_is_not_announced(tmp_path: Path) -> None:
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    xml = domain("Web01", disk(file(tmp_path / "Web01_0.raw")), tpm)
    assert "persistent_state" in str(error(read(tmp_path, xml, state="running", transient=True)))
    assert only(read(tmp_path, xml, state="running"))


# — from a job file —


def job(tmp_path: Path, text: str) -> Prepared:
    return from_job_file(parse(text, str(tmp_path / "job.yaml")))


def job_text(path: Path, more: str = "") -> str:
    return f"servers:\n  - name: Web01\n    definition: web01.xml\n    disks:\n      - {{path: {path}{more}}}\n"


def test_a_job_files_server_has_what_the_file_says(tmp_path: Path) -> None:
    path, xml = tmp_path / "Web01_0.raw", domain("Web01", disk(tmp_path / "Web01_0.raw"))
    file(tmp_path / "web01.xml", xml.encode())
    file(tmp_path / "web01.fd", b"variables")
    file(tmp_path / "copy.raw", b"z" * 4096)
    text = job_text(path, ", name: root, image: copy.raw") + "    left_out: [/dev/sdz]\n    nvram: web01.fd\n"
    server = only(job(tmp_path, text))
    (one,) = server.disks
    assert (one.name, one.path, one.size_bytes) == ("root", str(path), 4096)
    assert (server.definition, server.left_out, server.firmware) == (xml, ("/dev/sdz",), {"nvram": b"variables"})
    opened = one.open()
    assert opened.path == str(tmp_path / "copy.raw")
    opened.close()


def test_a_job_files_disk_that_a_qemu_writes_is_refused_before_anything_is_announced(tmp_path: Path) -> None:
    path = file(tmp_path / "Web01_0.raw")
    file(tmp_path / "web01.xml", domain("Web01", disk(path)).encode())
    fd = os.open(path, os.O_RDWR)
    assert qemu_lock.take(fd)
    refused = error(job(tmp_path, job_text(path)))
    os.close(fd)
    assert "is being written by a running server" in str(refused)
    assert only(job(tmp_path, job_text(path)))


def test_a_job_files_server_is_asked_about_again_when_its_turn_comes_and_once_it_was_read(tmp_path: Path) -> None:
    path, refused = file(tmp_path / "Web01_0.raw"), [""]
    file(tmp_path / "web01.xml", domain("Web01", disk(path)).encode())

    def refuse(server: str) -> None:
        if server in refused:
            raise SourceError("its disks are part old and part new")

    server = only(from_job_file(parse(job_text(path), str(tmp_path / "job.yaml")), refuse))
    with pytest.raises(SourceError, match="part old"), server.keep_off():
        refused.append("Web01")
    with pytest.raises(SourceError, match="part old"), server.keep_off():
        raise AssertionError("it must not be read")
    assert "part old" in str(error(from_job_file(parse(job_text(path), str(tmp_path / "job.yaml")), refuse)))


def test_a_job_files_disk_that_is_not_raw_is_refused_unless_its_bytes_come_from_elsewhere(tmp_path: Path) -> None:
    path = file(tmp_path / "Web01_0.qcow2")
    file(tmp_path / "web01.xml", domain("Web01", disk(path, form="qcow2")).encode())
    assert "is qcow2" in str(error(job(tmp_path, job_text(path))))
    file(tmp_path / "copy.raw")
    assert only(job(tmp_path, job_text(path, ", image: copy.raw")))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "web01.xml cannot be read: No such file"),
        (b"\xff\xfe", "is not UTF-8"),
        (domain("Db01").encode(), "is the definition of 'Db01'"),
        (b"<!DOCTYPE d [<!ENTITY a 'a'>]><domain/>", "document type"),
        (b" " * (2 << 20), "larger|UTF-8|empty"),
    ],
)
def test_a_definition_that_cannot_be_used_fails_its_server_only(
    tmp_path: Path, content: Optional[bytes], complaint: str
) -> None:
    if content is not None:
        file(tmp_path / "web01.xml", content)
    path = file(tmp_path / "Web01_0.raw")
    other = file(tmp_path / "Db01_0.raw")
    file(tmp_path / "db01.xml", domain("Db01", disk(other)).encode())
    text = job_text(path) + f"  - name: Db01\n    definition: db01.xml\n    disks: [{{path: {other}}}]\n"
    prepared = job(tmp_path, text)
    assert [server.name for server in prepared.servers] == ["Db01"]
    refused = prepared.failed[0].error
    assert isinstance(refused, DefinitionError)
    assert any(part in str(refused) for part in complaint.split("|"))


def test_an_empty_disk_and_a_folder_are_no_sources(tmp_path: Path) -> None:
    empty = file(tmp_path / "Web01_0.raw", b"")
    file(tmp_path / "web01.xml", domain("Web01", disk(empty)).encode())
    assert "is empty" in str(error(job(tmp_path, job_text(empty))))
    (tmp_path / "Web01_1.raw").mkdir()
    assert "neither a regular file nor a block device" in str(error(job(tmp_path, job_text(tmp_path / "Web01_1.raw"))))

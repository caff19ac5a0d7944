"""What the machine says of itself."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from anvil_dr.preflight.host import LocalHost


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_two_names_of_one_file_are_one_and_two_files_are_two(tmp_path: Path) -> None:
    image, other, link, hard = (tmp_path / name for name in ("image", "other", "link", "hard"))
    image.write_bytes(b"same")
    other.write_bytes(b"same")
    link.symlink_to(image)
    hard.hardlink_to(image)
    host = LocalHost()
    assert host.path(str(image)).kind == "file"
    assert host.path(str(link)) == host.path(str(hard)) == host.path(str(image)) != host.path(str(other))


def test_what_is_not_there_has_no_identity(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for path in (str(tmp_path / "nothing"), str(tmp_path / "dangling"), "", "/a\0b"):
        assert (LocalHost().path(path).kind, LocalHost().path(path).identity) == ("missing", "")


def test_a_directory_and_a_character_device_are_no_files(tmp_path: Path) -> None:
    assert LocalHost().path(str(tmp_path)).kind == "directory"
    assert LocalHost().path("/dev/null").kind == "other"


@pytest.mark.parametrize(
    ("name", "there"), [("ifn1_bridge1", True), ("ifn2_bridge1", False), ("", False), ("..", False), ("../net", False)]
)
def test_an_interface_is_one_only_by_its_own_name(name: str, there: bool, tmp_path: Path) -> None:
    (tmp_path / "class/net/ifn1_bridge1").mkdir(parents=True)
    assert LocalHost(tmp_path).has_interface(name) is there


def test_devices_are_found_by_address_and_by_vendor_and_product(tmp_path: Path) -> None:
    (tmp_path / "bus/pci/devices/0000:3b:00.0").mkdir(parents=True)
    write(tmp_path / "bus/usb/devices/1-1/idVendor", "0529\n")
    write(tmp_path / "bus/usb/devices/1-1/idProduct", "00a1\n")
    host = LocalHost(tmp_path)
    assert host.has_pci_device("0000:3b:00.0")
    assert not host.has_pci_device("0000:3c:00.0")
    assert host.has_usb_device("0529", "00A1")
    assert not host.has_usb_device("0529", "0002")


def test_free_huge_pages_of_all_sizes_are_counted(tmp_path: Path) -> None:
    assert LocalHost(tmp_path).free_hugepages_bytes() == 0
    write(tmp_path / "kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "3\n")
    write(tmp_path / "kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", "1\n")
    assert LocalHost(tmp_path).free_hugepages_bytes() == 3 * (2 << 20) + (1 << 30)


def test_a_port_that_is_taken_and_an_address_that_is_not_ours_cannot_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "in use" in LocalHost().listening_problem("127.0.0.1", port)
    assert LocalHost().listening_problem("127.0.0.1", 0) == ""
    # TEST-NET-1 of RFC 5737 is nobody's.
    assert LocalHost().listening_problem("192.0.2.1", 0) != ""


def test_a_folder_that_a_user_may_not_pass_is_found() -> None:
    # pytest's own folders are closed to everybody.
    with tempfile.TemporaryDirectory() as root:
        closed = Path(root) / "closed"
        (closed / "inner").mkdir(parents=True)
        for folder in (Path(root), closed, closed / "inner"):
            folder.chmod(0o755)
        image, host, nobody = str(closed / "inner" / "image"), LocalHost(), 64055
        assert host.closed_folder(image, nobody, nobody) == ""
        closed.chmod(0o710)
        assert host.closed_folder(image, nobody, nobody) == str(closed)
        assert host.closed_folder(image, nobody, closed.stat().st_gid) == ""
        assert host.closed_folder(image, 0, 0) == ""
    assert LocalHost().closed_folder("/nowhere/at/all", nobody, nobody) == ""

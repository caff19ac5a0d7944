"""Job files: what a good one means, and what is said of a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from anvil_dr.errors import ConfigError
from anvil_dr.sending.job_file import DiskEntry, JobFile, ServerEntry, load, parse

GOOD = """\
name: nightly
servers:
  - name: Web01
    definition: web01.xml
    disks:
      - {name: Web01_0, path: /dev/an-a05n01_vg0/Web01_0}
      - name: data
        path: /dev/an-a05n01_vg0/Web01_1
        image: copies/web01_1.raw
    left_out: [/dev/sdz]
    nvram: web01.fd
    tpm: /srv/tpm/web01
  - name: Db01
    definition: /etc/libvirt/qemu/Db01.xml
    disks:
      - path: /dev/drbd/by-res/Db01/0
"""


def test_a_job_file_says_it_all_and_its_paths_start_at_its_folder() -> None:
    web = ServerEntry(
        name="Web01",
        definition="/etc/jobs/web01.xml",
        disks=(
            DiskEntry("Web01_0", "/dev/an-a05n01_vg0/Web01_0", None),
            DiskEntry("data", "/dev/an-a05n01_vg0/Web01_1", "/etc/jobs/copies/web01_1.raw"),
        ),
        left_out=("/dev/sdz",),
        nvram="/etc/jobs/web01.fd",
        tpm="/srv/tpm/web01",
    )
    db = ServerEntry("Db01", "/etc/libvirt/qemu/Db01.xml", (DiskEntry("Db01_0", "/dev/drbd/by-res/Db01/0", None),))
    assert parse(GOOD, "/etc/jobs/job.yaml") == JobFile("nightly", (web, db))


def test_a_job_without_a_name_is_called_like_its_file() -> None:
    assert parse(GOOD.replace("name: nightly\n", ""), "/etc/jobs/weekly.yaml").name == "weekly"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("name: nightly", "nmae: nightly", "job.yaml:1: nmae: unknown key; did you mean name?"),
        ("    tpm: /srv", "    tmp: /srv", r"job.yaml:12: servers\[1\].tmp: unknown key; did you mean tpm?"),
        ("        image:", "        imgae:", r"job.yaml:9: servers\[1\].disks\[2\].imgae: unknown key"),
        ("    definition: web01.xml\n", "", r"servers\[1\].definition: is missing"),
        ("definition: web01.xml", "definition: [web01.xml]", r"job.yaml:4: servers\[1\].definition: must be text"),
        ("servers:", "servers: []\nrest:", "job.yaml"),
        ("name: Db01", "name: Web01", r"job.yaml:13: servers\[2\].name: server Web01 is there twice"),
        ("name: data", "name: Web01_0", r"job.yaml:7: servers\[1\].disks\[2\].name: two disks are named Web01_0"),
        ("an-a05n01_vg0/Web01_1", "an-a05n01_vg0/Web01_0", r"job.yaml:8: servers\[1\].disks\[2\].path: .*twice"),
        ("path: /dev/drbd/by-res/Db01/0", "path: Db01.raw", r"job.yaml:16: servers\[2\].disks\[1\].path: .*absolute"),
        ("path: /dev/drbd/by-res/Db01/0", "path: /dev/sdb", r"servers\[2\].disks\[1\].name: is missing"),
        ("[/dev/sdz]", "[/dev/an-a05n01_vg0/Web01_0]", r"job.yaml:10: servers\[1\].left_out: .* among the disks"),
        ("name: Web01\n", "name: Web 01\n", r"job.yaml:3: servers\[1\].name: the name 'Web 01'"),
        ("      - path: /dev/drbd/by-res/Db01/0\n", "", r"job.yaml:15: servers\[2\].disks: must be a list"),
    ],
)
def test_what_is_wrong_is_named_with_its_key_and_line(old: str, new: str, complaint: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=complaint) as refusal:
        parse(GOOD.replace(old, new, 1), "job.yaml")
    assert refusal.value.exit_code == 2


def test_a_list_without_an_entry_is_not_said_to_be_no_list() -> None:
    with pytest.raises(ConfigError, match="job.yaml:2: servers: must have at least one entry, and the list is empty"):
        parse("name: nightly\nservers: []\n", "job.yaml")


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"job.yaml: cannot be read: No such file"):
        load(str(tmp_path / "job.yaml"))
    (tmp_path / "job.yaml").write_bytes(b"name: x\nservers: \xff")
    with pytest.raises(ConfigError, match=r"job.yaml:2: is not UTF-8"):
        load(str(tmp_path / "job.yaml"))

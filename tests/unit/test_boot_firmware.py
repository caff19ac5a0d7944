"""Firmware state that was received with a set is where the server finds it, and what it made of it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from anvil_dr import firmware
from anvil_dr.activation.boot_firmware import FirmwarePlaces, put_in_place, take_back
from anvil_dr.definition import Requirements, requirements
from anvil_dr.model import SetRecord

UUID = "5c3b1f0a-9d1e-4b6b-8a3c-0f6a1d2e3b4c"


@pytest.fixture
def places(tmp_path: Path) -> FirmwarePlaces:
    return FirmwarePlaces(str(tmp_path / "state"), str(tmp_path / "definitions"), str(tmp_path / "swtpm"))


def record(job: str) -> SetRecord:
    return SetRecord("Web01", "2026-11-20T01:02:03+00:00", "an-a05n01", job, ())


def needs(places: FirmwarePlaces, *, nvram: str = "", version: str = "2.0", uuid: str = UUID.upper()) -> Requirements:
    return requirements(
        f"<domain type='kvm'><name>Web01</name><uuid>{uuid}</uuid><memory>1</memory>"
        f"<os><type>hvm</type><nvram>{nvram or places.nvram('Web01')}</nvram></os><devices>"
        f"<tpm model='tpm-crb'><backend type='emulator' version='{version}'/></tpm></devices></domain>"
    )


def keep(places: FirmwarePlaces, job: str, word: str) -> SetRecord:
    firmware.keep(
        places.state, record(job), {"nvram": f"nvram {word}".encode(), "tpm/tpm2-00.permall": f"tpm {word}".encode()}
    )
    return record(job)


def nvram(places: FirmwarePlaces) -> str:
    return Path(places.nvram("Web01")).read_text()


def tpm(places: FirmwarePlaces) -> Path:
    return Path(places.tpm, UUID, "tpm2")


def test_a_server_finds_what_belongs_to_its_own_set_also_when_that_is_not_the_newest(places: FirmwarePlaces) -> None:
    newest, older = keep(places, "job-2", "new"), keep(places, "job-1", "old")
    put_in_place(places, "Web01", needs(places), newest, ran_before=False)
    assert nvram(places) == "nvram new"
    assert put_in_place(places, "Web01", needs(places), older, ran_before=False) == ("UEFI variables", "TPM")
    assert nvram(places) == "nvram old"
    assert (tpm(places) / "tpm2-00.permall").read_text() == "tpm old"


def test_nothing_of_another_tpm_stays_in_its_folder(places: FirmwarePlaces) -> None:
    tpm(places).mkdir(parents=True)
    (tpm(places) / "tpm2-00.volatilestate").write_text("of an older life")
    put_in_place(places, "Web01", needs(places), keep(places, "job-1", "x"), ran_before=False)
    assert [path.name for path in tpm(places).iterdir()] == ["tpm2-00.permall"]


def test_a_server_that_ran_here_before_goes_on_with_what_it_has_changed(places: FirmwarePlaces) -> None:
    one = keep(places, "job-1", "received")
    put_in_place(places, "Web01", needs(places), one, ran_before=False)
    Path(places.nvram("Web01")).write_text("changed here")
    assert put_in_place(places, "Web01", needs(places), one, ran_before=True) == ()
    assert nvram(places) == "changed here"
    Path(places.nvram("Web01")).unlink()
    assert put_in_place(places, "Web01", needs(places), one, ran_before=True) == ("UEFI variables",)


def test_a_path_that_the_admin_chose_is_never_written_to(places: FirmwarePlaces, tmp_path: Path) -> None:
    own = tmp_path / "own.fd"
    own.write_text("the admin's")
    found = needs(places, nvram=str(own))
    assert put_in_place(places, "Web01", found, keep(places, "job-1", "x"), ran_before=False) == ("TPM",)
    assert own.read_text() == "the admin's"


def test_a_set_without_firmware_state_or_without_a_record_changes_nothing(places: FirmwarePlaces) -> None:
    assert put_in_place(places, "Web01", needs(places), record("job-9"), ran_before=False) == ()
    assert put_in_place(places, "Web01", needs(places), None, ran_before=False) == ()


def test_a_tpm_of_the_first_kind_has_another_folder(places: FirmwarePlaces) -> None:
    assert places.tpm_of(needs(places, version="1.2")) == str(Path(places.tpm, UUID, "tpm1.2"))


def test_what_the_server_made_of_it_is_kept_with_its_set(places: FirmwarePlaces) -> None:
    one, other = keep(places, "job-1", "received"), keep(places, "job-2", "other")
    put_in_place(places, "Web01", needs(places), one, ran_before=False)
    Path(places.nvram("Web01")).write_text("changed here")
    (tpm(places) / "tpm2-00.permall").write_text("sealed here")
    take_back(places, "Web01", needs(places), one, places.nvram("Web01"))
    put_in_place(places, "Web01", needs(places), other, ran_before=False)
    put_in_place(places, "Web01", needs(places), one, ran_before=False)
    assert nvram(places) == "changed here"
    assert (tpm(places) / "tpm2-00.permall").read_text() == "sealed here"

"""What counts as a sign of life, what is left of a rehearsal, and what a manager is shown of it."""

from __future__ import annotations

import html.parser
import zlib
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import pytest
from lxml import etree

from anvil_dr.activation.boot_firmware import FirmwarePlaces
from anvil_dr.activation.boot_plan import BootPlan, Draft, PlannedServer
from anvil_dr.activation.overlays import Overlays
from anvil_dr.config import SignOfLife
from anvil_dr.definition import requirements
from anvil_dr.errors import CommandError
from anvil_dr.model import ImageSet, Owner, SetRecord, StoredImage
from anvil_dr.ports import Completed, Domain, DomainState
from anvil_dr.preflight.findings import problem, warning
from anvil_dr.rehearsal import rehearsal_records, rehearsal_report
from anvil_dr.rehearsal.picture import as_png
from anvil_dr.rehearsal.rehearsal_result import Rehearsal, RehearsalResult
from anvil_dr.rehearsal.rehearsal_turns import RehearsalTurns
from anvil_dr.rehearsal.rehearse import Rehearser
from tests.doubles.hypervisor import FakeHypervisor

AT = "2026-11-20T01:02:03+00:00"
NOW = datetime(2026, 11, 20, 4, 2, 3, tzinfo=timezone.utc)
PICTURE = b"P6\n2 1\n255\n" + bytes((255, 0, 0, 0, 255, 0))


class QemuImg:
    """Stands for qemu-img create."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def __call__(self, argv: Tuple[str, ...], *, timeout_seconds: float = 1, stdin: bytes = b"") -> Completed:
        if self.broken:
            raise CommandError(argv, 1, b"", b"No space left on device")
        Path(argv[-1]).write_bytes(b"QFI\xfb")
        return Completed(argv, b"", b"")


class Seen:
    def __init__(self) -> None:
        self.said: List[str] = []

    def began(self, server: str) -> None:
        self.said.append(f"{server} began")

    def ended(self, result: RehearsalResult) -> None:
        self.said.append(f"{result.server} {result.verdict}")


def server(name: str, *, agent: bool = False, broken: bool = False, running: bool = False) -> PlannedServer:
    path = f"/srv/{name}_d_1.raw"
    image = StoredImage(Owner(name, "d"), 1, "/srv", "inode:1", 4096, path)
    record = SetRecord(name, AT, "an-a05n01", "job-1", ())
    xml = (
        f"<domain type='kvm'><name>{name}</name><memory>1</memory><os><type>hvm</type></os><devices>"
        f"<disk type='file' device='disk'><source file='{path}'/><target dev='vda'/></disk></devices></domain>"
    )
    findings = (problem("no bridge lan1", "make it"),) if broken else (warning("its source has changed"),)
    draft = Draft(
        name, "", ImageSet(name, 1, (image,), True, record), needs=requirements(xml), disk_paths=(("d", path),),
        has_agent=agent, xml=xml, findings=findings, running=running,
    )  # fmt: skip
    return PlannedServer(draft)


def rehearse(
    tmp_path: Path,
    *servers: PlannedServer,
    hypervisor: Optional[FakeHypervisor] = None,
    sign: Optional[SignOfLife] = None,
    qemu_img: Optional[QemuImg] = None,
    overlays: Optional[Overlays] = None,
    stop_at: float = 9e9,
) -> Dict[str, RehearsalResult]:
    fake = hypervisor or FakeHypervisor()
    rehearser = Rehearser(
        fake, overlays or Overlays(str(tmp_path / "overlays"), qemu_img or QemuImg()),
        FirmwarePlaces(str(tmp_path / "state"), str(tmp_path), str(tmp_path / "tpm")), RehearsalTurns(str(tmp_path)),
        {"Web01": sign} if sign is not None else {}, now=lambda: AT, clock=fake.clock.now, sleep=fake.clock.sleep,
    )  # fmt: skip
    results = rehearser.run(BootPlan(servers, fake.facts), Seen(), lambda: fake.clock.now() >= stop_at)
    assert list((tmp_path / "overlays").glob("*")) == [], "nothing is left behind"
    assert fake.booted_xml == {}, "and nothing runs"
    return {one.server: one for one in results}


class Answers(FakeHypervisor):
    """Its guests' agents answer after eight seconds."""

    def agent_answers(self, name: str, *, timeout_seconds: int) -> bool:
        return self.clock.now() >= 1008


@dataclass
class Keeps(FakeHypervisor):
    """Remembers what was destroyed."""

    destroyed: List[str] = field(default_factory=list)

    def destroy(self, name: str) -> None:
        self.destroyed.append(name)
        super().destroy(name)


class Says(FakeHypervisor):
    """Its guests write to their serial ports, where these lead to a file."""

    def boot(self, xml: str, *, paused: bool = False, autodestroy: bool = False) -> Domain:
        source = etree.fromstring(xml).find("devices/serial/source")
        if source is not None:
            Path(source.get("path")).write_text("Debian 12\nweb01 login: ")
        return super().boot(xml, paused=paused, autodestroy=autodestroy)


def test_an_agent_that_answers_is_a_sign_of_life_and_its_time_is_the_recovery_time(tmp_path: Path) -> None:
    found = rehearse(tmp_path, server("Web01", agent=True), hypervisor=Answers())["Web01"]
    assert (found.verdict, found.detail) == ("passed", "its guest agent answers")
    assert found.seconds == pytest.approx(8, abs=1)
    assert (found.sequence, found.received_at, found.warnings) == (1, AT, ("its source has changed",))
    assert found.screenshot is not None and found.screenshot.startswith(b"\x89PNG")


def test_without_anything_to_wait_for_a_server_has_come_up_once_it_has_run_for_a_while(tmp_path: Path) -> None:
    found = rehearse(tmp_path, server("Web01"))["Web01"]
    assert (found.verdict, found.detail) == ("passed", "it has run for 120 s; look at its screen")


def test_a_line_on_its_serial_port_is_a_sign_of_life(tmp_path: Path) -> None:
    found = rehearse(tmp_path, server("Web01"), hypervisor=Says(), sign=SignOfLife("serial", r"web\d+ login:"))["Web01"]
    assert (found.verdict, found.detail) == ("passed", "it said on its serial port: web01 login:")
    assert found.seconds == pytest.approx(0, abs=1)


@pytest.mark.parametrize(
    ("sign", "detail"),
    [
        (SignOfLife("agent"), "no sign of life within 300 s: its guest agent does not answer"),
        (SignOfLife("serial", "never"), "no sign of life within 300 s: what was waited for did not come"),
    ],
)
def test_a_sign_that_does_not_come_is_a_failure_with_a_picture(tmp_path: Path, sign: SignOfLife, detail: str) -> None:
    found = rehearse(tmp_path, server("Web01"), sign=sign)["Web01"]
    assert found.verdict == "failed"
    assert found.detail.startswith(detail)
    assert found.screenshot is not None


def test_a_time_that_was_set_is_waited_for_also_if_it_is_long(tmp_path: Path) -> None:
    found = rehearse(tmp_path, server("Web01"), sign=SignOfLife("time", seconds=600))["Web01"]
    assert (found.verdict, found.detail) == ("passed", "it has run for 600 s; look at its screen")


@pytest.mark.parametrize("state", ["paused", "crashed", "gone"])
def test_a_guest_that_does_not_stay_up_has_failed(tmp_path: Path, state: DomainState) -> None:
    fake = FakeHypervisor(states={"Web01-rehearsal": state})
    assert rehearse(tmp_path, server("Web01"), hypervisor=fake)["Web01"].verdict == "failed"


class Full(Overlays):
    """On a file system on which each look finds half a GiB less."""

    free = 3 << 29

    def free_bytes(self) -> int:
        self.free -= 1 << 29
        return self.free


def test_a_guest_that_fills_the_disk_of_its_overlays_is_ended_before_it_is_full(tmp_path: Path) -> None:
    fake, overlays = Keeps(), Full(str(tmp_path / "overlays"), QemuImg())
    found = rehearse(tmp_path, server("Web01"), server("Db01"), hypervisor=fake, overlays=overlays)
    assert "has only 512.0 MiB free, and 1.0 GiB are kept for the host" in found["Web01"].detail
    assert found["Web01"].verdict == found["Db01"].verdict == "failed"
    assert [name for name, _ in fake.booted] == fake.destroyed == ["Web01-rehearsal"]


def test_a_server_that_has_the_name_of_a_rehearsal_is_left_alone(tmp_path: Path) -> None:
    fake = Keeps(refused={"Web01-rehearsal": "domain 'Web01-rehearsal' already exists"})
    found = rehearse(tmp_path, server("Web01"), server("Db01"), hypervisor=fake)
    assert "already exists" in found["Web01"].detail and fake.destroyed == ["Db01-rehearsal"]


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    fake = FakeHypervisor(refused={"Db01-rehearsal": "no such machine"})
    found = rehearse(tmp_path, server("Db01"), server("Web01"), hypervisor=fake)
    assert {name: (one.verdict, one.detail) for name, one in found.items()} == {
        "Db01": ("failed", "no such machine"),
        "Web01": ("passed", "it has run for 120 s; look at its screen"),
    }


def test_one_that_could_not_be_booted_today_is_not_rehearsed_and_one_that_runs_is_left_alone(tmp_path: Path) -> None:
    fake = FakeHypervisor()
    found = rehearse(tmp_path, server("Bad01", broken=True), server("Up01", running=True), hypervisor=fake)
    assert (found["Bad01"].verdict, found["Bad01"].detail) == ("not bootable", "no bridge lan1")
    assert found["Up01"].verdict == "skipped"
    assert fake.booted == []


def test_whoever_stops_it_leaves_nothing_behind(tmp_path: Path) -> None:
    found = rehearse(tmp_path, server("Db01"), server("Web01"), stop_at=1030)
    assert {one.verdict for one in found.values()} == {"interrupted"}


def test_overlays_that_cannot_be_made_fail_the_rehearsal_and_nothing_else(tmp_path: Path) -> None:
    found = rehearse(tmp_path, server("Web01"), qemu_img=QemuImg(broken=True))["Web01"]
    assert found.verdict == "failed"
    assert "No space left on device" in found.detail


def test_a_qemu_without_networks_of_its_own_rehearses_without_cards(tmp_path: Path) -> None:
    class Bare(FakeHypervisor):
        def boot(self, xml: str, *, paused: bool = False, autodestroy: bool = False) -> Domain:
            if "type=\"user\"" in xml:
                self.refused = {"Web01-rehearsal": "network backend 'user' is not compiled into this binary"}
            else:
                self.refused = {}
            return super().boot(xml, paused=paused, autodestroy=autodestroy)

    plain = server("Web01")
    xml = (plain.draft.xml or "").replace("</devices>", "<interface type='bridge'/></devices>")
    found = rehearse(tmp_path, replace(plain, draft=replace(plain.draft, xml=xml)), hypervisor=Bare())
    assert found["Web01"].verdict == "passed"


# — pictures —


def test_a_ppm_becomes_a_png_with_the_same_pixels() -> None:
    png = as_png(PICTURE.replace(b"2 1\n", b"# made by hand\n2 1\n"))
    assert png is not None
    start = png.index(b"IDAT") + 4
    assert zlib.decompress(png[start : png.index(b"IEND") - 8]) == b"\0" + bytes((255, 0, 0, 0, 255, 0))
    assert as_png(png) == png


@pytest.mark.parametrize("data", [b"", b"JFIF", PICTURE[:-1], b"P6 0 0 255 ", b"P6 99999 99999 255 " + bytes(100)])
def test_what_is_no_picture_is_none(data: bytes) -> None:
    assert as_png(data) is None


# — the report and the records —


def result(name: str = "Web01", verdict: str = "passed", **changes: object) -> RehearsalResult:
    plain = RehearsalResult(name, verdict, "its guest agent answers", 12.34, 1, AT)  # type: ignore[arg-type]
    return replace(plain, **changes)  # type: ignore[arg-type]


class Page(html.parser.HTMLParser):
    """What a browser would load, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: List[str] = []
        self.text: List[str] = []
        self.tags: List[str] = []
        self.open: List[str] = []
        self.feed(text)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page(*results: RehearsalResult, earlier: Tuple[Rehearsal, ...] = ()) -> Page:
    return Page(rehearsal_report.html(Rehearsal("dr01", "2026-11-20T04:00:00+00:00", results), earlier, NOW))


def test_a_report_says_what_a_manager_asks() -> None:
    found = page(result(), result("Db01", "failed", seconds=None, detail="it was booted and then crashed"))
    text = " ".join(found.text)
    for words in ("1 of 2 servers came up. Db01 would have been down", "12.3 s", "2 hours ago (set 1)",
                  "did not come up", "then crashed"):  # fmt: skip
        assert words in text


def test_the_two_numbers_of_a_plan_for_disasters_stand_at_the_top() -> None:
    older = result("Db01", received_at="2026-11-18T04:00:00+00:00", seconds=100.0)
    text = " ".join(page(result(), older).text)
    assert "Recovery time (RTO) 100.0 s the slowest: Db01" in text
    assert "Data lost at most (RPO) 2 days the oldest copy: Db01" in text


def test_a_rehearsal_that_was_ended_early_is_no_failure_and_no_part_of_the_trend() -> None:
    ended = result(verdict="interrupted", seconds=None)
    found = page(ended, result("Db01", "interrupted", seconds=None), earlier=(Rehearsal("dr01", AT, (ended,)),))
    text = " ".join(found.text)
    assert "0 of 2 servers came up. The rehearsal was ended before Web01 and Db01 could be tried" in text
    assert "would have been down" not in text
    assert "no trend yet" in text


def test_the_trend_is_drawn_with_a_bar_for_each_rehearsal() -> None:
    earlier = tuple(Rehearsal("dr01", f"2026-11-{day:02}T04:00:00+00:00", (result(),)) for day in (1, 2))
    found = page(result("Db01", "failed", seconds=None), earlier=earlier)
    assert found.tags.count("rect") == 3
    assert "0 of 1" in found.text


def test_a_report_is_one_file_that_loads_nothing() -> None:
    found = page(result(screenshot=as_png(PICTURE)))
    (source,) = found.loaded
    assert source.startswith("data:image/png;base64,")
    assert "script" not in found.tags and "link" not in found.tags


def test_foreign_text_stays_text() -> None:
    found = page(result(detail="<script>alert(1)</script>\x1b[2J", warnings=("<img src=x>",)))
    assert "script" not in found.tags and "img" not in found.tags
    assert any("<script>" in text for text in found.text)


def test_a_trend_shows_the_last_rehearsals_server_by_server() -> None:
    earlier = tuple(
        Rehearsal("dr01", f"2026-11-{day:02}T04:00:00+00:00", (result("Old01", seconds=float(day)),))
        for day in range(1, 20)
    )
    found = page(result(), earlier=earlier)
    text = " ".join(found.text)
    assert "The last 10 rehearsals" in text
    assert "19.0 s" in text and "11.0 s" in text and "10.0 s" not in text
    assert "no trend yet" in " ".join(page(result()).text)


def test_what_is_kept_is_read_back_oldest_first_and_without_pictures(tmp_path: Path) -> None:
    for day in (3, 1, 2):
        at = f"2026-11-{day:02}T04:00:00+00:00"
        path = rehearsal_records.keep(
            str(tmp_path), Rehearsal("dr01", at, (result(screenshot=b"x", warnings=("w",)),)), f"report {day}"
        )
        assert path is not None and Path(path).read_text() == f"report {day}"
    (tmp_path / "rehearsals" / "20261101T050000Z.json").write_text("{")
    kept = rehearsal_records.load(str(tmp_path))
    assert [one.at[8:10] for one in kept] == ["01", "02", "03"]
    assert kept[0].results == (result(warnings=("w",)),)


def test_the_last_time_that_a_server_was_rehearsed_to_the_end_is_known(tmp_path: Path) -> None:
    for day, verdict in ((1, "passed"), (2, "failed"), (3, "interrupted")):
        at = f"2026-11-{day:02}T04:00:00+00:00"
        rehearsal_records.keep(str(tmp_path), Rehearsal("dr01", at, (result(verdict=verdict),)), "")
    last = rehearsal_records.last_of_each(str(tmp_path))["Web01"]
    assert (last.at[8:10], last.result.verdict) == ("02", "failed")


def test_old_reports_are_forgotten_before_old_records(tmp_path: Path) -> None:
    for minute in range(15):
        rehearsal_records.keep(str(tmp_path), Rehearsal("dr01", f"2026-11-20T04:{minute:02}:00+00:00", ()), "")
    assert len(list((tmp_path / "rehearsals").glob("*.html"))) == 10
    assert len(rehearsal_records.load(str(tmp_path))) == 15


def test_a_rehearsal_that_cannot_be_kept_was_one_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "rehearsals").write_text("")
    assert rehearsal_records.keep(str(tmp_path), Rehearsal("dr01", AT, ()), "") is None
    assert rehearsal_records.load(str(tmp_path)) == ()

"""Ages and sizes, as somebody reads them who is in a hurry."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil_dr import words

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("ago", "said"),
    [
        (timedelta(seconds=-30), "just now"),
        (timedelta(seconds=59), "just now"),
        (timedelta(minutes=1), "1 minute ago"),
        (timedelta(minutes=59, seconds=59), "59 minutes ago"),
        (timedelta(hours=1), "1 hour ago"),
        (timedelta(hours=47), "47 hours ago"),
        (timedelta(days=2), "2 days ago"),
        (timedelta(days=13, hours=23), "13 days ago"),
        (timedelta(days=14), "2 weeks ago"),
        (timedelta(days=69), "9 weeks ago"),
        (timedelta(days=70), "2 months ago"),
        (timedelta(days=700), "23 months ago"),
        (timedelta(days=730), "2 years ago"),
        (timedelta(minutes=-2), "in the future (is the clock right?)"),
    ],
)
def test_an_age_is_said_in_its_largest_fitting_unit(ago: timedelta, said: str) -> None:
    assert words.age((NOW - ago).isoformat(), NOW) == said


@pytest.mark.parametrize(
    "text", ["2026-11-20T09:00:00Z", "2026-11-20T09:00:00+00:00", "2026-11-20T10:00:00+01:00", "2026-11-20T09:00:00"]
)
def test_a_time_is_read_in_every_form_that_it_may_have(text: str) -> None:
    assert words.age(text, NOW) == "3 hours ago"


def test_a_time_that_is_none_is_said_to_be_unknown() -> None:
    assert words.age("yesterday", NOW) == "at an unknown time"


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (40 * 1024**3, "40.0 GiB"),
        (3 * 2**50 * 2000, "6000.0 PiB"),
    ],
)
def test_sizes_are_powers_of_1024(size_bytes: int, said: str) -> None:
    assert words.size(size_bytes) == said


@pytest.mark.parametrize(
    ("items", "said"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_lists_read_like_a_sentence(items: list, said: str) -> None:  # type: ignore[type-arg]
    assert words.listed(items) == said


@given(st.text())
def test_foreign_text_never_commands_the_terminal_and_plain_text_stays_as_it_is(text: str) -> None:
    shown = words.printable(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()


def test_more_than_one_of_something_reads_well() -> None:
    assert [words.count(number, "server") for number in (1, 2)] == ["1 server", "2 servers"]
    assert [words.count(number, "address") for number in (1, 0)] == ["1 address", "0 addresses"]


def test_a_long_line_is_folded_between_words_and_no_path_is_broken() -> None:
    text = "  warning: edit /shared/definitions/a-long-name.xml line 12"
    assert words.folded(text, 44) == ["  warning: edit", "    /shared/definitions/a-long-name.xml line", "    12"]
    assert words.folded(text, 60, 11) == (text,)
    assert words.folded(text, 56, 11) == [text[:-3], " " * 11 + "12"]

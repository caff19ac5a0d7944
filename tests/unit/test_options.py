"""What a command says of options that are wrong: one line that names it, one that helps on, exit code 2."""

from __future__ import annotations

from typing import List

import pytest

from anvil_dr.cli import send, status


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--too", "ssh://dr01", "Web01"], "there is no option --too (did you mean --to?)"),
        (["--too=ssh://dr01", "Web01"], "there is no option --too (did you mean --to?)"),
        (["--to", "ssh://dr01", "-x"], "there is no option -x"),
        (["--to", "ssh://dr01", "Web01", "--zebra"], "there is no option --zebra"),
        (["Web01"], "the following arguments are required: --to"),
        (["--to"], "argument --to: expected one argument"),
        *(
            (
                ["--to", "ssh://dr01", "--shutdown-timeout", wrong],
                f"argument --shutdown-timeout: {wrong} is no number of seconds up to 86400, a day",
            )
            for wrong in ("-5", "0", "86401", "soon", "nan")
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(typed: List[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        send.main(typed)
    assert ended.value.code == 2
    wrong, more = capsys.readouterr().err.splitlines()
    assert (wrong, more) == (f"anvil-dr-send: {said}", "All options: anvil-dr-send --help")


def test_a_server_whose_name_looks_like_an_option_comes_after_two_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        send.main(["--", "--too"])
    assert "arguments are required: --to" in capsys.readouterr().err


def test_the_beginning_of_an_option_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        status.main(["--vers"])
    assert ended.value.code == 0

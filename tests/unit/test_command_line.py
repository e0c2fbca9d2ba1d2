"""Words on the command line that make no sense are refused in one sentence, before anything is done."""

from __future__ import annotations

import pytest

from controller.__main__ import main


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-inf", "1e400", "-1", "0", "-0.0", "604801", "1e300", "soon", "", "5s", "0x10", "1,5"]
)
def test_drain_takes_no_timeout_that_never_comes_or_is_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["drain", f"--timeout={text}"])
    assert ended.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith(f"argument --timeout: {text!r} is not a number of seconds above 0 and at most 604,800")


def test_an_error_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "\x1b]0;owned\x07\r"]) == 1
    assert capsys.readouterr().err.isascii()
    assert main(["explain", "x\u202e\x9b"]) == 1
    assert capsys.readouterr().err.strip().isprintable()

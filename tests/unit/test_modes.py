"""``--chmod``: octal and symbolic modes do what chmod(1) does with an umask of 0."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.dockerfile.modes import octal, parse

TEXTS = (
    "u+x", "go-w", "a=r", "+x", "=", "-x", "u=rwx,go=rx", "g=u", "o=g", "u=g,g=o", "a+X", "go+X", "u+s", "g+s", "+t",
    "u-s", "-t", "o+t", "ug+s", "u=s", "a-rwx", "u+rw-x", "u=rwx,g=rx,o=", "og=", "u=,u+r", "o=u-w", "a+rwXst", "+s",
    "g-s", "=X", "u+t", "o+s", "a=rx", "u=rws", "g=rwxs", "o=t",
)  # fmt: skip
STARTS = (0o000, 0o644, 0o755, 0o4755, 0o2750, 0o1777, 0o7777, 0o111, 0o421)


def by_chmod(path: Path, start: int, text: str) -> int:
    path.chmod(start)
    subprocess.run(["chmod", "--", text, str(path)], check=True, umask=0)
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("directory", [False, True], ids=["file", "directory"])
def test_symbolic_modes_are_chmods(tmp_path: Path, text: str, directory: bool) -> None:
    path = tmp_path / "it"
    path.mkdir() if directory else path.touch()
    change = parse(text)
    for start in STARTS:
        assert oct(change(start, directory)) == oct(by_chmod(path, start, text)), f"{text} on {start:o}"


CLAUSES = st.from_regex(r"[ugoa]{0,3}([-+=]([rwxXst]{0,4}|[ugo])){1,2}", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(CLAUSES, min_size=1, max_size=3).map(",".join), st.integers(0, 0o7777))
def test_any_symbolic_mode_is_chmods(tmp_path_factory: pytest.TempPathFactory, text: str, start: int) -> None:
    path = tmp_path_factory.getbasetemp() / "chmod-me"
    path.touch()
    assert oct(parse(text)(start, False)) == oct(by_chmod(path, start, text))


@pytest.mark.parametrize(
    ("text", "mode"), [("0", 0), ("755", 0o755), ("0644", 0o644), ("7777", 0o7777), ("04755", 0o4755)]
)
def test_octal_modes_replace(text: str, mode: int) -> None:
    assert octal(text) == mode
    assert parse(text)(0o123, False) == parse(text)(0o7777, True) == mode


@pytest.mark.parametrize(
    "text", ["8", "999", "10000", "77777", "0o755", "u", "u+q", "rwx", "u+x,", ",u+x", "u x", "+x\n", ""]
)
def test_what_is_no_mode_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid chmod parameter"):
        parse(text)


def test_symbolic_text_is_no_number() -> None:
    assert octal("u+x") is None

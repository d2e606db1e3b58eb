"""USER and --chown: names from the stage's own files, whatever those are, and numbers that fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.rootfs.tree import Tree, open_directory
from executor.solver import users
from executor.solver.users import Identity
from platforms.errors import BuildError

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# daemon:x:7:7::/:/bin/sh
app:x:1000:100:App:/home/app:/bin/sh
nohome:x:1001:100:::
7:x:70:71::/seven:/bin/sh
"""
GROUP = "root:x:0:\nusers:x:100:\nstaff:x:50:app,other\ndocker:x:51:other,app\nwheel:x:10:root\n"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Tree]:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text(PASSWD)
    (tmp_path / "etc" / "group").write_text(GROUP)
    tree = open_directory(tmp_path)
    yield tree
    tree.close()


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", Identity(0, 0, (0, 10), "/root")),
        ("root", Identity(0, 0, (0, 10), "/root")),
        ("app", Identity(1000, 100, (100, 50, 51), "/home/app")),
        ("1000", Identity(1000, 100, (100, 50, 51), "/home/app")),
        ("app:staff", Identity(1000, 50, (50,), "/home/app")),
        ("app:7", Identity(1000, 7, (7,), "/home/app")),
        ("1000:100", Identity(1000, 100, (100,), "/home/app")),
        ("4321", Identity(4321, 0, (0,), "/")),
        ("4321:1234", Identity(4321, 1234, (1234,), "/")),
        ("nohome", Identity(1001, 100, (100,), "")),
        ("2147483647", Identity(2147483647, 0, (0,), "/")),
    ],
)
def test_who_a_step_runs_as(stage: Tree, text: str, meant: Identity) -> None:
    assert users.identity(stage, text) == meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("app", (1000, 100)),
        ("app:", (1000, 100)),
        ("app:staff", (1000, 50)),
        (":staff", (0, 50)),
        ("5", (5, 5)),
        ("5:6", (5, 6)),
        ("5:staff", (5, 50)),
        ("nobody-knows", (0, 0)),
        ("app:nobody-knows", (1000, 100)),
    ],
)
def test_whose_a_copied_file_is(stage: Tree, text: str, meant: tuple[int, int]) -> None:
    assert users.owner(stage, text) == meant


@pytest.mark.parametrize("text", ["stranger", "app:strangers", "stranger:0", "-1", "0x10", "１", "1e3"])
def test_a_step_cannot_run_as_somebody_unknown(stage: Tree, text: str) -> None:
    with pytest.raises(BuildError, match="unable to find"):
        users.identity(stage, text)


@pytest.mark.parametrize("number", ["2147483648", "4294967296", "4294967295", "18446744073709551616", "9" * 5000])
@pytest.mark.parametrize("form", ["{}", "{}:0", "0:{}", "root:{}"])
def test_a_number_that_does_not_fit_is_an_error_and_never_root(stage: Tree, number: str, form: str) -> None:
    """CVE-2024-40635: 2**32 wraps to 0."""
    text = form.format(number)
    with pytest.raises(BuildError, match="range"):
        users.identity(stage, text)
    with pytest.raises(BuildError, match="range"):
        users.owner(stage, text)


@pytest.mark.parametrize("number", ["4294967296", "-1", "", "x", "2147483648", "99999999999999999999"])
def test_an_id_in_passwd_that_does_not_fit_is_an_error(tmp_path: Path, number: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text(f"u:x:{number}:0::/:\ng:x:1:{number}::/:\n")
    (tmp_path / "etc" / "group").write_text(f"big:x:{number}:\n")
    tree = open_directory(tmp_path)
    for text in ("u", "g", "0:big"):
        with pytest.raises(BuildError):
            users.identity(tree, text)
        with pytest.raises(BuildError):
            users.owner(tree, text)
    tree.close()


@pytest.mark.parametrize("name", ["passwd", "group"])
@pytest.mark.parametrize("kind", ["fifo", "huge", "directory", "device link", "loop"])
def test_files_that_are_none_neither_hang_nor_fill_memory(tmp_path: Path, name: str, kind: str) -> None:
    """CVE-2024-9676: a fifo or /dev/zero for /etc/passwd hung builders and ate their memory."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text(PASSWD)
    path = tmp_path / "etc" / name
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device link":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(name)
    tree = open_directory(tmp_path)
    text = "someone" if name == "passwd" else "0:someone"
    with pytest.raises(BuildError):
        users.identity(tree, text)
    if kind != "device link":  # which leads to nothing inside, and an owner nobody knows is root
        with pytest.raises(BuildError):
            users.owner(tree, text)
    tree.close()


def test_a_link_leads_to_the_stages_own_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr" / "passwd").write_text("inside:x:5:6::/:\n")
    (tmp_path / "etc" / "passwd").symlink_to("../../../../usr/passwd")
    tree = open_directory(tmp_path)
    assert users.owner(tree, "inside") == (5, 6)
    (tmp_path / "etc" / "passwd").unlink()
    (tmp_path / "etc" / "passwd").symlink_to("/etc/group")  # of the stage, which has none
    assert users.owner(tree, "root") == (0, 0)
    with pytest.raises(BuildError):
        users.identity(tree, "daemon")
    tree.close()


def test_a_stage_without_files_has_numbers() -> None:
    assert users.identity(None, "5:6") == Identity(5, 6, (6,))
    assert users.identity(None, "") == Identity()
    assert users.owner(None, "5") == (5, 5)
    with pytest.raises(BuildError):
        users.identity(None, "app")

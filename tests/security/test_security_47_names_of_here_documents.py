"""Attack 47 (review): the name of a here-document is a path on the machine that builds.

``COPY <<../../../../path /dst/`` wrote the content to that path, through links, with the rights of whoever builds. What
is kept on this machine lies in files that are named here; a here-document's name is only what its entry is called, and
it is one component: what BuildKit makes of a name in an empty root directory, it is here too.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import Base, Kanifold
from oci_layout import read_image

CLIMB = "../" * 24


def build(kanifold: Kanifold, dockerfile: str, *arguments: str | Path) -> tuple[int, str, Path]:
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text(dockerfile)
    out = folder.with_name("out")
    done = kanifold.run("build", folder, "--output", f"type=oci,tar=false,dest={out}", *arguments)
    return done.code, done.said, out


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that everybody may write to, at the end of a link that everybody may follow."""
    file = tmp_path / "canary"
    file.write_text("alive")
    file.chmod(0o666)
    for step in (tmp_path, *tmp_path.parents):
        if step.owner() == tmp_path.owner() and step != Path("/tmp"):
            step.chmod(step.stat().st_mode | 0o111)
    (tmp_path / "link").symlink_to(file)
    return file


@pytest.mark.parametrize("who", ["kanifold", "kanifold_as_user", "kanifold_as_bare_user"])
@pytest.mark.parametrize("keyword", ["COPY", "ADD"])
def test_nothing_is_written_at_the_path_that_a_name_is(
    request: pytest.FixtureRequest, canary: Path, keyword: str, who: str
) -> None:
    for place in (canary, canary.with_name("link"), canary.with_name("new"), canary.with_name("no") / "such"):
        kanifold: Kanifold = request.getfixturevalue(who)
        name = f"{CLIMB}{str(place)[1:]}"
        folder = kanifold.folder(f"context-{place.name}")
        (folder / "Dockerfile").write_text(f"FROM scratch\n{keyword} <<{name} /dst/\ndead\n{name}\n")
        done = kanifold.run("build", folder, "--output", "type=tar,dest=-")
        assert done.code == 1, done.said
        assert "no such directory" in done.said
        assert "Traceback" not in done.said
    assert canary.read_text() == "alive"
    assert canary.stat().st_mode & 0o7777 == 0o666
    assert sorted(each.name for each in canary.parent.iterdir() if each.name not in ("home", "registry")) == [
        "canary",
        "link",
    ]


def test_a_name_that_only_climbs_is_the_file_at_its_end(kanifold: Kanifold) -> None:
    """As in BuildKit, whose empty root directory has nothing above it."""
    names = {"../../../x": "x", "/y": "y", "a/../z": "z", "./w/": "w", "a*[b]": "a*[b]"}
    steps = "".join(f"COPY <<{name} /dst/\nof {name}\n{name}\n" for name in names)
    code, said, out = build(kanifold, f"FROM scratch\n{steps}COPY <<../one /named\nnamed\n../one\n")
    assert code == 0, said
    image = read_image(out, "linux/amd64")
    assert {path: image.text(path) for path in image.tree if image.tree[path].kind == "file"} == {
        **{f"dst/{name}": f"of {whole}\n" for whole, name in names.items()},
        "named": "named\n",
    }


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a/b", "no such directory"),
        ("../a/b", "no such directory"),
        ("..", "is a directory"),
        (".", "is a directory"),
        ("/", "is a directory"),
        ("n" * 256, "file name too long"),
    ],
)
@pytest.mark.parametrize("keyword", ["COPY", "ADD", "RUN"])
def test_a_name_that_is_none_of_a_file_is_an_error(
    kanifold: Kanifold, busybox: Base, keyword: str, name: str, why: str
) -> None:
    destination, body = ("", "#!/bin/sh\ntrue") if keyword == "RUN" else (" /dst/", "content")
    code, said, _ = build(kanifold, f"FROM {busybox.ref}\n{keyword} <<{name}{destination}\n{body}\n{name}\n")
    assert code == 1, said
    assert why in said
    assert "Dockerfile:2" in said


def test_a_bases_trigger_and_a_dockerfile_on_stdin_write_nothing_either(
    kanifold: Kanifold, registry: str, canary: Path
) -> None:
    name = f"{CLIMB}{str(canary)[1:]}"
    base = kanifold.folder("base")
    (base / "Dockerfile").write_text(f"FROM scratch\nONBUILD COPY <<{name} /dst/\ndead\n{name}\n")
    kanifold("build", base, "-t", f"{registry}/wound47/base:1", "--push")
    code, said, _ = build(kanifold, f"FROM {registry}/wound47/base:1\n")
    assert (code, "no such directory" in said) == (1, True), said
    done = subprocess.run(
        [*kanifold.command, "build", "-", "--output", "type=tar,dest=-"],
        input=f"FROM scratch\nADD <<{name} /dst/\ndead\n{name}\n",
        env=kanifold.environment(), cwd=kanifold.home, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, "no such directory" in done.stderr) == (1, True), done.stderr
    assert canary.read_text() == "alive"


def test_a_script_of_a_step_is_mounted_under_its_last_name_alone(kanifold: Kanifold, busybox: Base) -> None:
    code, said, out = build(
        kanifold,
        f"FROM {busybox.ref}\nRUN <<../../bin/../script\n#!/bin/sh\necho $0 > /said\n../../bin/../script\n",
    )
    assert code == 0, said
    assert read_image(out, "linux/amd64").text("said") == "/dev/pipes/script\n"

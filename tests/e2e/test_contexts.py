"""What may stand for a build context: archives and Dockerfiles on stdin, git repositories, URLs."""

from __future__ import annotations

import io
import signal
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import needs
from git_server import Repository, serving
from registry_server import Asked, Said, served

if TYPE_CHECKING:
    from conftest import Base, Kanifold, Outcome

Context = Callable[[Mapping[str, str | bytes]], Path]
FILES = {
    "Dockerfile": "FROM scratch\nCOPY f /f\n",
    "f": "content",
    "sub/other": "FROM scratch\nCOPY sub/g /g\n",
    "sub/g": "g",
}
PACKERS = {"tar": [], "gz": ["gzip"], "bz2": ["bzip2"], "xz": ["xz"], "zst": ["zstd", "-q"]}


def archive_of(files: Mapping[str, str], *packer: str) -> bytes:
    """``files`` as an archive in which all belong to 7:8."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size, info.uid, info.gid = len(text), 7, 8
            archive.addfile(info, io.BytesIO(text.encode()))
    if not packer:
        return out.getvalue()
    needs(packer[0])
    return subprocess.run(packer, input=out.getvalue(), check=True, capture_output=True).stdout


def fed(kanifold: Kanifold, stdin: bytes, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """The command with ``stdin``."""
    return subprocess.run(
        [*kanifold.command, *map(str, arguments)], input=stdin, env=kanifold.environment(), cwd=kanifold.home,
        capture_output=True, check=False, timeout=60, **kanifold.user.becoming(),
    )  # fmt: skip


def members(archive: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return {each.name: each for each in opened.getmembers()}


@pytest.mark.parametrize("packed", PACKERS)
def test_an_archive_on_stdin_is_a_context(kanifold: Kanifold, packed: str) -> None:
    done = fed(kanifold, archive_of(FILES, *PACKERS[packed]), "build", "-", "-o", "-")
    assert done.returncode == 0, done.stderr.decode()
    found = members(done.stdout)
    # Unlike a directory's, an archive's files have owners (BuildKit copies them from its unpacked state).
    assert {name: (each.uid, each.gid) for name, each in found.items()} == {"f": (7, 8)}


def test_an_ordinary_users_archive_has_the_owners_and_permissions_that_roots_has(
    kanifold_as_bare_user: Kanifold,
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, mode in (("Dockerfile", 0o644), ("locked", 0o000), ("shared", 0o2755)):
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.gid, info.mode = len(FILES["Dockerfile"]), 7, 8, mode
            archive.addfile(info, io.BytesIO(b"FROM scratch\nCOPY . /\n".ljust(info.size)))
    done = fed(kanifold_as_bare_user, out.getvalue(), "build", "-", "-o", "-")
    assert done.returncode == 0, done.stderr.decode()
    found = members(done.stdout)
    assert {(each.uid, each.gid) for each in found.values()} == {(7, 8)}
    assert {name: oct(each.mode) for name, each in found.items() if name != "Dockerfile"} == {
        "locked": "0o0", "shared": "0o2755",
    }  # fmt: skip


def test_the_file_flag_names_a_path_inside_of_an_archive(kanifold: Kanifold) -> None:
    done = fed(kanifold, archive_of(FILES), "build", "-", "-f", "sub/other", "-o", "-")
    assert set(members(done.stdout)) == {"g"}
    for outside in ("nowhere", "../../etc/passwd", "/etc/passwd"):
        done = fed(kanifold, archive_of(FILES), "build", "-", "-f", outside)
        assert done.returncode == 1
        assert f"no {outside} in the build context" in done.stderr.decode()


def test_a_dockerfile_on_stdin_has_an_empty_context(kanifold: Kanifold) -> None:
    assert fed(kanifold, b"FROM scratch\nLABEL a=b\n", "build", "-").returncode == 0
    done = fed(kanifold, b"FROM scratch\nCOPY f /\n", "build", "-")
    assert done.returncode == 1
    assert b'"/f": not found' in done.stderr


def test_a_dockerfile_on_stdin_may_build_a_directory(kanifold: Kanifold, context: Context) -> None:
    folder = context({"f": "content", "hidden": "x", ".dockerignore": "hidden\n"})
    done = fed(kanifold, b"FROM scratch\nCOPY . /\n", "build", folder, "-f", "-", "-o", "-")
    assert set(members(done.stdout)) == {"f", ".dockerignore"}


def test_stdin_is_one_thing(kanifold: Kanifold) -> None:
    done = fed(kanifold, archive_of(FILES), "build", "-", "-f", "-")
    assert (done.returncode, b"stdin cannot be both" in done.stderr) == (2, True)
    done = fed(kanifold, b"FROM scratch\n", "build", "-", "-f", "Dockerfile")
    assert (done.returncode, b"two Dockerfiles" in done.stderr) == (2, True)


def test_a_broken_archive_builds_nothing(kanifold: Kanifold) -> None:
    whole = archive_of(FILES)
    done = fed(kanifold, whole[: len(whole) // 8], "build", "-", "-o", "-")
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert list((kanifold.root / "tmp").iterdir()) == [kanifold.root / "tmp" / "partial"]


def test_a_repository_is_a_context_and_all_platforms_have_its_one_commit(kanifold: Kanifold, tmp_path: Path) -> None:
    repository = Repository.make(tmp_path / "served" / "app.git")
    repository.commit(FILES)
    repository.git("tag", "v1")
    repository.commit({"f": "changed"})

    def built(reference: str, *more: str) -> Outcome:
        platforms = ("--platform", "linux/amd64,linux/arm64")
        return kanifold.run("build", reference, *platforms, "-o", "type=local,dest=out", *more)

    with serving(tmp_path / "served") as server:
        url = f"{server.url}/app.git"
        assert built(url).code == 0
        places = [kanifold.home / "out" / platform for platform in ("linux_amd64", "linux_arm64")]
        assert [(place / "f").read_text() for place in places] == ["changed"] * 2
        assert built(f"{url}#v1").code == 0
        assert [(place / "f").read_text() for place in places] == ["content"] * 2
        assert built(f"{url}?ref=v1&subdir=sub", "-f", "other").code == 1  # sub/g is not below sub
        assert built(f"{url}#v1", "-f", "sub/other").code == 0
        assert (places[1] / "g").read_text() == "g"
        missing = built(f"{url}#nowhere")
        assert missing.code == 1
        assert "nowhere" in missing.err
    assert list((kanifold.root / "tmp").iterdir()) == [kanifold.root / "tmp" / "partial"]


def test_a_repository_keeps_its_git_directory_when_asked(kanifold: Kanifold, tmp_path: Path) -> None:
    commit = Repository.make(tmp_path / "served" / "app.git").commit({"Dockerfile": "FROM scratch\nCOPY . /\n"})
    with serving(tmp_path / "served") as server:
        url = f"{server.url}/app.git"
        kanifold("build", url, "-o", "plain")
        kanifold("build", url, "-o", "kept", "--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1")
    assert not (kanifold.home / "plain" / ".git").exists()
    assert commit in (kanifold.home / "kept" / ".git" / "HEAD").read_text()


def test_a_url_is_an_archive_or_a_dockerfile(kanifold: Kanifold) -> None:
    bodies = {"/app.tar.gz": archive_of(FILES, "gzip"), "/recipe": b"FROM scratch\nCOPY context /mine\n"}

    def answer(asked: Asked) -> Said:
        body = bodies.get(asked.path)
        return Said(404) if body is None else Said(200, {}, body)

    with served(answer) as server:
        kanifold("build", f"{server.url}/app.tar.gz", "-o", "archive")
        kanifold("build", f"{server.url}/recipe", "-o", "file")
        gone = kanifold.run("build", f"{server.url}/gone")
        folder = kanifold.folder("named")
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY --from=more / /\n")
        kanifold("build", folder, "--build-context", f"more={server.url}/app.tar.gz", "-o", "more")
    assert (kanifold.home / "archive" / "f").read_text() == "content"
    assert (kanifold.home / "file" / "mine").read_bytes() == bodies["/recipe"]
    assert gone.code == 1
    assert "404" in gone.err
    # Only the main context is taken apart.
    assert (kanifold.home / "more" / "context").read_bytes() == bodies["/app.tar.gz"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(kanifold: Kanifold, context: Context, closed: str) -> None:
    folder = context({"Dockerfile": "FROM scratch\nCOPY f /\n", "f": "content"})
    command = f'"$@" {closed}'
    done = subprocess.run(
        ["sh", "-c", command, "sh", *kanifold.command, "build", str(folder), "-o", "out"],
        env=kanifold.environment(), cwd=kanifold.home, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr.decode()
    assert (kanifold.home / "out" / "f").read_text() == "content"


def test_a_closed_stdin_is_an_empty_one(kanifold: Kanifold) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *kanifold.command, "build", "-"],
        env=kanifold.environment(), capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert b"cannot be empty" in done.stderr


def test_a_full_stdout_is_one_clear_error(kanifold: Kanifold, context: Context) -> None:
    folder = context({"Dockerfile": "FROM scratch\nLABEL a=b\n"})
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*kanifold.command, "build", folder, "-q"], env=kanifold.environment(), cwd=kanifold.home,
            stdout=full, stderr=subprocess.PIPE, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert b"cannot write the digest to stdout" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["platforms", "doctor", "du"])
def test_no_command_minds_a_full_stdout(kanifold: Kanifold, command: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*kanifold.command, command], env=kanifold.environment(),
            stdout=full, stderr=subprocess.PIPE, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert b"cannot write" in done.stderr
    assert b"Traceback" not in done.stderr


def test_waiting_for_stdin_can_be_interrupted(kanifold: Kanifold) -> None:
    process = subprocess.Popen(
        [*kanifold.command, "build", "-"], env=kanifold.environment(), cwd=kanifold.home,
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert "building" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    process.communicate()


def test_an_image_that_a_context_stands_for_is_not_asked_for(kanifold: Kanifold, busybox: Base) -> None:
    folder = kanifold.folder("pinned")
    (folder / "Dockerfile").write_text("FROM docker.io/library/nowhere:latest\n")
    done = kanifold("build", folder, "--build-context", f"nowhere=docker-image://{busybox.ref}", "-o", "out")
    assert "nothing used it" not in done.err
    assert (kanifold.home / "out" / "bin").is_dir()


def test_a_context_that_nothing_used_is_a_warning(kanifold: Kanifold, registry: str, busybox: Base) -> None:
    folder = kanifold.folder("unused")
    (folder / "Dockerfile").write_text(f"FROM {busybox.ref}\nONBUILD COPY --from=extras / /extras\n")
    kanifold("build", folder, "-t", f"{registry}/contexts/trigger", "--push")
    (folder / "Dockerfile").write_text(f"FROM {registry}/contexts/trigger\n")
    arguments = ("--build-context", f"extras={folder}", "--build-context", f"other={folder}")
    for _ in range(2):  # the second build has a cached result
        done = kanifold("build", folder, *arguments, "-t", f"{registry}/contexts/built", "--push")
        assert "--build-context other: nothing used it" in done.err
        assert "extras: nothing" not in done.err


def test_a_context_under_another_name_than_an_image_that_cannot_be_had(kanifold: Kanifold, registry: str) -> None:
    folder = kanifold.folder("misspelt")
    (folder / "Dockerfile").write_text(f"FROM {registry}/gone/image\n")
    done = kanifold.run("build", folder, "--build-context", f"gone/image={folder}")
    assert done.code == 1
    assert "--build-context gone/image: nothing used it" in done.err

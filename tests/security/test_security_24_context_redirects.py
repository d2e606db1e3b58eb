"""Attack 24 (CVE-2026-41506, CVE-2024-45336): a context's token follows a redirect, or is back at a later hop."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from git_server import Repository, serving
from registry_server import Asked, Said, Served, served

from executor.context.git import checkout, resolve
from executor.context.gitprogram import Access
from executor.context.gitreference import parse
from executor.context.http import RequestOptions, download
from platforms.errors import ContextError

SECRET = "Bearer canary-" + "t0ken"


@contextmanager
def collector(answer: Said | None = None) -> Iterator[Served]:
    """A server that somebody else runs."""
    with served(lambda _: answer or Said(body=b"file")) as server:
        yield server


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_download_keeps_its_credential_at_home(tmp_path: Path, status: int) -> None:
    with collector() as other:
        hop = Said(status, {"Location": f"{other.url}/x"})
        with served(lambda asked: hop if asked.path == "/x" else Said(body=b"file")) as home:
            download(f"{home.url}/x", str(tmp_path), RequestOptions(SECRET))
            assert home.secrets() == [SECRET]
            assert other.asked
            assert other.secrets() == []


@pytest.mark.parametrize("secret", ["", SECRET])
def test_a_way_back_home_does_not_bring_it_back(tmp_path: Path, secret: str) -> None:
    def answer(asked: Asked) -> Said:
        return Said(302, {"Location": f"{other.url}/y"}) if asked.path == "/x" else Said(body=b"file")

    with served(answer) as home:
        with served(lambda _: Said(302, {"Location": f"{home.url}/z"})) as other:
            userinfo = "" if secret else "user:canary@"
            download(f"http://{userinfo}{home.host}/x", str(tmp_path), RequestOptions(secret))
            assert other.secrets() == []
        assert "authorization" in home.seen("GET", "/x")[0].headers
        assert "authorization" not in home.seen("GET", "/z")[0].headers


def test_a_redirect_cannot_bring_credentials_of_its_own(tmp_path: Path) -> None:
    with collector() as other:
        hop = Said(302, {"Location": f"http://evil:canary@{other.host}/x"})
        with served(lambda _: hop) as home:
            download(f"{home.url}/x", str(tmp_path))
        assert other.asked
        assert other.secrets() == []


# -- repositories ----------------------------------------------------------------------------------------------------


def get(url: str, directory: Path) -> str:
    directory.mkdir(exist_ok=True)
    reference = parse(url)
    assert reference is not None
    access = Access(authorization=SECRET)
    return checkout(reference, resolve(reference, str(directory), access=access), str(directory), access=access).commit


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    repo = Repository.make(tmp_path / "served/x.git")
    repo.commit({"f": ""})
    return repo


def redirecting(target: str, *, when: str = "", status: int = 302) -> object:
    """Sends every request whose target holds ``when`` to the same path at ``target``."""

    def look(asked: Asked) -> Said | None:
        return Said(status, {"Location": target + asked.target}) if when in asked.target else None

    return look


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_repository_that_moved_away_is_fetched_without_the_token(
    tmp_path: Path, repo: Repository, status: int
) -> None:
    root = tmp_path / "served"
    with serving(root) as other, serving(root, redirecting(other.url, status=status)) as home:  # type: ignore[arg-type]
        assert get(f"{home.url}/x.git", tmp_path / "out") == repo.git("rev-parse", "HEAD")
        assert set(home.secrets()) == {SECRET}
        assert other.asked
        assert other.secrets() == []


def test_a_repository_that_moved_at_home_keeps_it(tmp_path: Path, repo: Repository) -> None:
    def look(asked: Asked) -> Said | None:
        if asked.path.startswith("/old.git"):
            return Said(301, {"Location": home.url + asked.target.replace("old", "x", 1)})
        return (
            None if asked.headers.get("authorization") == SECRET else Said(401, {"WWW-Authenticate": "Basic realm=x"})
        )

    with serving(tmp_path / "served", look) as home:
        assert get(f"{home.url}/old.git", tmp_path / "out") == repo.git("rev-parse", "HEAD")


def test_two_hops_and_back_again_show_it_to_nobody_else(tmp_path: Path, repo: Repository) -> None:
    root = tmp_path / "served"

    def back(asked: Asked) -> Said:
        return Said(302, {"Location": f"{home.url}/x.git{asked.target.removeprefix('/y.git')}"})

    def away(asked: Asked) -> Said | None:
        if not asked.path.startswith("/z.git"):
            return None
        return Said(302, {"Location": f"{other.url}/y.git{asked.target.removeprefix('/z.git')}"})

    with serving(root, away) as home, serving(root, back) as other:
        assert get(f"{home.url}/z.git", tmp_path / "out") == repo.git("rev-parse", "HEAD")
        assert other.asked
        assert other.secrets() == []
        assert all("authorization" not in each.headers for each in home.asked if each.path.startswith("/x.git"))


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_in_the_middle_of_a_fetch_is_refused(tmp_path: Path, repo: Repository, status: int) -> None:
    with collector() as other:
        look = redirecting(other.url, when="/git-upload-pack", status=status)
        with serving(tmp_path / "served", look) as home, pytest.raises(ContextError):  # type: ignore[arg-type]
            get(f"{home.url}/x.git", tmp_path / "out")
        assert other.asked == []


@pytest.mark.parametrize("address", ["http://169.254.169.254", "http://[fe80::1]"])
def test_a_repository_cannot_move_into_the_machine_room(tmp_path: Path, repo: Repository, address: str) -> None:
    look = redirecting(address)
    with serving(tmp_path / "served", look) as home, pytest.raises(ContextError, match="link-local"):  # type: ignore[arg-type]
        get(f"{home.url}/x.git", tmp_path / "out")


def test_a_submodule_elsewhere_does_not_get_it(tmp_path: Path, repo: Repository) -> None:
    root = tmp_path / "served"
    parent = Repository.make(root / "parent.git")
    with serving(root) as home, serving(root) as other:
        parent.describe(("a", "a", f"{other.url}/x.git"), ("b", "b", "../x.git"), ("c", "c", f"{home.url}/x.git/"))
        for path in "abc":
            parent.link(path, repo.git("rev-parse", "HEAD"))
        parent.seal()
        get(f"{home.url}/parent.git", tmp_path / "out")
        assert other.asked
        assert other.secrets() == []
        assert set(home.secrets()) == {SECRET}, "what is named relatively is at home"
        assert [each for each in home.asked if "authorization" not in each.headers], "what is not, is not"


def test_no_credential_is_on_a_command_line(tmp_path: Path, repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyone may read command lines (proc(5)), so git's are watched, its helpers' included."""
    import shutil

    real = shutil.which("git")
    log = tmp_path / "log"
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "git").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {log}\nGIT_TRACE={log}.trace exec {real} "$@"\n')
    (directory / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    password = "canary-p4ss"
    header = "basic " + base64.b64encode(f"user:{password}".encode()).decode()
    with serving(tmp_path / "served") as home:
        get(f"{home.url}/x.git", tmp_path / "token")
        reference = parse(f"http://user:{password}@{home.host}/x.git")
        assert reference is not None
        (tmp_path / "password").mkdir()
        resolve(reference, str(tmp_path / "password"))
        assert set(home.secrets()) == {SECRET, header}
    said = log.read_text() + Path(f"{log}.trace").read_text()
    assert "ls-remote" in said
    for secret in (SECRET, SECRET.split()[1], password, header.split()[1]):
        assert secret not in said

"""Attack 19 (CVE-2025-48384, -48385, 2024-32002, 2018-17456, 2018-11235): fetching a repository runs its code.

Each repository below has code to run that leaves a canary in the directory ``ran``. Submodules come by default, as in
BuildKit, but never through ``git submodule``; whether such a repository is refused or its files simply arrive is the
same to us, as long as nothing runs and nothing outside of the checkout changes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from git_server import Repository, git, serving
from registry_server import Asked, Said

from executor.context.git import checkout, resolve
from executor.context.gitreference import parse
from platforms.errors import ContextError


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    path = tmp_path / "ran"
    path.mkdir()
    return path


HOOKS = ("post-checkout", "pre-checkout", "post-merge", "post-index-change", "reference-transaction", "fsmonitor")


def hooks(repo: Repository, ran: Path, where: str) -> None:
    """Executables in ``where`` of the work tree that leave their names in ``ran``."""
    files: dict[str, str | bytes] = {f"{where}/{name}": f"#!/bin/sh\ntouch {ran}/{name}\n" for name in HOOKS}
    repo.commit(files, executable=tuple(files))


def fetched(tmp_path: Path, query: str = "") -> Path | None:
    """``/x.git`` as it arrives; None when it is refused."""
    out = tmp_path / "out"
    out.mkdir()
    with serving(tmp_path / "served") as server:
        reference = parse(f"{server.url}/x.git{query}")
        assert reference is not None
        try:
            return Path(checkout(reference, resolve(reference, str(out)), str(out)).path)
        except ContextError:
            return None


def child(tmp_path: Path, ran: Path) -> str:
    """``/child.git`` with hooks at its root, as they would be found through a link; its commit."""
    repo = Repository.make(tmp_path / "served/child.git")
    hooks(repo, ran, ".")
    hooks(repo, ran, "y/hooks")
    return repo.git("rev-parse", "HEAD")


def carriage_return(repo: Repository, commit: str) -> None:
    """CVE-2025-48384: the path is written with a CR and read back without, where a link leads to the hooks."""
    repo.commit({"sub": "-> .git/modules/child/hooks"})
    repo.describe(("child", '"sub\r"', "../child.git"))
    repo.link("sub\r", commit)


def other_case(repo: Repository, commit: str) -> None:
    """CVE-2024-32002: on file systems that do not tell cases apart, the link ``a`` is the parent of ``A/modules/x``."""
    repo.commit({"a": "-> .git"})
    repo.describe(("x/y", "A/modules/x", "../child.git"))
    repo.link("A/modules/x", commit)


def dash_address(repo: Repository, commit: str) -> None:
    """CVE-2018-17456: the address, the path and the name are options."""
    repo.describe(("-u./x", "-u./x", "-u./x"), ("b", "b", "--upload-pack=touch ran/x"))
    repo.link("-u./x", commit)
    repo.link("b", commit)


def climbing_name(repo: Repository, commit: str) -> None:
    """CVE-2018-11235: the name leads the submodule's own directory out of .git and into the work tree."""
    repo.describe(("../../y", "sub", "../child.git"))
    repo.link("sub", commit)


def name_of_a_parent(repo: Repository, commit: str) -> None:
    """The same by a name that quoting leaves as it is."""
    repo.describe(("..", "sub", "../child.git"))
    repo.link("sub", commit)


def helper_address(repo: Repository, commit: str) -> None:
    """A transport that runs a program."""
    repo.describe(("child", "sub", "ext::sh -c touch% ran/ext"))
    repo.link("sub", commit)


def update_command(repo: Repository, commit: str) -> None:
    """CVE-2019-19604: how to update is a command."""
    repo.describe(("child", "sub", "../child.git"), more="\tupdate = !touch ../../../ran/update\n")
    repo.link("sub", commit)


def through_a_link(repo: Repository, commit: str) -> None:
    """The submodule is to lie below a link; the index holds both, which only an attacker's does."""
    repo.describe(("child", "sub/hooks", "../child.git"))
    repo.link("sub/hooks", commit)


ATTACKS: tuple[Callable[[Repository, str], None], ...] = (
    carriage_return,
    other_case,
    dash_address,
    climbing_name,
    name_of_a_parent,
    helper_address,
    update_command,
    through_a_link,
)


@pytest.mark.parametrize("query", ["", "?keep-git-dir"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_nothing_of_a_hostile_repository_runs(
    tmp_path: Path, ran: Path, attack: Callable[[Repository, str], None], query: str
) -> None:
    commit = child(tmp_path, ran)
    repo = Repository.make(tmp_path / "served/x.git")
    attack(repo, commit)
    repo.seal()
    top = fetched(tmp_path, query)
    assert list(ran.iterdir()) == []
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "ran", "served"]
    if top is not None and query:
        present = [each for each in (top / ".git").rglob("*") if each.is_file() or each.is_symlink()]
        assert not [each for each in present if each.name in HOOKS], "a hook lies in wait for the image's own git"


def test_a_submodule_does_not_share_its_parents_repository(tmp_path: Path, ran: Path) -> None:
    commit = child(tmp_path, ran)
    repo = Repository.make(tmp_path / "served/x.git")
    name_of_a_parent(repo, commit)
    repo.seal()
    assert fetched(tmp_path, "?keep-git-dir") is None


@pytest.mark.parametrize("name", [".git", ".GIT", ".git ", "git~1"])
def test_a_tree_with_a_git_directory_is_refused(tmp_path: Path, ran: Path, name: str) -> None:
    repo = Repository.make(tmp_path / "served/x.git")
    blob = repo.git("hash-object", "-w", "--stdin", stdin=f"#!/bin/sh\ntouch {ran}/own\n".encode())
    inner = repo.git("mktree", stdin=f"100755 blob {blob}\tpost-checkout\n".encode())
    middle = repo.git("mktree", stdin=f"040000 tree {inner}\thooks\n".encode())
    tree = repo.git("mktree", stdin=f"040000 tree {middle}\t{name}\n".encode())
    repo.git("update-ref", "HEAD", repo.git("commit-tree", "-m", "x", tree))
    assert fetched(tmp_path, "?keep-git-dir") is None
    assert list(ran.iterdir()) == []


def test_the_users_own_hooks_do_not_run(tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "hooks").mkdir(parents=True)
    (home / "template/hooks").mkdir(parents=True)
    for name in HOOKS:
        for directory in (home / "hooks", home / "template/hooks"):
            (directory / name).write_text(f"#!/bin/sh\ntouch {ran}/{name}\n")
            (directory / name).chmod(0o755)
    (home / ".gitconfig").write_text(
        f"[core]\n\thooksPath = {home}/hooks\n\tfsmonitor = {home}/hooks/fsmonitor\n"
        f"[init]\n\ttemplateDir = {home}/template\n"
        f'[filter "f"]\n\tsmudge = touch {ran}/smudge\n\tprocess = touch {ran}/process\n'
        f"[credential]\n\thelper = !touch {ran}/helper\n"
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(home / "template"))
    monkeypatch.setenv("GIT_ASKPASS", "/bin/false")
    repo = Repository.make(tmp_path / "served/x.git")
    repo.commit({".gitattributes": "* filter=f\n", "f": "x"})
    assert git(repo.path, "-c", f"core.hooksPath={home}/hooks", "checkout", "--detach") == ""
    assert list(ran.iterdir()), "the hooks would run if they were heeded"
    for each in ran.iterdir():
        each.unlink()
    assert fetched(tmp_path, "?keep-git-dir") is not None
    assert list(ran.iterdir()) == []


def test_a_bundle_that_a_server_recommends_is_not_fetched(tmp_path: Path) -> None:
    """CVE-2025-48385: ``bundle-uri`` (gitprotocol-v2(5)) names a file for git to fetch, and where to."""
    Repository.make(tmp_path / "served/x.git").commit({"f": ""})

    def offer(asked: Asked) -> Said | None:
        if asked.path.endswith("/evil.bundle") or b"bundle-uri" in asked.body:
            raise AssertionError("asked for a bundle")
        return None

    out = tmp_path / "out"
    out.mkdir()
    repo = Repository(tmp_path / "served/x.git")
    with serving(tmp_path / "served", offer) as server:
        for key, value in (
            ("uploadpack.advertiseBundleURIs", "true"),
            ("bundle.version", "1"),
            ("bundle.mode", "all"),
            ("bundle.evil.uri", f"{server.url}/evil.bundle"),
        ):
            repo.git("config", key, value)
        reference = parse(f"{server.url}/x.git")
        assert reference is not None
        checkout(reference, resolve(reference, str(out)), str(out))
        assert server.seen("GET", "bundle") == []

"""Git repositories as sources: what a reference points to, which files arrive, and what they look like."""

from __future__ import annotations

import base64
import dataclasses
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import msgspec
import pytest
from git_server import COMMITTED, Repository, git, serving
from registry_server import Asked, Said, Served

from executor.context import gitprogram
from executor.context.git import Checkout, authorization, checkout, identity, resolve
from executor.context.gitprogram import Access
from executor.context.gitreference import GitReference, parse, with_flags
from platforms.errors import ContextError, EnvironmentUnfit, Interrupted, StoreError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the served repositories are."""
    path = tmp_path / "served"
    path.mkdir()
    return path


@pytest.fixture
def server(root: Path) -> Iterator[Served]:
    """git, over HTTP."""
    with serving(root) as server:
        yield server


@pytest.fixture
def repo(root: Path) -> Repository:
    """``/repo.git``: a branch, tags of both kinds, a name for both, an executable, a link, a directory."""
    repo = Repository.make(root / "repo.git")
    first = repo.commit({"old": "old\n", "dir/deep/file": "deep\n"})
    repo.git("tag", "light")
    repo.git("tag", "--annotate", "--message=x", "heavy")
    repo.git("update-ref", "refs/pull/7/head", first)
    repo.git("branch", "both", first)
    repo.commit({"script": "#!/bin/sh\n", "link": "-> dir/deep/file", "new": "new\n"}, executable=("script",))
    repo.git("tag", "both")
    return repo


def reference(text: str) -> GitReference:
    found = parse(text)
    assert found is not None
    return found


def get(text: str | GitReference, directory: Path, **options: object) -> Checkout:
    """Resolve and check out below ``directory``."""
    directory.mkdir(exist_ok=True)
    made = reference(text) if isinstance(text, str) else text
    access = options.pop("access", None)
    resolved = resolve(made, str(directory), access=access)  # type: ignore[arg-type]
    return checkout(made, resolved, str(directory), access=access, **options)  # type: ignore[arg-type]


def listing(path: str) -> list[str]:
    """All paths below ``path``, sorted."""
    top = Path(path)
    return sorted(str(each.relative_to(top)) for each in top.rglob("*"))


ALL = ["dir", "dir/deep", "dir/deep/file", "link", "new", "old", "script"]
OLD = ["dir", "dir/deep", "dir/deep/file", "old"]


# -- what a reference points to --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fragment", "ref", "files"),
    [
        ("", "refs/heads/main", ALL),
        ("#HEAD", "refs/heads/main", ALL),
        ("#main", "refs/heads/main", ALL),
        ("#heads/main", "refs/heads/main", ALL),
        ("#refs/heads/main", "refs/heads/main", ALL),
        ("#light", "refs/tags/light", OLD),
        ("#heavy", "refs/tags/heavy", OLD),
        ("#tags/heavy", "refs/tags/heavy", OLD),
        ("#refs/tags/heavy", "refs/tags/heavy", OLD),
        ("#refs/pull/7/head", "refs/pull/7/head", OLD),
        ("#pull/7/head", "refs/pull/7/head", OLD),
        ("#both", "refs/heads/both", OLD),
        ("?tag=both", "refs/tags/both", ALL),
        ("?branch=both", "refs/heads/both", OLD),
    ],
)
def test_names_of_all_kinds(
    repo: Repository, server: Served, tmp_path: Path, fragment: str, ref: str, files: list[str]
) -> None:
    made = reference(f"{server.url}/repo.git{fragment}")
    out = tmp_path / "out"
    out.mkdir()
    resolved = resolve(made, str(out))
    assert resolved.ref == ref
    assert resolved.target == repo.git("rev-parse", ref)
    assert resolved.commit == repo.git("rev-parse", f"{ref}^{{commit}}")
    assert os.listdir(out) == []
    got = checkout(made, resolved, str(out))
    assert got.commit == resolved.commit
    assert listing(got.path) == files


def test_a_commit_by_its_hash_needs_no_asking(repo: Repository, server: Served, tmp_path: Path) -> None:
    first = repo.git("rev-parse", "light")
    made = reference(f"{server.url}/repo.git#{first}")
    assert resolve(made, str(tmp_path)).commit == first
    assert server.asked == []
    assert listing(get(made, tmp_path / "out").path) == OLD


def test_a_tag_by_its_hash_is_its_commit(repo: Repository, server: Served, tmp_path: Path) -> None:
    got = get(f"{server.url}/repo.git#{repo.git('rev-parse', 'heavy')}", tmp_path / "out")
    assert got.commit == repo.git("rev-parse", "light")


@pytest.mark.parametrize(
    ("fragment", "complaint"),
    [
        ("#missing", "no branch or tag missing"),
        ("#refs/heads/light", "no branch or tag"),
        ("#" + "0" * 39 + "1", "0001"),
        ("#:missing", "'missing' is no directory"),
        ("#:new", "'new' is no directory"),
    ],
)
def test_what_is_not_there(repo: Repository, server: Served, tmp_path: Path, fragment: str, complaint: str) -> None:
    with pytest.raises(ContextError, match=complaint):
        get(f"{server.url}/repo.git{fragment}", tmp_path / "out")


def test_a_repository_that_is_not_there(server: Served, tmp_path: Path) -> None:
    with pytest.raises(ContextError, match="not found") as caught:
        get(f"{server.url}/nothing.git", tmp_path / "out")
    assert "GIT_AUTH_TOKEN" in caught.value.problem.remedy


def test_an_empty_repository_has_no_default_branch(root: Path, server: Served, tmp_path: Path) -> None:
    Repository.make(root / "empty.git")
    with pytest.raises(ContextError, match="default branch"):
        get(f"{server.url}/empty.git", tmp_path / "out")


def test_a_commit_without_files(root: Path, server: Served, tmp_path: Path) -> None:
    Repository.make(root / "bare.git").seal()
    assert listing(get(f"{server.url}/bare.git", tmp_path / "out").path) == []


def test_a_detached_head_is_a_commit(repo: Repository, server: Served, tmp_path: Path) -> None:
    repo.git("checkout", "--quiet", "--detach", "light")
    assert listing(get(f"{server.url}/repo.git", tmp_path / "out").path) == OLD


def test_a_branch_that_moves_between_looking_and_fetching(repo: Repository, server: Served, tmp_path: Path) -> None:
    made = reference(f"{server.url}/repo.git#main")
    resolved = resolve(made, str(tmp_path))
    repo.commit({"later": ""})
    repo.git("commit", "--quiet", "--amend", "--message=rewritten")
    out = tmp_path / "out"
    out.mkdir()
    assert checkout(made, resolved, str(out)).commit == resolved.commit


def test_hashes_of_the_new_kind(root: Path, server: Served, tmp_path: Path) -> None:
    commit = Repository.make(root / "new.git", hash_="sha256").commit({"file": "x"})
    assert len(commit) == 64
    for number, fragment in enumerate(("", f"#{commit}")):
        got = get(f"{server.url}/new.git{fragment}", tmp_path / str(number))
        assert (got.commit, listing(got.path)) == (commit, ["file"])


# -- checksums -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ref", ["main", "heavy", "light"])
def test_the_right_checksum(repo: Repository, server: Served, tmp_path: Path, ref: str) -> None:
    for digits in (1, 7, 40):
        for what in (ref, f"{ref}^{{}}"):
            checksum = repo.git("rev-parse", what)[:digits]
            made = reference(f"{server.url}/repo.git?ref={ref}&checksum={checksum.upper()}")
            assert resolve(made, str(tmp_path)).target.startswith(repo.git("rev-parse", ref))


@pytest.mark.parametrize("ref", ["main", "heavy", "{commit}"])
def test_the_wrong_checksum(repo: Repository, server: Served, tmp_path: Path, ref: str) -> None:
    ref = ref.format(commit=repo.git("rev-parse", "light"))
    wrong = "f" * 40
    made = with_flags(reference(f"{server.url}/repo.git#{ref}"), keep_git_dir=None, checksum=wrong)
    with pytest.raises(ContextError, match=f"expected checksum to match {wrong}, got {repo.git('rev-parse', ref)}"):
        get(made, tmp_path / "out")


def test_a_flag_must_not_contradict_the_query() -> None:
    made = reference("https://example.com/x.git?keep-git-dir=true&checksum=aa")
    assert with_flags(made, keep_git_dir=True, checksum="AA") == made
    assert with_flags(made, keep_git_dir=None, checksum="") == made
    for flags in ({"keep_git_dir": False, "checksum": ""}, {"keep_git_dir": None, "checksum": "ab"}):
        with pytest.raises(ContextError, match=r"inconsistent|conflicts"):
            with_flags(made, **flags)  # type: ignore[arg-type]


def test_fetching_by_commit_asks_for_no_names(repo: Repository, server: Served, tmp_path: Path) -> None:
    first = repo.git("rev-parse", "light")
    made = reference(f"{server.url}/repo.git?fetch-by-commit&keep-git-dir&checksum={first}#made-up")
    assert resolve(made, str(tmp_path)).ref == "refs/heads/made-up"
    assert server.asked == []
    got = get(made, tmp_path / "out")
    assert got.commit == first
    assert git(Path(got.path), "rev-parse", "made-up") == first
    with pytest.raises(ContextError, match="full commit hash"):
        resolve(reference(f"{server.url}/repo.git?fetch-by-commit&checksum={first[:12]}"), str(tmp_path))


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0o077, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """As others may have it."""
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_modes_and_times_are_the_commits(repo: Repository, server: Served, tmp_path: Path) -> None:
    got = get(f"{server.url}/repo.git", tmp_path / "out")
    top = Path(got.path)
    assert got.time == COMMITTED
    for path in (top, *top.rglob("*")):
        status = path.lstat()
        assert status.st_mtime == COMMITTED, path
        if not path.is_symlink():
            expected = 0o755 if path.is_dir() or path.name == "script" else 0o644
            assert status.st_mode & 0o7777 == expected, path
    assert os.readlink(top / "link") == "dir/deep/file"


def test_a_set_group_id_bit_is_not_inherited(repo: Repository, server: Served, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o2755)
    got = get(f"{server.url}/repo.git", out)
    assert (Path(got.path) / "dir").stat().st_mode & 0o7777 == 0o755


def test_the_time_of_the_checkout_when_that_is_asked_for(repo: Repository, server: Served, tmp_path: Path) -> None:
    got = get(f"{server.url}/repo.git?mtime=checkout", tmp_path / "out")
    assert (Path(got.path) / "new").stat().st_mtime > COMMITTED + 1_000_000


def test_a_subdirectory_alone(repo: Repository, server: Served, tmp_path: Path) -> None:
    for number, subdir in enumerate(("dir/deep", "/dir//deep/", "x/../dir/deep", "../../dir/deep")):
        assert listing(get(f"{server.url}/repo.git#:{subdir}", tmp_path / str(number)).path) == ["file"]


def test_nothing_of_git_is_left_over(repo: Repository, server: Served, tmp_path: Path) -> None:
    out = tmp_path / "out"
    get(f"{server.url}/repo.git", out)
    assert os.listdir(out) == ["tree"]


def test_attributes_of_the_repository_count_and_filters_do_not_run(root: Path, server: Served, tmp_path: Path) -> None:
    repo = Repository.make(root / "attributes.git")
    repo.commit({".gitattributes": "*.bat text eol=crlf\n*.big filter=lfs\n", "a.bat": "x\n", "b.big": "pointer\n"})
    top = Path(get(f"{server.url}/attributes.git", tmp_path / "out").path)
    assert (top / "a.bat").read_bytes() == b"x\r\n"
    assert (top / "b.big").read_bytes() == b"pointer\n"


def test_odd_names_arrive(root: Path, server: Served, tmp_path: Path) -> None:
    names = ["-x", "a b", "new\nline", "t\tab", "\udcff", 'quo"te', "тест", ".hidden"]
    Repository.make(root / "odd.git").commit(dict.fromkeys(names, "x"))
    assert sorted(os.listdir(get(f"{server.url}/odd.git", tmp_path / "out").path)) == sorted(names)


# -- .git ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fragment", "named"),
    [("", "refs/heads/main"), ("#heavy", "refs/tags/heavy"), ("#light", "refs/tags/light"), ("#{commit}", "")],
)
def test_a_kept_git_directory_works(
    repo: Repository, server: Served, tmp_path: Path, fragment: str, named: str
) -> None:
    fragment = fragment.format(commit=repo.git("rev-parse", "main"))
    url = f"{server.url}/repo.git".replace("http://", "http://user:secret@")
    made = with_flags(reference(url + fragment), keep_git_dir=True, checksum="")
    got = get(made, tmp_path / "out")
    top = Path(got.path)
    assert git(top, "status", "--porcelain") == ""
    assert git(top, "rev-parse", "HEAD") == got.commit
    assert git(top, "log", "--format=%H") == got.commit
    assert git(top, "config", "remote.origin.url") == f"{server.url}/repo.git"
    assert git(top, "for-each-ref", "--format=%(refname)") == named
    if named:
        assert git(top, "rev-parse", named) == repo.git("rev-parse", named)
    assert git(top, "fsck", "--full") == ""
    present = listing(str(top / ".git"))
    assert not [each for each in present if each.startswith(("hooks", "logs")) or "FETCH_HEAD" in each]
    for path in (each for each in (top / ".git").rglob("*") if each.is_file()):
        assert b"secret" not in path.read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


def test_a_kept_git_directory_is_the_same_each_time(repo: Repository, server: Served, tmp_path: Path) -> None:
    def content(path: Path) -> dict[str, tuple[int, float, bytes]]:
        return {
            str(each.relative_to(path)): (each.stat().st_mode, each.stat().st_mtime, each.read_bytes())
            for each in path.rglob("*")
            if each.is_file()
        }

    one, two = (Path(get(f"{server.url}/repo.git?keep-git-dir", tmp_path / name).path) for name in "ab")
    assert content(one) == content(two)


def test_a_subdirectory_has_no_git_directory(repo: Repository, server: Served, tmp_path: Path) -> None:
    got = get(f"{server.url}/repo.git?keep-git-dir#:dir", tmp_path / "out")
    assert listing(got.path) == ["deep", "deep/file"]


# -- submodules ------------------------------------------------------------------------------------------------------


@pytest.fixture
def family(root: Path, server: Served) -> Repository:
    """``/family.git`` with a submodule at ``libs/child`` that has one at ``grand``; one is named relatively."""
    grand = Repository.make(root / "grand.git").commit({"g": "grand\n"})
    child = Repository.make(root / "child.git")
    (child.path / "c").write_text("child\n")
    child.git("add", "c")
    child.describe(("grand", "grand", "../grand.git"))
    child.link("grand", grand)
    middle = child.seal()
    family = Repository.make(root / "family.git")
    family.describe(("the/child", "libs/child", f"{server.url}/child.git"))
    family.link("libs/child", middle)
    family.seal()
    return family


def test_submodules_come_with_it(family: Repository, server: Served, tmp_path: Path) -> None:
    got = get(f"{server.url}/family.git", tmp_path / "out")
    assert listing(got.path) == [
        ".gitmodules",
        "libs",
        "libs/child",
        "libs/child/.gitmodules",
        "libs/child/c",
        "libs/child/grand",
        "libs/child/grand/g",
    ]
    assert (Path(got.path) / "libs/child/grand/g").stat().st_mtime == COMMITTED


def test_submodules_stay_away(family: Repository, server: Served, tmp_path: Path) -> None:
    got = get(f"{server.url}/family.git?submodules=false", tmp_path / "out")
    assert listing(got.path) == [".gitmodules", "libs", "libs/child"]


def test_a_subdirectory_may_be_a_submodule(family: Repository, server: Served, tmp_path: Path) -> None:
    got = get(f"{server.url}/family.git#:libs/child/grand", tmp_path / "out")
    assert listing(got.path) == ["g"]


def test_submodules_of_a_kept_git_directory_work(family: Repository, server: Served, tmp_path: Path) -> None:
    got = get(f"{server.url}/family.git?keep-git-dir", tmp_path / "out")
    top = Path(got.path)
    for part in ("", "libs/child", "libs/child/grand"):
        assert git(top / part, "status", "--porcelain") == "", part
    assert git(top, "submodule", "status", "--recursive").splitlines()[0].split()[1] == "libs/child"
    moved = tmp_path / "moved"
    top.rename(moved)
    assert git(moved / "libs/child/grand", "status", "--porcelain") == ""


def test_a_submodule_that_is_not_to_be_updated(family: Repository, server: Served, tmp_path: Path) -> None:
    child = family.git("rev-parse", "HEAD:libs/child")
    family.describe(("child", "libs/child", f"{server.url}/nothing.git"), more="\tupdate = none\n")
    family.link("libs/child", child)
    family.seal()
    assert listing(get(f"{server.url}/family.git", tmp_path / "out").path) == [".gitmodules", "libs", "libs/child"]


def test_a_submodule_without_an_address(family: Repository, server: Served, tmp_path: Path) -> None:
    family.link("other", family.git("rev-parse", "HEAD"))
    family.seal()
    with pytest.raises(ContextError, match="no url found for submodule path 'other'") as caught:
        get(f"{server.url}/family.git", tmp_path / "out")
    assert "submodules=false" in caught.value.problem.remedy


def test_a_submodule_of_a_lost_commit(root: Path, server: Served, tmp_path: Path) -> None:
    Repository.make(root / "child.git").commit({"c": ""})
    family = Repository.make(root / "family.git")
    family.describe(("child", "child", "../child.git"))
    family.link("child", "1" * 40)
    family.seal()
    with pytest.raises(ContextError, match="1111"):
        get(f"{server.url}/family.git", tmp_path / "out")


# -- servers of other kinds ------------------------------------------------------------------------------------------


def test_a_server_that_gives_only_what_it_names(repo: Repository, server: Served, tmp_path: Path) -> None:
    """Without ``allowAnySHA1InWant``, and spoken to in the old protocol, which has no other way."""
    unnamed = repo.commit({"middle": ""})
    repo.commit({"later": ""})
    repo.git("config", "uploadpack.allowAnySHA1InWant", "false")
    inner = server.handler
    server.handler = lambda asked: inner(dataclasses.replace(asked, headers=_without(asked, "git-protocol")))
    fragments = (f"#{unnamed}", "#main", "#heavy", "#pull/7/head")
    for number, fragment in enumerate(fragments):
        got = get(f"{server.url}/repo.git{fragment}", tmp_path / str(number))
        assert "old" in listing(got.path)
    assert len(server.seen("POST", "upload-pack")) > len(fragments), "a second question was needed"


def _without(asked: Asked, name: str) -> dict[str, str]:
    return {key: value for key, value in asked.headers.items() if key != name}


def test_a_server_without_a_program(repo: Repository, root: Path, tmp_path: Path) -> None:
    """Files on a web server (git-update-server-info(1)): no shallow fetches, no hashes."""
    repo.git("update-server-info")

    def files(asked: Asked) -> Said:
        path = root / asked.path.lstrip("/").replace("repo.git/", "repo.git/.git/")
        return Said(body=path.read_bytes()) if path.is_file() else Said(404)

    with serving(root, files) as server:
        for number, fragment in enumerate(("#main", "#heavy", f"#{repo.git('rev-parse', 'light')}")):
            assert "old" in listing(get(f"{server.url}/repo.git{fragment}", tmp_path / str(number)).path)


def test_a_repository_that_has_moved_is_followed(repo: Repository, server: Served, tmp_path: Path) -> None:
    def moved(asked: Asked) -> Said | None:
        return Said(301, {"Location": f"{server.url}/repo.git{asked.target.removeprefix('/old.git')}"})

    with serving(tmp_path, moved) as old:
        got = get(f"{old.url}/old.git#light", tmp_path / "out")
    assert listing(got.path) == OLD
    assert {each.path for each in old.asked} == {"/old.git/info/refs"}


def test_a_redirect_to_anything_else_is_not(repo: Repository, server: Served, tmp_path: Path) -> None:
    astray = Said(302, {"Location": f"{server.url}/login"})
    with serving(tmp_path, lambda _: astray) as old, pytest.raises(ContextError, match="no git repository"):
        get(f"{old.url}/x.git", tmp_path / "out")


# -- credentials -----------------------------------------------------------------------------------------------------


def guarded(header: str) -> object:
    def look(asked: Asked) -> Said | None:
        if asked.headers.get("authorization") == header:
            return None
        return Said(401, {"WWW-Authenticate": "Basic realm=x"})

    return look


TOKEN = "basic " + base64.b64encode(b"x-access-token:t0ken").decode()


@pytest.mark.parametrize(
    ("secrets", "header"),
    [
        ({"GIT_AUTH_TOKEN": b"t0ken\n"}, TOKEN),
        ({"GIT_AUTH_TOKEN.{host}": b"t0ken", "GIT_AUTH_HEADER": b"no"}, TOKEN),
        ({"GIT_AUTH_HEADER.{host}": b"Bearer a", "GIT_AUTH_TOKEN.{host}": b"no"}, "Bearer a"),
        ({"GIT_AUTH_HEADER": b"Bearer a", "GIT_AUTH_TOKEN": b"no"}, "Bearer a"),
        ({"GIT_AUTH_TOKEN.other.example": b"no"}, ""),
        ({}, ""),
    ],
)
def test_the_secrets_for_a_host(secrets: dict[str, bytes], header: str) -> None:
    made = reference("https://git.example:8443/x.git")
    known = {name.format(host=made.host): value for name, value in secrets.items()}
    assert authorization(made, known.get) == header
    assert authorization(reference("ssh://git.example/x"), known.get) == ""


def test_a_token_opens_the_door(repo: Repository, root: Path, tmp_path: Path) -> None:
    with serving(root, guarded(TOKEN)) as server:  # type: ignore[arg-type]
        made = reference(f"{server.url}/repo.git")
        with pytest.raises(ContextError, match="could not read Username") as caught:
            get(made, tmp_path / "without")
        assert "GIT_AUTH_TOKEN" in caught.value.problem.remedy
        access = Access(authorization(made, {"GIT_AUTH_TOKEN": b"t0ken"}.get))
        assert listing(get(made, tmp_path / "with", access=access).path) == ALL
    assert "t0ken" not in repr(access)


def test_a_password_in_the_url_opens_the_door(repo: Repository, root: Path, tmp_path: Path) -> None:
    header = "basic " + base64.b64encode(b"user:p@ss").decode()
    with serving(root, guarded(header)) as server:  # type: ignore[arg-type]
        got = get(f"http://user:p%40ss@{server.host}/repo.git", tmp_path / "out")
    assert listing(got.path) == ALL


# -- ends ------------------------------------------------------------------------------------------------------------


def test_git_tells_how_far_it_is(repo: Repository, server: Served, tmp_path: Path) -> None:
    said: list[str] = []
    get(f"{server.url}/repo.git", tmp_path / "out", output=said.append)
    assert any("objects" in line for line in said)
    assert all(line.isprintable() for line in said)


def test_a_checkout_stops_when_it_is_told_to(repo: Repository, root: Path, tmp_path: Path) -> None:
    cancel: Future[None] = Future()
    released = threading.Event()

    def hang(asked: Asked) -> Said | None:
        if asked.method == "POST" and b"fetch" in asked.body:
            cancel.set_result(None)
            released.wait(30)
        return None

    out = tmp_path / "out"
    out.mkdir()
    with serving(root, hang) as server:
        made = reference(f"{server.url}/repo.git")
        resolved = resolve(made, str(out))
        try:
            with pytest.raises(Interrupted):
                checkout(made, resolved, str(out), cancel=cancel)
        finally:
            released.set()
    assert not _processes_below(out)


def _processes_below(directory: Path) -> list[str]:
    """Processes whose working directory is there."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                where = os.readlink(entry / "cwd")
            except OSError:
                continue
            if where.startswith(str(directory)):
                found.append(entry.name)
    return found


def test_a_server_that_falls_silent(
    repo: Repository, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gitprogram, "SILENCE_SECONDS", 0.3)
    released = threading.Event()
    with serving(root, lambda _: Said() if released.wait(30) else None) as server:
        try:
            with pytest.raises(ContextError, match="silent"):
                get(f"{server.url}/repo.git", tmp_path / "out")
        finally:
            released.set()


def test_without_git_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentUnfit, match="git is not installed") as caught:
        get("https://example.com/x.git", tmp_path / "out")
    assert "git" in caught.value.problem.remedy


def test_ssh_needs_an_agent(tmp_path: Path) -> None:
    with pytest.raises(ContextError, match="ssh agent") as caught:
        get("git@example.com:x.git", tmp_path / "out")
    assert "--ssh default" in caught.value.problem.remedy


def test_a_reference_may_allow_fewer_protocols(repo: Repository, server: Served, tmp_path: Path) -> None:
    made = msgspec.structs.replace(reference(f"{server.url}/repo.git"), protocols=("https", "ssh"))
    with pytest.raises(ContextError, match="'http' not allowed"):
        get(made, tmp_path / "out")
    assert server.asked == []


def test_a_place_that_cannot_be_written(repo: Repository, server: Served, tmp_path: Path) -> None:
    made = reference(f"{server.url}/repo.git")
    resolved = resolve(made, str(tmp_path))
    (tmp_path / "out").write_text("not a directory")
    with pytest.raises(StoreError, match="cannot check out"):
        checkout(made, resolved, str(tmp_path / "out"))


# -- identities ------------------------------------------------------------------------------------------------------


def test_equal_identities_are_equal_files(repo: Repository, server: Served, tmp_path: Path) -> None:
    def named(text: str) -> str:
        made = reference(f"{server.url}/repo.git{text}")
        return identity(made, resolve(made, str(tmp_path)))

    commit = repo.git("rev-parse", "light")
    assert named("#light") == named("#heavy") == named(f"#{commit}") == named("#light:")
    texts = ["#light", "#main", "#light:dir", "?mtime=checkout#light", "?submodules=0#light", "?keep-git-dir#light"]
    texts += ["?keep-git-dir#heavy", f"?keep-git-dir#{commit}", "#light:dir%20x", "#light:dir/x"]
    assert len({named(text) for text in texts}) == len(texts)

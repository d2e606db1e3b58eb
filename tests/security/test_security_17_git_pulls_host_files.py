"""Attack 17 (CVE-2022-39253, GHSA-vp35-85q5-9f25): a repository brings files of this machine into the context."""

from __future__ import annotations

from pathlib import Path

import pytest
from git_server import Repository, git, serving

from executor.context.git import Checkout, checkout, resolve
from executor.context.gitreference import parse
from platforms.errors import ContextError


@pytest.fixture
def private(tmp_path: Path) -> tuple[Path, str]:
    """A repository on this machine that nobody has offered, and its commit."""
    repo = Repository.make(tmp_path / "private")
    return repo.path, repo.commit({"secret": "canary"})


def get(url: str, directory: Path) -> Checkout:
    directory.mkdir()
    reference = parse(url)
    assert reference is not None
    return checkout(reference, resolve(reference, str(directory)), str(directory))


@pytest.fixture
def lenient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whose own git would allow anything, and mistake addresses for others."""
    home = tmp_path / "home"
    home.mkdir()
    config = home / ".gitconfig"
    config.write_text(
        '[protocol]\n\tallow = always\n[protocol "file"]\n\tallow = always\n[safe]\n\tdirectory = *\n'
        f'[url "file://{tmp_path}/private"]\n\tinsteadOf = http://\n'
    )
    for name, value in {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "GIT_CONFIG_GLOBAL": str(config),
        "GIT_CONFIG_SYSTEM": str(config),
        "GIT_ALLOW_PROTOCOL": "file:ext:http",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "protocol.file.allow",
        "GIT_CONFIG_VALUE_0": "always",
        "GIT_OBJECT_DIRECTORY": f"{tmp_path}/private/.git/objects",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": f"{tmp_path}/private/.git/objects",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize(
    "form", ["file://{}", "{}", "file:{}", "../../../../../../..{}", "./..{}", "ext::git -C {} upload-pack ."]
)
def test_a_submodule_on_this_machine_is_refused(tmp_path: Path, private: tuple[Path, str], form: str) -> None:
    path, commit = private
    repo = Repository.make(tmp_path / "served/x.git")
    repo.describe(("sub", "sub", form.format(path)))
    repo.link("sub", commit)
    repo.seal()
    with serving(tmp_path / "served") as server, pytest.raises(ContextError):
        get(f"{server.url}/x.git", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("secret"))


@pytest.mark.usefixtures("lenient")
def test_nobodys_configuration_or_environment_counts(tmp_path: Path, private: tuple[Path, str]) -> None:
    Repository.make(tmp_path / "served/x.git").commit({"its": "own"})
    with serving(tmp_path / "served") as server:
        got = get(f"{server.url}/x.git?keep-git-dir", tmp_path / "out")
    top = Path(got.path)
    assert (top / "its").read_text() == "own"
    assert private[1] not in git(top, "cat-file", "--batch-all-objects", "--batch-check")


@pytest.mark.parametrize("text", ["file:///srv/x.git", "/srv/x.git", "../x.git", "ext::sh -c id", "bundle:///x.git"])
def test_no_reference_names_a_path_of_this_machine(text: str) -> None:
    assert parse(text) is None


def test_links_are_left_for_others_to_confine(tmp_path: Path, private: tuple[Path, str]) -> None:
    """A link in a checkout is a link: neither followed nor replaced by what it points to."""
    Repository.make(tmp_path / "served/x.git").commit({"link": f"-> {private[0]}/secret", "d": "-> /etc"})
    with serving(tmp_path / "served") as server:
        top = Path(get(f"{server.url}/x.git", tmp_path / "out").path)
    assert (top / "link").is_symlink()
    assert (top / "d").is_symlink()

"""Attack 18 (CVE-2019-13139, GHSA-hw3h-2gp9-cxpv): a ref, the user's or the server's, is read as an option of git."""

from __future__ import annotations

from pathlib import Path

import pytest
from git_server import Repository, serving
from registry_server import Asked, Said

from executor.context.git import checkout, resolve
from executor.context.gitreference import parse
from platforms.errors import ContextError

REFS = [
    "--upload-pack=touch%20canary",
    "-x",
    "-",
    "refs/heads/--upload-pack=x",
    "refs/tags/-x",
    "a%0d",
    "a%0a--upload-pack=x",
    "%00",
    "a b",
    "a..b",
    "a:b",
    "@{-1}",
    "^main",
    "*",
    "a[b",
    "a~1",
    "/etc/passwd",
    "a//b",
    ".",
    "a.lock",
    "a\\b",
]


@pytest.mark.parametrize("ref", REFS)
@pytest.mark.parametrize("form", ["#{}", "?ref={}"])
@pytest.mark.parametrize("base", ["https://127.0.0.1:1/x.git", "ssh://127.0.0.1:1/x.git", "git://127.0.0.1:1/x.git"])
def test_such_a_ref_is_refused_before_anyone_is_asked(base: str, form: str, ref: str) -> None:
    text = base + form.format(ref)
    if form == "#{}" and ref == "a:b":
        assert parse(text).ref == "a"  # the rest is a subdirectory
        return
    with pytest.raises(ContextError, match="invalid git ref"):
        parse(text)


@pytest.mark.parametrize("ref", ["-x", "a\rb", "a\nb", "--upload-pack=x"])
def test_the_short_form_is_no_exception(ref: str) -> None:
    try:
        assert parse(f"git@example.com:x.git#{ref}") is None
    except ContextError:
        return
    assert "\n" in ref, "only what is no reference at all may pass for a path"


@pytest.mark.parametrize("branch", ["--upload-pack=touch${IFS}canary", "-x"])
def test_a_servers_default_branch_is_no_option(tmp_path: Path, branch: str) -> None:
    repo = Repository.make(tmp_path / "served/x.git")
    commit = repo.commit({"f": ""})
    repo.git("update-ref", f"refs/heads/{branch}", commit)
    repo.git("symbolic-ref", "HEAD", f"refs/heads/{branch}")
    with serving(tmp_path / "served") as server:
        reference = parse(f"{server.url}/x.git")
        assert reference is not None
        with pytest.raises(ContextError, match="invalid git ref"):
            resolve(reference, str(tmp_path))
    assert not list(tmp_path.rglob("canary"))


def packet(text: str) -> bytes:
    return f"{len(text) + 5:04x}{text}\n".encode()


@pytest.mark.parametrize(
    "lines",
    [
        ["--upload-pack=x HEAD"],
        ["{hash} HEAD symref-target:--upload-pack=x"],
        ["{hash} HEAD symref-target:refs/heads/a\x07b"],
        ["{hash} HEAD symref-target:refs/heads/-x"],
    ],
)
def test_a_lying_server_comes_to_nothing(tmp_path: Path, lines: list[str]) -> None:
    """The second protocol, by hand (gitprotocol-v2(5)): capabilities, then ls-refs."""

    def lie(asked: Asked) -> Said:
        if asked.method == "GET":
            body = (
                packet("# service=git-upload-pack") + b"0000" + packet("version 2") + packet("ls-refs=unborn") + b"0000"
            )
            return Said(200, {"Content-Type": "application/x-git-upload-pack-advertisement"}, body)
        body = b"".join(packet(line.format(hash="1" * 40)) for line in lines) + b"0000"
        return Said(200, {"Content-Type": "application/x-git-upload-pack-result"}, body)

    with serving(tmp_path, lie) as server:
        reference = parse(f"{server.url}/x.git")
        assert reference is not None
        with pytest.raises(ContextError):
            resolve(reference, str(tmp_path))


def test_names_that_only_look_odd_still_work(tmp_path: Path) -> None:
    repo = Repository.make(tmp_path / "served/x.git")
    commit = repo.commit({"f": ""})
    out = tmp_path / "out"
    out.mkdir()
    for number, name in enumerate(("a-b", "v1.0-rc.1", "x/-y", "a@b", "ä", "$(id)", "`id`", "a'b\"c", "%25", "a;b&c")):
        repo.git("update-ref", f"refs/heads/{name}", commit)
        with serving(tmp_path / "served") as server:
            reference = parse(f"{server.url}/x.git#{name.replace('%', '%25')}")
            assert reference is not None
            here = out / str(number)
            here.mkdir()
            assert checkout(reference, resolve(reference, str(here)), str(here)).commit == commit

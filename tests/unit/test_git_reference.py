"""How git repositories are written: BuildKit's forms, what is none of them, and what is refused on sight."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.context.gitreference import GitReference, parse
from platforms.errors import ContextError

H = "https://example.com/foo/bar.git"


@pytest.mark.parametrize(
    ("text", "remote", "ref", "subdir"),
    [
        (H, H, "", ""),
        (f"{H}#deadbeef", H, "deadbeef", ""),
        (f"{H}#release/1.2", H, "release/1.2", ""),
        (f"{H}#baz/qux:quux/quuz", H, "baz/qux", "quux/quuz"),
        (f"{H}#:myfolder", H, "", "myfolder"),
        (f"{H}#:/a/./b//c/../", H, "", "a/b"),
        (f"{H}#:../../etc", H, "", "etc"),
        (f"{H}#v1:", H, "v1", ""),
        (f"{H}#v1:a:b", H, "v1", "a:b"),
        (f"{H}#%76%31:a%20b", H, "v1", "a b"),
        (f"{H}#refs/pull/12/head", H, "refs/pull/12/head", ""),
        (f"{H}?ref=v1.0.0&subdir=/subdir", H, "v1.0.0", "subdir"),
        (f"{H}?subdir=/subdir#v1.0.0", H, "v1.0.0", "subdir"),
        (f"{H}?ref=v1#v1", H, "v1", ""),
        (f"{H}?tag=v1.0.0", H, "refs/tags/v1.0.0", ""),
        (f"{H}?tag=refs/tags/v1", H, "refs/tags/v1", ""),
        (f"{H}?branch=v1.0", H, "refs/heads/v1.0", ""),
        (f"{H}?branch=refs/heads/x", H, "refs/heads/x", ""),
        (f"{H}?", H, "", ""),
        ("HTTPS://example.com/foo/bar.git", H, "", ""),
        ("https://example.com:8443/a%20b.git", "https://example.com:8443/a%20b.git", "", ""),
        ("https://example.com/a b.git", "https://example.com/a%20b.git", "", ""),
        ("https://[::1]:80/a.git", "https://[::1]:80/a.git", "", ""),
        ("https://user:pa%40ss@example.com/foo/bar.git#x", H, "x", ""),
        ("http://example.com/foo.git", "http://example.com/foo.git", "", ""),
        ("git://host.xz:1234/path/to/repo", "git://host.xz:1234/path/to/repo", "", ""),
        ("ssh://root@sub.example:2222/a/b.git#v1", "ssh://root@sub.example:2222/a/b.git", "v1", ""),
        ("ssh://u@192.0.2.1/~/repo", "ssh://u@192.0.2.1/~/repo", "", ""),
        ("git@github.com:moby/buildkit", "git@github.com:moby/buildkit", "", ""),
        ("git@github.com:moby/buildkit.git#v1:hack", "git@github.com:moby/buildkit.git", "v1", "hack"),
        ("git@github.com:moby/buildkit.git?subdir=/s#v1", "git@github.com:moby/buildkit.git", "v1", "s"),
        ("odd_Name-1@example.com:/srv/odd:repo.git/", "odd_Name-1@example.com:/srv/odd:repo.git/", "", ""),
        ("github.com/moby/buildkit#master", "https://github.com/moby/buildkit", "master", ""),
        ("github.com/moby/buildkit?tag=v1", "https://github.com/moby/buildkit", "refs/tags/v1", ""),
    ],
)
def test_a_repository_in_all_its_forms(text: str, remote: str, ref: str, subdir: str) -> None:
    found = parse(text)
    assert found is not None
    assert (found.remote, found.ref, found.subdir) == (remote, ref, subdir)
    assert found.indistinguishable_from_local == text.startswith("github.com/")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "dir",
        ".git",
        "./.git",
        "../x@y:z",
        "./git@github.com:x",
        "a@b",
        "C:\\x",
        "github.com:moby/buildkit.git",
        "bad:user@example.com:foo.git",
        "custom.xyz/moby/buildkit.git",
        "github.com/",
        "https://example.com",
        "https://example.com/",
        "https://example.com/foo",
        "https://example.com/foo.git/",
        "https://example.com/foo.git.bar",
        "https://example.com/foo?x=.git",
        "https://github.com/moby/buildkit",
        "http://github.com/docker/docker.git:#branch",
        "https://example.com/%zz.git",
        "httpx://example.com/foo.git",
        "file:///srv/repo.git",
        "ext::sh -c id",
        "docker-image://alpine",
    ],
)
def test_what_is_no_repository(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("query", "field", "value"),
    [
        ("checksum=ABCDEF12", "checksum", "abcdef12"),
        ("commit=deadbeef", "checksum", "deadbeef"),
        ("commit=de&checksum=de", "checksum", "de"),
        ("keep-git-dir", "keep_git_dir", True),
        ("keep-git-dir=", "keep_git_dir", True),
        ("keep-git-dir=1", "keep_git_dir", True),
        ("keep-git-dir=F", "keep_git_dir", False),
        ("ref=x", "keep_git_dir", None),
        ("submodules=false", "submodules", False),
        ("submodules", "submodules", True),
        ("ref=x", "submodules", None),
        ("mtime=commit", "mtime", "commit"),
        ("mtime=checkout", "mtime", "checkout"),
        ("fetch-by-commit&checksum=ab", "fetch_by_commit", True),
        ("fetch-by-commit=false", "fetch_by_commit", False),
    ],
)
@pytest.mark.parametrize("base", [H, "git@example.com:foo.git", "ssh://example.com/foo", "git://example.com/foo"])
def test_what_a_query_may_say(base: str, query: str, field: str, value: object) -> None:
    found = parse(f"{base}?{query}")
    assert getattr(found, field) == value


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("ref=v1#v2", "ref conflicts: 'v2' vs 'v1'"),
        ("ref=v1&tag=v2", "ref conflicts: 'v1' vs 'refs/tags/v2'"),
        ("tag=v1&branch=v1", "a branch and .* a tag"),
        ("subdir=a#:b", "subdir conflicts"),
        ("ref=a&ref=a", "'ref' has multiple values"),
        ("ref=", "'ref' has no value"),
        ("checksum", "'checksum' has no value"),
        ("mtime=now", "invalid mtime value: 'now'"),
        ("keep-git-dir=maybe", "invalid keep-git-dir value"),
        ("submodules=2", "invalid submodules value"),
        ("fetch-by-commit=yes", "invalid fetch-by-commit value"),
        ("invalid=123", "unexpected query 'invalid'"),
        ("checksum=xyz", "invalid checksum 'xyz'"),
        ("checksum=sha256:" + "0" * 64, "invalid checksum"),
    ],
)
def test_what_a_query_may_not_say(query: str, complaint: str) -> None:
    with pytest.raises(ContextError, match=complaint):
        parse(f"{H}?{query}")


@pytest.mark.parametrize(
    ("text", "scheme", "host", "name"),
    [
        (H, "https", "example.com", "bar"),
        ("http://example.com:80/x.git", "http", "example.com:80", "x"),
        ("git://example.com/x", "git", "example.com", "x"),
        ("git@example.com:x/y.git", "ssh", "example.com", "y"),
        ("ssh://git@example.com:22/x/y.git", "ssh", "example.com:22", "y"),
    ],
)
def test_what_is_known_of_the_way_there(text: str, scheme: str, host: str, name: str) -> None:
    found = parse(text)
    assert found is not None
    assert (found.scheme, found.host, found.name) == (scheme, host, name)


def test_a_password_is_kept_out_of_sight() -> None:
    found = parse("https://user:t0p%2Fsecret@example.com/x.git?ref=v1")
    assert found is not None
    assert found.userinfo == ("user", "t0p/secret")
    assert "secret" not in f"{found} {found!r} {found.remote}"
    assert str(found) == "https://example.com/x.git#v1"


def test_a_password_is_kept_out_of_complaints() -> None:
    with pytest.raises(ContextError) as caught:
        parse("https://user:t0psecret@example.com/x.git?ref=-v")
    assert "secret" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_none_or_a_clean_error(text: str) -> None:
    for prefix in (
        "",
        "https://",
        "https://h/x.git",
        "https://h/x.git#",
        "https://h/x.git?",
        "ssh://",
        "git@h:",
        "github.com/",
    ):
        try:
            found = parse(prefix + text)
        except ContextError as error:
            assert str(error).isprintable()
        else:
            assert found is None or (isinstance(found, GitReference) and str(found).isprintable())


def test_a_long_text_takes_no_time() -> None:
    start = time.process_time()
    for text in ("a" * 200_000, "a@b:" + "?#" * 100_000, f"{H}#" + "a/." * 70_000, f"{H}?" + "a=b&" * 50_000):
        try:
            parse(text)
        except ContextError:
            continue
    assert time.process_time() - start < 2

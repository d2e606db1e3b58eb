"""References: Docker's rules for what images are called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.registry.reference import Reference, canonical_registry, parse
from platforms.errors import UsageError
from platforms.hosts import is_loopback

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("debian", "docker.io", "library/debian", "", ""),
        ("debian:bookworm", "docker.io", "library/debian", "bookworm", ""),
        ("org/app", "docker.io", "org/app", "", ""),
        ("docker.io/debian", "docker.io", "library/debian", "", ""),
        ("index.docker.io/debian:12", "docker.io", "library/debian", "12", ""),
        ("index.docker.io/library/debian", "docker.io", "library/debian", "", ""),
        ("ghcr.io/org/app/part:1.2", "ghcr.io", "org/app/part", "1.2", ""),
        ("ghcr.io/app", "ghcr.io", "app", "", ""),
        ("localhost/app", "localhost", "app", "", ""),
        ("localhost:5000/app", "localhost:5000", "app", "", ""),
        ("localhost:5000/app:1", "localhost:5000", "app", "1", ""),
        ("127.0.0.1:5000/a/b:x", "127.0.0.1:5000", "a/b", "x", ""),
        ("[::1]:5000/app:1", "[::1]:5000", "app", "1", ""),
        ("[2001:db8::1]/app", "[2001:db8::1]", "app", "", ""),
        ("Registry/app", "Registry", "app", "", ""),
        ("host.example:443/app@" + DIGEST, "host.example:443", "app", "", DIGEST),
        ("debian:12@" + DIGEST, "docker.io", "library/debian", "12", DIGEST),
        ("a__b/c-d/e---f/g.h", "docker.io", "a__b/c-d/e---f/g.h", "", ""),
        ("localhost-app", "docker.io", "library/localhost-app", "", ""),
        ("myhost/app", "docker.io", "myhost/app", "", ""),
        ("app:" + "t" * 128, "docker.io", "library/app", "t" * 128, ""),
        ("r.io/" + "a" * 255, "r.io", "a" * 255, "", ""),
        ("a:_x.Y-z", "docker.io", "library/a", "_x.Y-z", ""),
        ("a:5000", "docker.io", "library/a", "5000", ""),
    ],
)
def test_a_reference_is_read_as_docker_reads_it(
    text: str, registry: str, repository: str, tag: str, digest: str
) -> None:
    assert parse(text) == Reference(registry, repository, tag, digest)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("Debian", "lower case"),
        ("ghcr.io/Org/app", "lower case"),
        ("https://ghcr.io/org/app", "scheme"),
        ("a b", "white space"),
        ("a\nb", "white space"),
        ("app:", "tag after ':' is empty"),
        ("app:.x", "not a tag"),
        ("app:-x", "not a tag"),
        ("app:a$b", "not a tag"),
        ("app:" + "t" * 129, "129 characters"),
        ("r.io/" + "a" * 256, "256 characters"),
        ("app@sha256:123", "not a digest"),
        ("app@md5:" + "0" * 32, "not a digest"),
        ("app@" + DIGEST.upper(), "not a digest"),
        ("app@sha256:../../x", "not a digest"),
        ("a//b", "slashes"),
        ("/a", "slashes"),
        ("a/", "slashes"),
        ("r.io/", "names no repository"),
        ("a/_b", "begin and end"),
        ("a/b-", "begin and end"),
        ("a/b..c", "join"),
        ("a/b___c", "join"),
        ("a/b._c", "join"),
        ("a/é", "begin and end"),
        ("a/bücher", "cannot be part"),
        ("r.io/../etc", "begin and end"),
        ("-bad.io/a", "host name"),
        ("ba_d.io/a", "host name"),
        ("r.io:99999/a", "port"),
        ("r.io:x/a", "port"),
        ("[zz]/a", "IPv6"),
        ("localhost:5000", "no repository"),
        ("0123456789abcdef" * 4, "image id"),
    ],
)
def test_what_is_wrong_with_a_reference_is_said(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert reason in caught.value.problem.why
    assert caught.value.problem.remedy


@pytest.mark.parametrize(
    ("text", "familiar", "full"),
    [
        ("debian", "debian", "docker.io/library/debian"),
        ("docker.io/library/debian:12", "debian:12", "docker.io/library/debian:12"),
        ("org/app:1", "org/app:1", "docker.io/org/app:1"),
        ("library/a/b", "library/a/b", "docker.io/library/a/b"),
        ("localhost:5000/app:1@" + DIGEST, "localhost:5000/app:1@" + DIGEST, "localhost:5000/app:1@" + DIGEST),
    ],
)
def test_a_reference_is_written_short_and_full(text: str, familiar: str, full: str) -> None:
    reference = parse(text)
    assert reference.familiar() == familiar
    assert str(reference) == full
    assert parse(familiar) == reference == parse(full)


def test_what_is_asked_for_is_the_digest_then_the_tag_then_latest() -> None:
    assert parse("a:1@" + DIGEST).target == DIGEST
    assert parse("a:1").target == "1"
    assert parse("a").target == "latest"
    assert str(parse("a").completed()) == "docker.io/library/a:latest"
    assert parse("a@" + DIGEST).completed().tag == ""


def test_docker_hub_is_spoken_to_at_another_host() -> None:
    assert parse("debian").api_host == "registry-1.docker.io"
    assert parse("ghcr.io/a").api_host == "ghcr.io"


def test_a_tag_replaces_the_digest_and_is_checked() -> None:
    assert parse("a@" + DIGEST).with_tag("2") == parse("a:2")
    assert parse("a:2").with_digest(DIGEST) == parse("a:2@" + DIGEST)
    assert parse("a:2@" + DIGEST).repository_only() == parse("a")
    with pytest.raises(UsageError):
        parse("a").with_tag("no/tag")


@pytest.mark.parametrize("host", ["docker.io", "index.docker.io", "registry-1.docker.io", "docker.io/"])
def test_docker_hub_has_many_names(host: str) -> None:
    assert canonical_registry(host) == "docker.io"


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("app.localhost:1", True),
        ("127.0.0.1", True),
        ("127.8.9.10:80", True),
        ("[::1]:5000", True),
        ("127.0.0.1.example.com", False),
        ("localhost.example.com", False),
        ("128.0.0.1", False),
        ("10.0.0.1:5000", False),
        ("docker.io", False),
    ],
)
def test_this_machine_is_known_by_name_and_number(host: str, answer: bool) -> None:
    assert is_loopback(host) is answer


@given(st.text(alphabet="abA0-._:/@[]é \n", max_size=40))
def test_any_text_is_a_reference_that_survives_writing_or_a_clear_error(text: str) -> None:
    try:
        reference = parse(text)
    except UsageError:
        return
    assert parse(str(reference)) == reference
    assert parse(reference.familiar()) == reference

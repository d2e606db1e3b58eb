"""Credentials from the files and helpers of docker, podman and CI systems."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from executor.registry.auth import Credential, docker_keychain
from platforms.errors import EnvironmentUnfit, RegistryError, printable

HUB = "https://index.docker.io/v1/"


def basic(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of its own, and none of the variables that lead elsewhere."""
    for name in ("DOCKER_CONFIG", "DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def helper(directory: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = write(directory / "bin" / f"docker-credential-{name}", "#!/bin/sh\n" + script)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_nobody_is_known_without_files() -> None:
    assert docker_keychain()("docker.io") is None


@pytest.mark.parametrize(
    ("entry", "credential"),
    [
        ({"auth": basic("me:a:b")}, Credential("me", "a:b")),
        ({"auth": basic("me:secret\0\0")}, Credential("me", "secret")),
        ({"username": "me", "password": "secret"}, Credential("me", "secret")),
        ({"auth": basic("me:"), "identitytoken": "refresh"}, Credential("me", "", "refresh")),
        ({"registrytoken": "bearer"}, Credential(registry_token="bearer")),
        ({}, None),
        ({"auth": "", "username": None}, None),
    ],
)
def test_an_entry_is_read_in_each_of_its_forms(home: Path, entry: Any, credential: Credential | None) -> None:
    write(home / ".docker/config.json", {"auths": {"r.example": entry}})
    assert docker_keychain()("r.example") == credential


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        (HUB, "docker.io"),
        ("index.docker.io", "docker.io"),
        ("docker.io", "docker.io"),
        ("https://registry-1.docker.io/v2/", "docker.io"),
        ("r.example", "r.example"),
        ("https://r.example", "r.example"),
        ("http://r.example:5000/v1/", "r.example:5000"),
        ("r.example:5000/", "r.example:5000"),
    ],
)
def test_keys_are_found_however_they_are_written(home: Path, key: str, registry: str) -> None:
    write(home / ".docker/config.json", {"auths": {key: {"auth": basic("me:x")}}})
    assert docker_keychain()(registry) == Credential("me", "x")


@pytest.mark.parametrize(
    "key", ["r.example", "r.example:443", "sub.r.example", "example", "r.example.evil", "r.example/org"]
)
def test_a_credential_is_for_its_own_registry_only(home: Path, key: str) -> None:
    write(home / ".docker/config.json", {"auths": {key: {"auth": basic("me:x")}}})
    assert docker_keychain()("r.example:5000") is None


PATHS = {
    "r.example": {"auth": basic("host:x")},
    "r.example/org": {"auth": basic("org:x")},
    "https://r.example/org/team/": {"auth": basic("team:x")},
    "r.example/org/team/app": {"auth": basic("app:x")},
    "docker.io/mine": {"auth": basic("mine:x")},
    "index.docker.io/theirs": {"auth": basic("theirs:x")},
    HUB: {"auth": basic("hub:x")},
}


@pytest.mark.parametrize("file", [".docker/config.json", ".config/containers/auth.json"])
@pytest.mark.parametrize(
    ("name", "user"),
    [
        ("r.example", "host"),
        ("r.example/other/app", "host"),
        ("r.example/organ/app", "host"),
        ("r.example/org", "org"),
        ("r.example/org/app", "org"),
        ("r.example/org/team/other", "team"),
        ("r.example/org/team/app", "app"),
        ("r.example/org/team/app/below", "app"),
        ("docker.io/library/debian", "hub"),
        ("docker.io/mine/app", "mine"),
        ("docker.io/theirs/app", "theirs"),
    ],
)
def test_the_longest_key_that_a_repository_begins_with_counts(home: Path, file: str, name: str, user: str) -> None:
    write(home / file, {"auths": PATHS})
    assert docker_keychain()(name) == Credential(user, "x")


def test_a_path_has_helpers_and_places_in_the_store_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(home, "demo", 'read server; printf \'{"Username":"u-%s","Secret":"s"}\' "$server"', monkeypatch)
    document = {"credHelpers": {"r.example/org": "demo"}, "credsStore": "demo", "auths": {"r.example/stored": {}}}
    write(home / ".docker/config.json", document)
    keychain = docker_keychain()
    assert keychain("r.example/org/app") == Credential("u-r.example/org", "s")
    assert keychain("r.example/stored/app") == Credential("u-r.example/stored", "s")
    assert keychain("r.example/other/app") == Credential("u-r.example", "s")


def test_a_helper_is_asked_once_for_all_repositories_of_a_registry(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f'read server; echo "$server" >> {home}/asked; printf \'{{"Username":"u","Secret":"s"}}\''
    helper(home, "demo", script, monkeypatch)
    write(home / ".docker/config.json", {"credsStore": "demo"})
    keychain = docker_keychain()
    for name in ("one", "two", "org/three"):
        assert keychain(f"r.example/{name}") == Credential("u", "s")
    assert (home / "asked").read_text() == "r.example\n"


def test_an_exact_key_wins_over_a_similar_one(home: Path) -> None:
    auths = {"https://r.example/v1/": {"auth": basic("old:x")}, "r.example": {"auth": basic("new:x")}}
    write(home / ".docker/config.json", {"auths": auths})
    assert docker_keychain()("r.example") == Credential("new", "x")


def test_the_files_are_asked_in_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def auths(user: str) -> dict[str, Any]:
        return {"auths": {"r.example": {"auth": basic(f"{user}:x")}}}

    def who() -> str:
        found = docker_keychain()("r.example")
        return found.username if found else ""

    write(home / ".config/containers/auth.json", auths("podman-home"))
    assert who() == "podman-home"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    write(home / "run/containers/auth.json", auths("podman-run"))
    assert who() == "podman-run"
    write(home / ".docker/config.json", auths("docker"))
    assert who() == "docker"
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "elsewhere"))
    write(home / "elsewhere/config.json", auths("docker-config"))
    assert who() == "docker-config"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(write(home / "named.json", auths("named"))))
    assert who() == "named"
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps(auths("inline")))
    assert who() == "inline"


def test_a_registry_missing_in_one_file_is_looked_up_in_the_next(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".docker/config.json", {"auths": {"r.example": {"auth": basic("me:x")}}})
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", '{"auths": {"other.example": {}}}')
    assert docker_keychain()("r.example") == Credential("me", "x")


def test_a_helper_is_asked_by_the_registrys_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(home, "demo", 'read server; printf \'{"Username":"u-%s","Secret":"s"}\' "$server"', monkeypatch)
    write(home / ".docker/config.json", {"credHelpers": {"r.example": "demo", "docker.io": "demo"}})
    keychain = docker_keychain()
    assert keychain("r.example") == Credential("u-r.example", "s")
    assert keychain("docker.io") == Credential(f"u-{HUB}", "s")
    assert keychain("other.example") is None


def test_a_helpers_token_is_an_identity_token(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(home, "demo", 'echo \'{"Username":"<token>","Secret":"refresh"}\'', monkeypatch)
    write(home / ".docker/config.json", {"credsStore": "demo"})
    assert docker_keychain()("r.example") == Credential(identity_token="refresh")


def test_a_store_that_knows_nothing_leaves_it_to_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(home, "demo", "echo credentials not found in native keychain; exit 1", monkeypatch)
    write(home / ".docker/config.json", {"credsStore": "demo", "auths": {"r.example": {"auth": basic("me:x")}}})
    keychain = docker_keychain()
    assert keychain("r.example") == Credential("me", "x")
    assert keychain("other.example") is None


def test_a_missing_helper_is_named(home: Path) -> None:
    write(home / ".docker/config.json", {"credsStore": "nowhere"})
    with pytest.raises(EnvironmentUnfit) as caught:
        docker_keychain()("r.example")
    assert "docker-credential-nowhere" in str(caught.value)
    assert "config.json" in caught.value.problem.remedy


@pytest.mark.parametrize(
    "script", ["echo boom >&2; exit 3", "echo not json", "echo '{\"Username\": 1}'", "echo '[]'", "true"]
)
def test_a_failing_helper_is_an_error(home: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(home, "demo", script, monkeypatch)
    write(home / ".docker/config.json", {"credsStore": "demo"})
    with pytest.raises(RegistryError, match="docker-credential-demo"):
        docker_keychain()("r.example")


def test_a_helpers_name_is_never_a_path(home: Path) -> None:
    marker = home / "ran"
    evil = write(home / "evil", f"#!/bin/sh\ntouch {marker}\n")
    evil.chmod(0o755)
    write(home / ".docker/config.json", {"credsStore": f"x/../../..{evil}"})
    with pytest.raises(RegistryError):
        docker_keychain()("r.example")
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        '{"auths": {"r.example": {"auth": "s3cret',
        "[]",
        '{"auths": ["x"]}',
        '{"credsStore": {"a": 1}}',
        '{"auths": {"r.example": "s3cret"}}',
        '{"auths": {"r.example": {"auth": "s3cret!"}}}',
        '{"auths": {"r.example": {"auth": "czNjcmV0"}}}',
        '{"auths": {"r.example": {"password": ["s3cret"]}}}',
    ],
)
def test_a_broken_file_is_named_but_not_shown(home: Path, text: str) -> None:
    path = write(home / ".docker/config.json", text)
    with pytest.raises(RegistryError) as caught:
        docker_keychain()("r.example")
    shown = f"{caught.value} {caught.value.problem} {caught.value.__cause__}"
    assert str(path) in shown
    assert "s3cret" not in shown and "czNjcmV0" not in shown


def test_an_unreadable_place_is_an_error_and_an_absent_one_is_not(home: Path) -> None:
    (home / ".docker/config.json").mkdir(parents=True)
    with pytest.raises(RegistryError, match=r"config\.json"):
        docker_keychain()("r.example")


def test_secrets_are_not_in_the_repr() -> None:
    shown = repr(Credential("me", "p4ss", "ident", "bearer"))
    assert "me" in shown
    assert not any(secret in shown for secret in ("p4ss", "ident", "bearer"))


def test_foreign_text_is_made_harmless() -> None:
    assert printable("a\x1b[31mb\r\n c\x07") == "a [31mb c"
    assert len(printable("x" * 10_000)) == 300

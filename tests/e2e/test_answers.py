"""What the command knows and a step asks for: when it cannot be had, the error arrives whole, exit status included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Base, Kanifold
from programs import program
from registry_server import Asked, Said, served

DIGEST = f"sha256:{'0' * 64}"


def locked(_asked: Asked) -> Said:
    """A registry that wants to know who is there."""
    return Said(401, {"WWW-Authenticate": 'Basic realm="here"'}, b"")


@pytest.mark.parametrize("name", ["gone/base:1", f"gone/base@{DIGEST}"])
def test_a_missing_credential_helper_is_this_machines_fault(kanifold: Kanifold, name: str) -> None:
    folder = kanifold.folder("context")
    with served(locked) as server:
        host = server.url.partition("://")[2]
        (folder / "Dockerfile").write_text(f"FROM {host}/{name}\n")
        settings = kanifold.folder(".docker") / "config.json"
        settings.write_text(json.dumps({"credHelpers": {host: "absent"}}))
        done = kanifold.run("build", folder, DOCKER_CONFIG=str(settings.parent))
    assert done.code == 3
    assert "cannot run the credential helper docker-credential-absent" in done.err
    assert "install docker-credential-absent" in done.err


def test_a_push_hears_of_it_too(kanifold: Kanifold) -> None:
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text("FROM scratch\n")
    with served(locked) as server:
        host = server.url.partition("://")[2]
        settings = kanifold.folder(".docker") / "config.json"
        settings.write_text(json.dumps({"credsStore": "absent"}))
        done = kanifold.run("build", folder, "-t", f"{host}/app", "--push", DOCKER_CONFIG=str(settings.parent))
    assert done.code == 3
    assert "docker-credential-absent" in done.err


def test_a_secret_file_that_has_vanished(kanifold: Kanifold, busybox: Base, tmp_path: Path) -> None:
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text(f"FROM {busybox.ref}\nRUN --mount=type=secret,id=one cat /run/secrets/one\n")
    secret = tmp_path / "secret"
    secret.write_text("value")
    # git asks for nothing here; the file goes when ssh-agent is looked for, after the flags were read.
    agent = program(tmp_path / "bin", "ssh-agent", f"rm -f {secret}; echo listening; exec sleep 60")
    program(tmp_path / "bin", "ssh-add", "exit 0")
    (tmp_path / "key").write_text("")
    done = kanifold.run(
        "build", folder, "--secret", f"id=one,src={secret}", "--ssh", f"default={tmp_path / 'key'}",
        PATH=f"{agent.parent}:{kanifold.environment()['PATH']}",
    )  # fmt: skip
    assert done.code == 1
    assert f"cannot read the secret file {secret}: No such file or directory" in done.err
    assert "the file was there when the build began" in done.err
    assert "Dockerfile:2" in done.err

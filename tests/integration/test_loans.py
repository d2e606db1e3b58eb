"""Credentials stay on this machine: a node with another disk is lent tokens for what its job does.

The registry is Debian's docker-registry; every byte that the executor is sent is recorded.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Base, needs
from msgspec.structs import replace
from protocol_nodes import ROOT, Marked, build
from registry_server import HTPASSWD, PASSWORD, USER, Served, docker_registry
from token_service import TokenService, access, token_registry

from executor import protocol
from executor.protocol import BuildOptions, CacheExport, CacheInRegistry
from executor.registry import auth
from executor.registry.auth import Credential, Loan
from executor.registry.client import Client
from executor.registry.reference import parse as reference
from executor.registry.registry_settings import RegistrySettings
from orchestrator.answers import answers
from orchestrator.nodes.command_node import CommandNode
from orchestrator.outputs import Push
from orchestrator.request import BuildRequest
from platforms.errors import RegistryError
from platforms.parsing import parse

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="executors run on Linux")

AUTH = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@dataclass
class Login:
    """This machine, logged in to a registry, and a node that is not."""

    place: Path
    mark: Marked
    monkeypatch: pytest.MonkeyPatch

    def build(self, host: str, base: Base, settings: RegistrySettings) -> bytes:
        """Build from and to private repositories of ``host`` on the node; returns what that was sent."""
        needs("skopeo")
        names = [f"oci:{base.layout}:latest", f"docker://{host}/private/base:latest"]
        flags = ["--quiet", "--dest-tls-verify=false", "--dest-creds", f"{USER}:{PASSWORD}"]
        subprocess.run(["skopeo", "copy", *flags, *names], check=True, capture_output=True)
        self.monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {host: {"auth": AUTH}}}))
        context = self.place / "context"
        context.mkdir()
        (context / "Dockerfile").write_text(f"FROM {host}/private/base\nCOPY Dockerfile /\nRUN echo ran > /ran\n")
        cache = (CacheExport(CacheInRegistry(f"{host}/private/cache:1")),)
        options = BuildOptions(root=str(self.place / "here"), registries=settings, cache_to=cache)
        tags = (reference(f"{host}/private/app:1"),)
        platforms = (parse("linux/amd64"),)
        build(BuildRequest(str(context), "", platforms, None, tags, (Push(),), options=options), self.node())
        return (self.place / "sent").read_bytes()

    def node(self) -> CommandNode:
        outside = 'record=$1 && shift && tee -- "$record" | env -u DOCKER_AUTH_CONFIG "$@"'
        program = ("sh", "-c", outside, "sh", str(self.place / "sent"), sys.executable, "-P", "-m", "executor")
        given = {"KANIFOLD_ROOT": str(self.place / "there"), "HOME": str(self.place), "PYTHONPATH": str(ROOT)}
        return CommandNode("elsewhere", program, tuple({**given, **self.mark.environment}.items()))


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Login]:
    mark = Marked()
    yield Login(tmp_path, mark, monkeypatch)
    assert mark.wait_until_gone(3) == []


@pytest.fixture
def tokened(tmp_path: Path) -> Iterator[tuple[str, Served, TokenService]]:
    with token_registry(tmp_path / "registry") as found:
        yield found


@pytest.mark.parametrize("seconds", [300, 1], ids=["valid for minutes", "expired soon"])
def test_a_node_is_lent_tokens_for_its_job_and_no_password(
    login: Login, tokened: tuple[str, Served, TokenService], busybox: Base, seconds: int
) -> None:
    host, tokens, service = tokened
    service.seconds = seconds
    sent = login.build(host, busybox, RegistrySettings(token_services=((host, (tokens.host,)),)))
    assert PASSWORD.encode() not in sent
    assert AUTH.encode() not in sent
    lent = [access(each.decode()) for each in set(re.findall(rb"eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+", sent))]
    assert {name for each in lent for name in each} == {"private/base", "private/app", "private/cache"}
    assert all(each.get("private/base", set()) <= {"pull"} for each in lent)
    stored = b"".join(each.read_bytes() for each in (login.place / "there").rglob("*") if each.is_file())
    assert not re.search(rb"eyJ[\w-]+\.eyJ", stored), "a token was stored"


def test_a_password_is_lent_to_registries_without_a_token_service(login: Login, busybox: Base, tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "htpasswd").write_text(HTPASSWD + "\n")
    wanted = f"{{htpasswd: {{realm: crabs, path: {tmp_path / 'registry' / 'htpasswd'}}}}}"
    with docker_registry(tmp_path / "registry", auth=wanted) as host:
        sent = login.build(host, busybox, RegistrySettings())
    assert sent.count(b'"password"') == sent.count(PASSWORD.encode()) <= 3, "once for each repository"


def test_a_refused_token_is_lent_anew(tokened: tuple[str, Served, TokenService], busybox: Base) -> None:
    host, tokens, service = tokened
    settings = RegistrySettings(token_services=((host, (tokens.host,)),))
    asked: list[bool] = []
    with Client(settings, lambda _: Credential(USER, PASSWORD)) as owner:

        def lend(registry: str, repository: str, scopes: frozenset[str], fresh: bool) -> Loan | None:
            asked.append(fresh)
            if not fresh:
                return Loan("revoked", 300)
            return owner.lend(registry, repository, tuple(scopes), fresh)

        with Client(settings) as client:
            client.borrow(lend)
            with pytest.raises(RegistryError):
                client.check_push(reference(f"{host}/team/app"))
            client.check_push(reference(f"{host}/team/app"))
    assert asked[:2] == [False, True]  # then to cancel the upload, for which the registry wants another scope
    assert service.uses


def test_a_machine_with_an_account_of_its_own_borrows_only_for_other_repositories(
    tokened: tuple[str, Served, TokenService],
) -> None:
    host, tokens, _ = tokened
    settings = RegistrySettings(token_services=((host, (tokens.host,)),))
    asked: list[str] = []

    def lend(registry: str, repository: str, scopes: frozenset[str], fresh: bool) -> None:
        asked.append(repository)

    def own(name: str) -> Credential | None:
        return Credential(USER, PASSWORD) if name == f"{host}/team/app" else None

    with Client(settings) as client:
        client.borrow(lend, own)
        client.check_push(reference(f"{host}/team/app"))
        assert asked == []
        with pytest.raises(RegistryError):
            client.check_push(reference(f"{host}/team/other"))
    assert set(asked) == {"team/other"}


def test_only_a_machine_that_was_given_an_account_for_builds_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {"reg.example": {"auth": AUTH}}}))
    monkeypatch.delenv(auth.OWN_CREDENTIALS, raising=False)
    assert auth.own_keychain()("reg.example/a") is None
    monkeypatch.setenv(auth.OWN_CREDENTIALS, "1")
    assert auth.own_keychain()("reg.example/a") == Credential(USER, PASSWORD)


JOB = protocol.Job(
    1, "linux/amd64", b"", lends=True,
    contexts=(protocol.ImageContext("c", "reg.example/context"),),
    pins=(protocol.Pin("reg.example/base:1", ""), protocol.Pin("debian", "")),
    push=("reg.example/team/app",),
    options=BuildOptions(
        cache_from=(CacheInRegistry("reg.example/from"),),
        cache_to=(CacheExport(CacheInRegistry("reg.example/to")),),
        registries=RegistrySettings(mirrors=(("docker.io", ("http://mirror.example:5000/hub",)),)),
    ),
)  # fmt: skip


class Lender:
    """A registry client that lends whatever it is asked for."""

    def lend(self, registry: str, repository: str, scopes: tuple[str, ...], fresh: bool) -> Loan:
        return Loan("token", 60)


def asked(job: protocol.Job, question: protocol.Question) -> Any:
    registry: Any = Lender()
    missing: Any = None
    answer = answers(BuildRequest("."), job, lambda _: Credential(USER, PASSWORD), registry, missing)
    return asyncio.run(answer(protocol.Ask(1, question)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("registry", "repository", "scopes", "lent"),
    [
        ("reg.example", "base", ["repository:base:pull"], True),
        ("reg.example", "context", ["repository:context:pull"], True),
        ("reg.example", "team/app", ["repository:team/app:pull,push"], True),
        ("reg.example", "team/app", ["repository:team/app:pull,push", "repository:base:pull"], True),
        ("reg.example", "from", ["repository:from:pull"], True),
        ("reg.example", "to", ["repository:to:pull,push"], True),
        ("docker.io", "library/debian", ["repository:library/debian:pull"], True),
        ("mirror.example:5000", "hub/library/debian", ["repository:hub/library/debian:pull"], True),
        ("reg.example", "other", ["repository:other:pull"], False),
        ("bank.example", "base", ["repository:base:pull"], False),
        ("reg.example", "base", ["repository:base:pull,push"], None),
        ("reg.example", "base", ["repository:team/app:delete"], None),
        ("reg.example", "base", ["repository:other:pull"], None),
        ("reg.example", "base", ["registry:catalog:*"], None),
        ("reg.example", "from", ["repository:from:pull,push"], None),
        ("mirror.example:5000", "hub/library/debian", ["repository:hub/library/debian:push"], None),
        ("reg.example", "base", ["base"], None),
        ("reg.example", "base", [""], None),
    ],
)
def test_a_token_is_for_what_the_job_does(registry: str, repository: str, scopes: list[str], lent: bool | None) -> None:
    question = protocol.AskToken(registry, repository, tuple(scopes))
    if lent is None:
        with pytest.raises(RegistryError):
            asked(JOB, question)
    else:
        assert (asked(JOB, question) is not None) == lent


def test_a_credential_is_given_or_lent() -> None:
    credential, token = protocol.AskCredential("reg.example", "base"), protocol.AskToken("reg.example", "base", ())
    assert asked(JOB, credential) is None
    here = replace(JOB, lends=False)
    assert PASSWORD.encode() in asked(here, credential)
    assert asked(here, token) is None

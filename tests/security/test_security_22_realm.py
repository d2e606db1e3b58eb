"""Attack 22: the ``realm`` of a challenge names somebody else's server, and the client sends it the password."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest
from registry_server import Asked, Said, Served, served

from executor.registry.auth import Credential
from executor.registry.client import Client
from executor.registry.reference import parse
from executor.registry.registry_session import TransferOptions
from executor.registry.registry_settings import RegistrySettings
from executor.registry.token import Authenticator, Party
from executor.retry import RetryPolicy
from executor.transport import Origin, Transport
from platforms.errors import RegistryError

QUICK = TransferOptions(RetryPolicy(first_delay=0.001, longest_delay=0.002))
SECRET = "hunter2-planted"
CREDENTIALS = (Credential("me", SECRET), Credential(identity_token=SECRET), Credential("me", SECRET, SECRET))


@pytest.fixture
def collector() -> Iterator[Served]:
    """An attacker who takes whatever comes."""
    with served(lambda _: Said(200, {}, b'{"token": "stolen"}')) as collector:
        yield collector


def _pull(server: Served, credential: Credential | None) -> None:
    """A pull that is refused."""
    with Client(keychain=lambda _: credential, options=QUICK) as client, pytest.raises(RegistryError):
        client.manifest(parse(f"{server.host}/a/b:1"))


def everything(server: Served) -> str:
    """All that a server was ever sent, decoded where it is base64."""
    texts = []
    for asked in server.asked:
        texts.append(f"{asked.target} {asked.headers} {asked.body!r}")
        for word in asked.headers.get("authorization", "").split():
            texts.append(base64.b64decode(word + "===", validate=False).decode(errors="replace"))
    return " ".join(texts)


@pytest.mark.parametrize("credential", CREDENTIALS)
@pytest.mark.parametrize("realm", ["http://{host}/token", "http://localhost:{port}/token", "http://u:p@{host}/token"])
def test_a_realm_elsewhere_gets_no_credential(collector: Served, credential: Credential, realm: str) -> None:
    where = realm.format(host=collector.host, port=collector.port)
    challenge = {"WWW-Authenticate": f'Bearer realm="{where}",service="r",scope="repository:a/b:pull"'}
    with (
        served(lambda _: Said(401, challenge)) as server,
        Client(keychain=lambda _: credential, options=QUICK) as client,
    ):
        with pytest.raises(RegistryError) as caught:
            client.manifest(parse(f"{server.host}/a/b:1"))
        assert "token-services" in caught.value.problem.remedy
        assert SECRET not in everything(server)
    assert collector.asked == []
    assert SECRET not in str(caught.value.problem)


@pytest.mark.parametrize(
    "realm",
    [
        "http://r.example.com/token",  # the registry's own name without TLS
        "http://auth.example.com/token",
        "https://auth.example.com.evil.example/token",
        "https://evil.example/auth.example.com/token",
        "https://r.example.com@evil.example/token",
        "https://example.co/token",
        "https://r.example.com:444@evil.example/",
        "ftp://r.example.com/token",
        "//r.example.com/token",
        "",
    ],
)
def test_a_secure_registrys_credential_goes_to_its_own_site_over_tls_only(realm: str) -> None:
    settings = RegistrySettings()
    authority = Authenticator(Transport(settings), settings, lambda _: Credential("me", SECRET))
    home = Origin("https", "r.example.com", 443)
    with pytest.raises(RegistryError):
        authority.answer(Party("r.example.com", "a/b", home), frozenset(), f'Bearer realm="{realm}"', "")


def test_a_realm_that_redirects_is_not_followed(collector: Served) -> None:
    def registry(asked: Asked) -> Said:
        if asked.path == "/token":
            return Said(307, {"Location": f"{collector.url}/token"})
        return Said(401, {"WWW-Authenticate": f'Bearer realm="http://{asked.headers["host"]}/token"'})

    for credential in CREDENTIALS:
        with served(registry) as server:
            _pull(server, credential)
    assert collector.asked == []


def test_basic_is_only_ever_answered_to_the_registry(collector: Served) -> None:
    """A redirect's target that asks for a password does not get the registry's."""
    collector.handler = lambda _: Said(401, {"WWW-Authenticate": 'Basic realm="give"'})
    with served(lambda _: Said(307, {"Location": f"{collector.url}/x"})) as server:
        _pull(server, Credential("me", SECRET))
    assert collector.asked
    assert SECRET not in everything(collector)


def test_without_a_credential_nothing_is_at_stake(collector: Served) -> None:
    challenge = {"WWW-Authenticate": f'Bearer realm="{collector.url}/token",service="r"'}
    with served(lambda _: Said(401, challenge)) as server:
        _pull(server, None)
    assert collector.secrets() == []


def test_a_realm_of_the_registrys_own_and_one_that_the_user_named_are_answered(collector: Served) -> None:
    expected = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()

    def registry(realm: str) -> object:
        def handler(asked: Asked) -> Said:
            if asked.path == "/token":
                good = asked.headers.get("authorization") == expected
                return Said(200, {}, json.dumps({"token": "good" if good else "bad"}).encode())
            if asked.headers.get("authorization") in ("Bearer good", "Bearer stolen"):
                return Said(404)
            where = realm or f"http://{asked.headers['host']}/token"
            return Said(401, {"WWW-Authenticate": f'Bearer realm="{where}"'})

        return handler

    for realm in ("", f"{collector.url}/token"):
        with served(registry(realm)) as server:  # type: ignore[arg-type]
            settings = RegistrySettings(token_services=((server.host, (collector.host,)),))
            with Client(settings, lambda _: Credential("me", SECRET), options=QUICK) as client:
                assert client.has_manifest(parse(f"{server.host}/a/b:1")) is None
    assert collector.secrets() == [expected]


def test_one_registrys_credential_is_never_anothers() -> None:
    asked: list[str] = []

    def keychain(name: str) -> Credential | None:
        asked.append(name)
        return Credential("me", SECRET) if name.startswith("trusted.example") else None

    basic = Said(401, {"WWW-Authenticate": "Basic realm=x"})
    with served(lambda _: basic) as server, Client(keychain=keychain, options=QUICK) as client:
        with pytest.raises(RegistryError):
            client.manifest(parse(f"{server.host}/trusted.example/b:1"))
        assert asked == [f"{server.host}/trusted.example/b"]
        assert server.secrets() == []

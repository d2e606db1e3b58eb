"""Attack 57 (CVE-2024-45336): dropped at the first hop, the ``Authorization`` header is back at the second."""

from __future__ import annotations

import pytest
from registry_server import Said, served

from executor.registry.auth import Credential
from executor.registry.client import Client
from executor.registry.reference import parse
from executor.registry.registry_session import TransferOptions
from executor.registry.registry_settings import RegistrySettings
from executor.retry import RetryPolicy
from executor.transport import Origin, check_target
from platforms.errors import RegistryError

QUICK = TransferOptions(RetryPolicy(first_delay=0.001, longest_delay=0.002))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("credential", [Credential("me", "p4ss"), Credential(registry_token="p4ss")])
def test_no_hop_after_the_first_sees_the_credential(status: int, credential: Credential) -> None:
    with served(lambda _: Said(404)) as last, served(lambda _: Said(status, {"Location": f"{last.url}/z"})) as middle:
        scheme = "Basic" if credential.username else "Bearer"

        def registry(asked: object) -> Said:
            if "authorization" not in asked.headers:  # type: ignore[attr-defined]
                return Said(401, {"WWW-Authenticate": f'{scheme} realm="http://{first.host}/token"'})
            return Said(status, {"Location": f"{middle.url}/y"})

        with served(registry) as first, Client(keychain=lambda _: credential, options=QUICK) as client:
            with pytest.raises(RegistryError, match="404"):
                client.manifest(parse(f"{first.host}/a/b:1"))
            assert first.secrets()
        assert middle.asked and last.asked
        assert middle.secrets() == last.secrets() == []


def _pull(host: str, reason: str) -> None:
    """A pull that is refused for ``reason``."""
    with Client(options=QUICK) as client, pytest.raises(RegistryError, match=reason):
        client.manifest(parse(f"{host}/a/b:1"))


def test_redirects_end_somewhere() -> None:
    with served(lambda asked: Said(307, {"Location": asked.path + "x"})) as server:
        _pull(server.host, "circles")
    assert len(server.asked) < 10


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://h/x", "http://", "http://[", "javascript:1", "http://h:99999/"]
)
def test_a_redirect_to_something_else_than_http_is_refused(location: str) -> None:
    with served(lambda _: Said(302, {"Location": location})) as server:
        _pull(server.host, "named an address|cannot speak|cannot find|circles")


def test_tls_is_not_left_for_plain_http() -> None:
    registry, storage = Origin("https", "192.0.2.1", 443), Origin("http", "192.0.2.2", 80)
    with pytest.raises(RegistryError, match="plain HTTP"):
        check_target(storage, registry, registry, RegistrySettings())
    check_target(storage, registry, registry, RegistrySettings(insecure=frozenset({"192.0.2.2:80", "192.0.2.2"})))


def test_a_registry_out_there_does_not_lead_to_this_machine() -> None:
    registry = Origin("https", "192.0.2.1", 443)
    for host in ("127.0.0.1", "localhost", "::1"):
        with pytest.raises(RegistryError, match="this machine"):
            check_target(Origin("https", host, 443), registry, registry, RegistrySettings())

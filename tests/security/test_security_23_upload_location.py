"""Attack 23: the token travels along an upload location or a redirect, or comes back after a 401 from elsewhere."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
from msgspec.structs import replace
from registry_server import Asked, MemoryRegistry, Said, Served, digest_of, served

from executor.image import mediatypes
from executor.image.manifest import Descriptor
from executor.registry.auth import Credential
from executor.registry.client import Client
from executor.registry.reference import parse
from executor.registry.registry_session import TransferOptions
from executor.retry import RetryPolicy
from platforms.errors import RegistryError

QUICK = TransferOptions(RetryPolicy(first_delay=0.001, longest_delay=0.002))
DATA = b"layer" * 1000
LAYER = Descriptor(mediatypes.OCI_LAYER, digest_of(DATA), len(DATA))


class Guarded(MemoryRegistry):
    """A registry that wants a token, and gives one for the right password."""

    def __call__(self, asked: Asked) -> Said | None:
        if asked.path == "/token":
            return Said(200, {}, json.dumps({"token": "t0ken"}).encode())
        if asked.headers.get("authorization") != "Bearer t0ken":
            return Said(401, {"WWW-Authenticate": f'Bearer realm="http://{asked.headers["host"]}/token",service="r"'})
        return super().__call__(asked)


@pytest.fixture
def registry() -> Guarded:
    return Guarded()


@pytest.fixture
def server(registry: Guarded) -> Iterator[Served]:
    with served(registry) as server:
        yield server


@pytest.fixture
def elsewhere() -> Iterator[Served]:
    """Another host: an object store, say, or an attacker."""
    with served(MemoryRegistry()) as other:
        yield other


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(keychain=lambda _: Credential("me", "p4ss"), options=QUICK) as client:
        yield client


def test_a_blob_redirected_elsewhere_is_read_without_the_token(
    registry: Guarded, server: Served, elsewhere: Served, client: Client
) -> None:
    elsewhere.handler = lambda _: Said(200, {}, DATA)
    registry.fault = lambda asked: Said(307, {"Location": f"{elsewhere.url}/bucket/x?sig=1"})
    assert client.read_blob(parse(f"{server.host}/a/b"), LAYER) == DATA
    (asked,) = elsewhere.asked
    assert "authorization" not in asked.headers
    assert "cookie" not in asked.headers
    assert asked.query == {"sig": ["1"]}


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_location_elsewhere_gets_the_bytes_without_the_token(
    registry: Guarded,
    server: Served,
    elsewhere: Served,
    chunked: bool,
) -> None:
    elsewhere.handler.uploads["x"] = bytearray()  # type: ignore[union-attr, attr-defined]
    registry.fault = lambda asked: (
        Said(202, {"Location": f"{elsewhere.url}/v2/a/b/blobs/uploads/x"}) if asked.method == "POST" else ...
    )
    options = replace(QUICK, whole=0 if chunked else 1 << 20)
    with Client(keychain=lambda _: Credential("me", "p4ss"), options=options) as client:
        assert client.push(parse(f"{server.host}/a/b"), LAYER, lambda: io.BytesIO(DATA)) == "uploaded"
    assert elsewhere.asked
    assert elsewhere.secrets() == []


def test_an_upload_redirected_elsewhere_gets_no_token(
    registry: Guarded, server: Served, elsewhere: Served, client: Client
) -> None:
    elsewhere.handler = lambda _: Said(201)
    registry.fault = lambda asked: Said(307, {"Location": f"{elsewhere.url}/put"}) if asked.method == "PUT" else ...
    client.push(parse(f"{server.host}/a/b"), LAYER, lambda: io.BytesIO(DATA))
    (asked,) = elsewhere.asked
    assert asked.body == DATA
    assert elsewhere.secrets() == []


def test_the_token_is_not_attached_again_after_a_401_from_elsewhere(
    registry: Guarded, server: Served, elsewhere: Served, client: Client
) -> None:
    challenge = {"WWW-Authenticate": f'Bearer realm="{server.url}/token",service="r"'}
    elsewhere.handler = lambda _: Said(401, challenge)
    registry.fault = lambda asked: Said(302, {"Location": f"{elsewhere.url}/x"})
    with pytest.raises(RegistryError, match="401"):
        client.read_blob(parse(f"{server.host}/a/b"), LAYER)
    assert elsewhere.secrets() == []


def test_a_redirect_that_comes_back_comes_back_without_the_token(
    registry: Guarded, server: Served, elsewhere: Served, client: Client
) -> None:
    """302 → another host → 302 → the registry: it may be the other host that chose the path."""
    elsewhere.handler = lambda _: Said(302, {"Location": f"{server.url}/v2/private/secret/blobs/{LAYER.digest}"})
    registry.fault = lambda asked: Said(302, {"Location": f"{elsewhere.url}/x"}) if "/a/b/" in asked.path else ...
    registry.add_blob("private/secret", DATA)
    with pytest.raises(RegistryError, match="401"):
        client.read_blob(parse(f"{server.host}/a/b"), LAYER)
    back = server.seen("GET", "private/secret")
    assert back
    assert all("authorization" not in asked.headers for asked in back)
    assert elsewhere.secrets() == []


def test_within_the_registry_a_redirect_keeps_the_token(registry: Guarded, server: Served, client: Client) -> None:
    registry.fault = lambda asked: (
        Said(307, {"Location": f"/v2/moved/blobs/{LAYER.digest}"}) if "/a/b/" in asked.path else ...
    )
    registry.add_blob("moved", DATA)
    assert client.read_blob(parse(f"{server.host}/a/b"), LAYER) == DATA


def test_a_password_in_a_location_is_not_sent(
    registry: Guarded, server: Served, elsewhere: Served, client: Client
) -> None:
    elsewhere.handler = lambda _: Said(200, {}, DATA)
    registry.fault = lambda asked: Said(307, {"Location": f"http://u:p@{elsewhere.host}/x"})
    assert client.read_blob(parse(f"{server.host}/a/b"), LAYER) == DATA
    assert elsewhere.secrets() == []


def test_a_cookie_of_one_port_is_not_shown_to_another(server: Served, elsewhere: Served) -> None:
    """Cookies know no ports; the client keeps none."""
    server.handler = lambda _: Said(307, {"Location": f"{elsewhere.url}/x", "Set-Cookie": "session=s3cret; Path=/"})
    elsewhere.handler = lambda _: Said(200, {}, DATA)
    with Client(options=QUICK) as client:
        for _ in range(2):
            client.read_blob(parse(f"{server.host}/a/b"), LAYER)
    assert all("cookie" not in asked.headers for asked in (*server.asked, *elsewhere.asked))

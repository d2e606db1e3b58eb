"""Attack 35: a compressed answer that nobody asked for unpacks to a thousand times its size."""

from __future__ import annotations

import gzip

import pytest
from registry_server import Asked, MemoryRegistry, Said, digest_of, served

from executor.image import mediatypes
from executor.image.manifest import Descriptor
from executor.registry.auth import Credential
from executor.registry.client import Client
from executor.registry.reference import parse
from executor.registry.registry_session import TransferOptions
from executor.retry import RetryPolicy
from platforms.errors import RegistryError

QUICK = TransferOptions(RetryPolicy(attempts=2, first_delay=0.001))

BOMB = gzip.compress(bytes(64 << 20), 9)
CODINGS = ["gzip", "deflate", "br", "zstd", "gzip, gzip", "GZIP"]


@pytest.fixture
def client() -> Client:
    return Client(keychain=lambda _: Credential("u", "p"), options=QUICK)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_coded_answer_is_refused_unread(client: Client, coding: str) -> None:
    answer = Said(200, {"Content-Type": mediatypes.OCI_MANIFEST, "Content-Encoding": coding}, BOMB)
    with served(lambda _: answer) as server, client:
        reference = parse(f"{server.host}/a/b:1")
        with pytest.raises(RegistryError, match="compressed"):
            client.manifest(reference)
        with pytest.raises(RegistryError, match="compressed"):
            client.read_blob(reference, Descriptor("x", digest_of(BOMB), len(BOMB)), limit=1 << 30)
        assert {asked.headers["accept-encoding"] for asked in server.asked} == {"identity"}


def test_a_coded_error_token_or_redirect_is_not_unpacked(client: Client) -> None:
    coded = {"Content-Encoding": "gzip"}

    def handler(asked: Asked) -> Said:
        if asked.path == "/token":
            return Said(200, coded, BOMB)
        if "blobs" in asked.path:
            return Said(302, {**coded, "Location": "/elsewhere"}, BOMB)
        if asked.path == "/elsewhere":
            return Said(500, coded, BOMB)
        return Said(401, {**coded, "WWW-Authenticate": f'Bearer realm="http://{asked.headers["host"]}/token"'}, BOMB)

    with served(handler) as server, client:
        reference = parse(f"{server.host}/a/b:1")
        with pytest.raises(RegistryError, match="compressed"):
            client.manifest(reference)
        with (
            Client(options=QUICK) as stranger,
            pytest.raises(RegistryError, match="500"),
        ):
            stranger.read_blob(reference, Descriptor("x", digest_of(b"x"), 1))


def test_identity_is_no_coding(client: Client) -> None:
    registry = MemoryRegistry()
    data = b"plain"
    registry.fault = lambda _: Said(200, {"Content-Encoding": "identity"}, data)
    with served(registry) as server, client:
        assert client.read_blob(parse(f"{server.host}/a/b"), Descriptor("x", digest_of(data), len(data))) == data

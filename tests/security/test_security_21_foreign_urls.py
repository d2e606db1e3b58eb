"""Attack 21: a descriptor's ``urls``, or a redirect, lead credentials and requests where the registry's author likes"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest
from registry_server import MemoryRegistry, Said, digest_of, served

from executor.image import mediatypes
from executor.image.manifest import Manifest
from executor.registry.auth import Credential
from executor.registry.client import Client
from executor.registry.reference import parse
from executor.registry.registry_session import TransferOptions
from executor.registry.registry_settings import RegistrySettings
from executor.retry import RetryPolicy
from platforms.errors import RegistryError

QUICK = TransferOptions(RetryPolicy(first_delay=0.001, longest_delay=0.002))
METADATA = ("169.254.169.254", "fe80::1", "fd00:ec2::254", "100.100.100.200", "0.0.0.0")

_connected: list[str] = []
_watching = False


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event == "socket.connect":
        _connected.append(str(arguments[1]))


sys.addaudithook(_watch)


@pytest.fixture
def connected() -> Iterator[list[str]]:
    """Every address that this process connects to during the test, as the interpreter's audit events tell it."""
    global _watching  # noqa: PLW0603 - an audit hook stays for good, so it is switched
    _connected.clear()
    _watching = True
    yield _connected
    _watching = False


def test_a_foreign_layers_urls_are_never_followed(connected: list[str]) -> None:
    with served(lambda _: Said()) as collector:
        registry = MemoryRegistry()
        layer = {"mediaType": mediatypes.DOCKER_LAYER_GZIP, "digest": digest_of(b"layer"), "size": 5}
        layer["urls"] = [f"{collector.url}/steal", "http://169.254.169.254/latest/meta-data/"]
        config = {"mediaType": mediatypes.DOCKER_CONFIG, "digest": registry.add_blob("a/b", b"{}"), "size": 2}
        document = {"schemaVersion": 2, "mediaType": mediatypes.DOCKER_MANIFEST, "config": config, "layers": [layer]}
        registry.add_manifest("a/b", "1", mediatypes.DOCKER_MANIFEST, json.dumps(document).encode())
        with served(registry) as server, Client(keychain=lambda _: Credential("u", "p"), options=QUICK) as client:
            reference = parse(f"{server.host}/a/b:1")
            manifest = client.manifest(reference)[0]
            assert isinstance(manifest, Manifest)
            with pytest.raises(RegistryError, match="BLOB_UNKNOWN"):
                client.read_blob(reference, manifest.layers[0])
        assert collector.asked == []
    assert not [each for each in connected if "169.254" in each]


@pytest.mark.parametrize("address", [*METADATA, "[::ffff:169.254.169.254]", "2852039166", "0xa9fea9fe"])
def test_no_redirect_leads_to_a_metadata_service(connected: list[str], address: str) -> None:
    literal = f"[{address}]" if address.count(":") > 1 and not address.startswith("[") else address
    target = {"Location": f"http://{literal}/latest/meta-data/"}
    with served(lambda _: Said(307, target)) as server, Client(options=QUICK) as client:
        reference = parse(f"{server.host}/a/b:1")
        with pytest.raises(RegistryError, match="link-local"):
            client.manifest(reference)
        connected_to = [each for each in connected if server.host.partition(":")[2] not in each]
    assert connected_to == []


def test_no_upload_location_leads_to_a_metadata_service(connected: list[str]) -> None:
    registry = MemoryRegistry()
    target = {"Location": "http://169.254.169.254/upload"}
    registry.fault = lambda asked: Said(202, target) if asked.method == "POST" else ...
    with served(registry) as server, Client(options=QUICK) as client, pytest.raises(RegistryError, match="link-local"):
        _push(client, server.host)
    assert not [each for each in connected if "169.254" in each]


def _refusal() -> pytest.RaisesExc[RegistryError]:
    return pytest.raises(RegistryError, match="link-local")


def _push(client: Client, host: str) -> None:
    import io

    from executor.image.manifest import Descriptor

    descriptor = Descriptor(mediatypes.OCI_LAYER, digest_of(b"data"), 4)
    client.push(parse(f"{host}/a/b"), descriptor, lambda: io.BytesIO(b"data"))


def test_no_realm_leads_to_a_metadata_service(connected: list[str]) -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="http://169.254.169.254/latest/meta-data/",service="x"'}
    with served(lambda _: Said(401, challenge)) as server, Client(options=QUICK) as client, _refusal():
        client.manifest(parse(f"{server.host}/a/b:1"))
    assert not [each for each in connected if "169.254" in each]


def test_a_named_token_service_is_no_way_to_a_metadata_service_either(connected: list[str]) -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="http://169.254.169.254/",service="x"'}
    with served(lambda _: Said(401, challenge)) as server:
        settings = RegistrySettings(token_services=((server.host, ("169.254.169.254",)),))
        with Client(settings, options=QUICK) as client, pytest.raises(RegistryError, match="link-local"):
            client.manifest(parse(f"{server.host}/a/b:1"))
    assert not [each for each in connected if "169.254" in each]

"""Attack 32 (CVE-2021-41190): one document that is a manifest to one reader and an index to another."""

from __future__ import annotations

import json
from typing import Any

import pytest
from registry_server import MemoryRegistry, Said, digest_of, served

from executor.image import mediatypes
from executor.registry.client import Client
from executor.registry.reference import parse
from executor.registry.registry_session import TransferOptions
from executor.retry import RetryPolicy
from platforms.errors import RegistryError

CONFIG = {"mediaType": mediatypes.OCI_CONFIG, "digest": digest_of(b"{}"), "size": 2}
MANIFEST = {"schemaVersion": 2, "mediaType": mediatypes.OCI_MANIFEST, "config": CONFIG, "layers": []}
ENTRY = {"mediaType": mediatypes.OCI_MANIFEST, "digest": digest_of(b"{}"), "size": 2}
PLATFORM = {"os": "linux", "architecture": "amd64"}
INDEX = {"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": []}


def text(document: dict[str, Any]) -> str:
    return json.dumps(document)


@pytest.mark.parametrize(
    ("served_as", "body"),
    [
        (mediatypes.OCI_INDEX, text({**MANIFEST, "manifests": []})),
        (mediatypes.OCI_MANIFEST, text({**INDEX, "layers": []})),
        (mediatypes.OCI_INDEX, text(MANIFEST)),
        (mediatypes.OCI_MANIFEST, text(INDEX)),
        (mediatypes.OCI_INDEX, text({key: value for key, value in MANIFEST.items() if key != "mediaType"})),
        (mediatypes.DOCKER_MANIFEST, text(MANIFEST)),
        (mediatypes.OCI_MANIFEST, text(MANIFEST)[:-1] + ', "layers": []}'),
        (mediatypes.OCI_MANIFEST, text({**MANIFEST, "Layers": []})),
        (mediatypes.OCI_MANIFEST, text({**MANIFEST, "MANIFESTS": []})),
        (mediatypes.OCI_MANIFEST, text({**MANIFEST, "Manifests": []})),
        (mediatypes.OCI_MANIFEST, text({**MANIFEST, "config": {**CONFIG, "Digest": CONFIG["digest"]}})),
        (mediatypes.OCI_INDEX, text({**INDEX, "manifests": [{**ENTRY, "Platform": PLATFORM}]})),
        (mediatypes.OCI_INDEX, text({**INDEX, "manifests": [{**ENTRY, "platform": {**PLATFORM, "Variant": "v3"}}]})),
        (mediatypes.OCI_MANIFEST, text({**MANIFEST, "mediaType": ["x"]})),
        (mediatypes.OCI_MANIFEST, text({**MANIFEST, "schemaVersion": 1})),
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", text({"schemaVersion": 1, "fsLayers": []})),
        ("text/html", "<html>sign in to the network</html>"),
        ("application/json", text(MANIFEST)),
        (mediatypes.OCI_MANIFEST, "[" * 100_000),
        (mediatypes.OCI_MANIFEST, "\ufeff" + text(MANIFEST)),
        (mediatypes.OCI_MANIFEST, "null"),
    ],
)
def test_an_ambiguous_document_is_refused(served_as: str, body: str) -> None:
    registry = MemoryRegistry()
    registry.add_manifest("a/b", "1", served_as, body.encode())
    with served(registry) as server, Client(options=TransferOptions(RetryPolicy(first_delay=0.001))) as client:
        for _ in range(2):
            with pytest.raises(RegistryError):
                client.manifest(parse(f"{server.host}/a/b:1"))


@pytest.mark.parametrize("parameter", ["", "; charset=utf-8", ";x=y"])
def test_parameters_of_the_type_are_ignored(parameter: str) -> None:
    body = text(MANIFEST).encode()
    answer = Said(200, {"Content-Type": mediatypes.OCI_MANIFEST + parameter}, body)
    with served(lambda _: answer) as server, Client(options=TransferOptions(RetryPolicy(first_delay=0.001))) as client:
        assert client.manifest(parse(f"{server.host}/a/b:1"))[2].digest == digest_of(body)

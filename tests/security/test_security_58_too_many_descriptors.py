"""Attack 58 (CVE-2024-29902, -29903): a document of a million descriptors, or one that claims a blob without end."""

from __future__ import annotations

import time

import pytest
from registry_server import MemoryRegistry, digest_of, served

from executor.image import mediatypes
from executor.image.manifest import Descriptor
from executor.registry.client import Client
from executor.registry.reference import parse
from executor.registry.registry_session import TransferOptions
from executor.retry import RetryPolicy
from platforms.errors import RegistryError


def test_a_million_descriptors_are_refused_quickly() -> None:
    entry = f'{{"mediaType":"{mediatypes.OCI_MANIFEST}","digest":"{digest_of(b"x")}","size":1}}'
    body = f'{{"schemaVersion":2,"mediaType":"{mediatypes.OCI_INDEX}","manifests":[{",".join([entry] * 10**6)}]}}'
    registry = MemoryRegistry()
    registry.add_manifest("a/b", "1", mediatypes.OCI_INDEX, body.encode())
    with served(registry) as server, Client(options=TransferOptions(RetryPolicy(first_delay=0.001))) as client:
        begun = time.process_time()
        with pytest.raises(RegistryError, match="too much"):
            client.manifest(parse(f"{server.host}/a/b:1"))
        with pytest.raises(RegistryError):
            client.resolve(parse(f"{server.host}/a/b:1"))
        assert time.process_time() - begun < 5


def test_a_configuration_of_a_terabyte_is_not_read_into_memory() -> None:
    with served(MemoryRegistry()) as server, Client(options=TransferOptions(RetryPolicy(first_delay=0.001))) as client:
        with pytest.raises(RegistryError, match="allowed"):
            client.read_blob(parse(f"{server.host}/a/b"), Descriptor(mediatypes.OCI_CONFIG, digest_of(b"x"), 1 << 40))
        assert server.asked == []

"""Attack 33 (CVE-2024-3727): a digest that is none becomes a path, or an authenticated request."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from registry_server import MemoryRegistry, Said, digest_of, served

from executor.image import mediatypes
from executor.image.manifest import Descriptor
from executor.registry.client import Client
from executor.registry.layout import BlobSource, read_layout, write_layout
from executor.registry.reference import parse
from executor.registry.registry_session import TransferOptions
from executor.retry import RetryPolicy
from platforms.errors import ArchiveError, RegistryError, UsageError

QUICK = TransferOptions(RetryPolicy(first_delay=0.001))

GOOD = digest_of(b"{}")
BAD = [
    "sha256:../../x",
    "../../../etc/passwd",
    "sha256:" + "a" * 63,
    "sha256:" + "a" * 65,
    "sha256:" + "A" * 64,
    "SHA256:" + "a" * 64,
    "sha512:" + "a" * 64,
    "md5:" + "a" * 32,
    "sha256:" + "a" * 64 + "\n",
    "sha256:" + "a" * 64 + "/../x",
    "sha256:" + "a" * 60 + "/../",
    "",
    "sha256:",
]


@pytest.mark.parametrize("digest", BAD)
def test_a_false_digest_in_a_manifest_is_refused_before_any_request_for_it(digest: str) -> None:
    config = {"mediaType": mediatypes.OCI_CONFIG, "digest": digest, "size": 2}
    document = {"schemaVersion": 2, "mediaType": mediatypes.OCI_MANIFEST, "config": config, "layers": []}
    registry = MemoryRegistry()
    registry.add_manifest("a/b", "1", mediatypes.OCI_MANIFEST, json.dumps(document).encode())
    with served(registry) as server, Client(options=QUICK) as client:
        with pytest.raises(RegistryError, match="digest"):
            client.manifest(parse(f"{server.host}/a/b:1"))
        assert not server.seen("GET", "blobs")


@pytest.mark.parametrize("digest", BAD)
def test_a_false_digest_is_never_asked_for(digest: str) -> None:
    with (
        served(lambda _: Said(200, {}, b"{}")) as server,
        Client(options=QUICK) as client,
    ):
        reference = parse(f"{server.host}/a/b")
        descriptor = Descriptor(mediatypes.OCI_LAYER, digest, 2)
        for attempt in (
            lambda: client.push(reference, descriptor, lambda: io.BytesIO(b"{}"), mount_from=["c/d"]),
            lambda: client.read_blob(reference, descriptor),
            lambda: client.push(reference, descriptor, lambda: io.BytesIO(b"{}")),
        ):
            with pytest.raises(RegistryError):
                attempt()
        assert server.asked == []
    if digest:
        with pytest.raises(UsageError):
            parse(f"r.example/a@{digest}")


@pytest.mark.parametrize("digest", [each for each in BAD if "\n" not in each and each])
def test_a_false_digest_in_a_header_is_refused(digest: str) -> None:
    body = json.dumps({"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": []}).encode()
    answer = Said(200, {"Content-Type": mediatypes.OCI_INDEX, "Docker-Content-Digest": digest}, body)
    with served(lambda _: answer) as server, Client() as client, pytest.raises(RegistryError, match="digest"):
        client.resolve(parse(f"{server.host}/a/b:1"))


@pytest.mark.parametrize("size", [-1, 1.5, "2", None, True])
def test_a_false_size_is_refused(size: object) -> None:
    config = {"mediaType": mediatypes.OCI_CONFIG, "digest": GOOD, "size": size}
    document = {"schemaVersion": 2, "mediaType": mediatypes.OCI_MANIFEST, "config": config, "layers": []}
    registry = MemoryRegistry()
    registry.add_manifest("a/b", "1", mediatypes.OCI_MANIFEST, json.dumps(document).encode())
    with served(registry) as server, Client(options=QUICK) as client:
        with pytest.raises(RegistryError, match="size"):
            client.manifest(parse(f"{server.host}/a/b:1"))
        with pytest.raises(RegistryError, match="size"):
            client.read_blob(parse(f"{server.host}/a/b:1"), Descriptor("x", GOOD, -1))


@pytest.mark.parametrize("digest", BAD)
def test_a_layout_neither_writes_nor_reads_outside_of_itself(tmp_path: Path, digest: str) -> None:
    canary = tmp_path / "x"
    canary.write_text("alive")
    with pytest.raises(ArchiveError):
        write_layout(str(tmp_path / "out"), [], [BlobSource(digest, 2, lambda: io.BytesIO(b"{}"))])
    write_layout(str(tmp_path / "out"), [], [])
    with pytest.raises(ArchiveError):
        read_layout(str(tmp_path / "out")).read(Descriptor("x", digest, 5))
    assert canary.read_text() == "alive"

"""Images of a few hundred bytes, made by hand: manifests, indexes, attestations and signatures as BuildKit, cosign and
ORAS write them. Nothing here comes from kanifold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from registry_server import MemoryRegistry, digest_of

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
IN_TOTO = "application/vnd.in-toto+json"
SIGNATURE = "application/vnd.dev.sigstore.bundle.v0.3+json"
EMPTY = "application/vnd.oci.empty.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"

Document = dict[str, Any]


class Images:
    """Documents and blobs by digest. What makes one gives its descriptor."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.types: dict[str, str] = {}
        """The media types of documents."""

    def blob(self, media_type: str, data: bytes, **fields: Any) -> Document:
        digest = digest_of(data)
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data), **fields}

    def document(self, media_type: str, document: Mapping[str, Any], **fields: Any) -> Document:
        data = json.dumps({"schemaVersion": 2, "mediaType": media_type, **document}).encode()
        described = self.blob(media_type, data, **fields)
        self.types[described["digest"]] = media_type
        return described

    def image(self, platform: str = "linux/amd64", text: str = "", *, docker: bool = False, **fields: Any) -> Document:
        """An image of one layer, which holds ``text``; its descriptor has no platform."""
        system, architecture, variant = (*platform.split("/"), "")[:3]
        layer = f"{platform} {text}".encode()
        config = {
            "os": system,
            "architecture": architecture,
            **({"variant": variant} if variant else {}),
            "config": {"Labels": {"text": text}},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]},
        }
        kinds = (DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER) if docker else (MANIFEST, CONFIG, LAYER)
        return self.document(
            kinds[0],
            {
                "config": self.blob(kinds[1], json.dumps(config).encode()),
                "layers": [self.blob(kinds[2], layer)],
                **fields,
            },
        )

    def entry(self, platform: str = "linux/amd64", text: str = "", *, docker: bool = False, **fields: Any) -> Document:
        """The same as a line of an index."""
        system, architecture, variant = (*platform.split("/"), "")[:3]
        stated = {"architecture": architecture, "os": system} | ({"variant": variant} if variant else {})
        return {**self.image(platform, text, docker=docker), **fields, "platform": stated}

    def index(self, entries: Sequence[Mapping[str, Any]], media_type: str = INDEX, **fields: Any) -> Document:
        return self.document(media_type, {"manifests": list(entries), **fields})

    def attestation(self, subject: Mapping[str, Any]) -> Document:
        """Provenance and an SBOM of ``subject``, as BuildKit puts them into the index beside it."""
        statements = [
            self.blob(
                IN_TOTO,
                json.dumps({"predicateType": kind, "predicate": {"about": subject["digest"], "kind": kind}}).encode(),
                annotations={"in-toto.io/predicate-type": kind},
            )
            for kind in ("https://slsa.dev/provenance/v1", "https://spdx.dev/Document")
        ]
        config = json.dumps({"os": "unknown", "architecture": "unknown", "rootfs": {"type": "layers"}}).encode()
        manifest = self.document(MANIFEST, {"config": self.blob(CONFIG, config), "layers": statements})
        return manifest | {
            "platform": {"architecture": "unknown", "os": "unknown"},
            "annotations": {
                "vnd.docker.reference.digest": subject["digest"],
                "vnd.docker.reference.type": "attestation-manifest",
            },
        }

    def signature(self, subject: Mapping[str, Any], text: str = "") -> Document:
        """A signature of ``subject``, as an artefact that refers to it (OCI 1.1)."""
        plain = {key: subject[key] for key in ("mediaType", "digest", "size")}
        return self.document(
            MANIFEST,
            {
                "artifactType": SIGNATURE,
                "config": self.blob(EMPTY, b"{}"),
                "layers": [self.blob(SIGNATURE, f"signed {subject['digest']} {text}".encode())],
                "subject": plain,
                "annotations": {"signed": "yes"},
            },
        )

    def layout(self, path: Path, roots: Mapping[str, Mapping[str, Any]], unnamed: Sequence[Document] = ()) -> Path:
        """All of it as a layout at ``path``, with ``roots`` by name."""
        (path / "blobs" / "sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        named = [{**root, "annotations": {REF_NAME: name}} for name, root in roots.items()]
        (path / "index.json").write_text(
            json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [*named, *unnamed]})
        )
        for digest, data in self.blobs.items():
            (path / "blobs" / digest.replace(":", "/")).write_bytes(data)
        return path

    def put(self, registry: MemoryRegistry, repository: str, tags: Mapping[str, Mapping[str, Any]]) -> None:
        """All of it into ``repository``, with ``tags``."""
        for digest, data in self.blobs.items():
            if digest in self.types:
                registry.add_manifest(repository, digest, self.types[digest], data)
            else:
                registry.add_blob(repository, data)
        for tag, root in tags.items():
            registry.add_manifest(repository, tag, root["mediaType"], self.blobs[root["digest"]])

"""Media types of the OCI image specification (media-types.md) and of Docker's image manifest version 2, schema 2."""

from __future__ import annotations

from typing import Final

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"

DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"

INDEXES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
ACCEPT: Final = ", ".join((OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST))
"""The Accept header of manifest requests."""

_TO_OCI: Final = {
    DOCKER_INDEX: OCI_INDEX,
    DOCKER_MANIFEST: OCI_MANIFEST,
    DOCKER_CONFIG: OCI_CONFIG,
    DOCKER_LAYER: OCI_LAYER,
    DOCKER_LAYER_GZIP: OCI_LAYER_GZIP,
}
_TO_DOCKER: Final = {oci: docker for docker, oci in _TO_OCI.items()}


def to_oci(media_type: str) -> str:
    """Return the OCI equivalent of ``media_type``; unchanged if it has none or is OCI's already."""
    return _TO_OCI.get(media_type, media_type)


def to_docker(media_type: str) -> str:
    """Return Docker's equivalent of ``media_type``; unchanged if it has none (zstd layers, say)."""
    return _TO_DOCKER.get(media_type, media_type)


def compression(media_type: str) -> str:
    """Return the compression of a layer of ``media_type``: ``gzip``, ``zstd`` or ``uncompressed``."""
    if media_type.endswith((".tar.gzip", "+gzip")):
        return "gzip"
    return "zstd" if media_type.endswith("+zstd") else "uncompressed"

"""``--metadata-file`` of ``kanifold index`` and ``kanifold copy``, with the keys of a build's metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence

from executor.image.manifest import Index
from orchestrator.index import entries
from orchestrator.index.editing import PlannedImage
from orchestrator.index.names import ImageName, RegistryName
from orchestrator.index.source_arguments import DESCRIPTOR, DIGEST, NAME
from platforms.errors import StoreError
from platforms.replacing import replacing

PLATFORMS = "kanifold.platforms"


def write_metadata(path: str, planned: PlannedImage, names: Sequence[ImageName]) -> None:
    """Write the digest and the descriptor of ``planned``, its names and its platforms. Raises ``StoreError``."""
    root = planned.root.document
    descriptor = {
        "mediaType": root.descriptor.media_type,
        "digest": root.descriptor.digest,
        "size": root.descriptor.size,
        **({"annotations": dict(planned.annotations)} if planned.annotations else {}),
    }
    found = entries.entries_of(root.content, root.data) if isinstance(root.content, Index) else ()
    document = {
        DIGEST: root.descriptor.digest,
        DESCRIPTOR: descriptor,
        NAME: ",".join(str(each.reference) if isinstance(each, RegistryName) else str(each) for each in names),
        PLATFORMS: {str(each.platform): {"digest": each.descriptor.digest} for each in found if each.platform},
    }
    try:
        with replacing(path) as file:
            file.write((json.dumps(document, indent=2) + "\n").encode())
    except OSError as error:
        raise StoreError(f"cannot write {path}", why=error.strerror or str(error)) from error

"""Referrers: the manifests of a repository that name another one as their subject, such as signatures.

distribution-spec 1.1, "Listing Referrers": a registry that has the API answers with an index, in pages if it is long.
Where it has none, the index is an image of the repository, under a tag made of the subject's digest ("Referrers Tag
Schema"), and kept by those who push referrers.
"""

from __future__ import annotations

import re
from typing import Final

from executor.image import mediatypes
from executor.image.manifest import MANIFEST_LIMIT, Descriptor, Index, parse
from executor.registry.registry_session import Endpoint, EndpointRequest, RegistrySession
from executor.registry.token import merged, scope
from executor.transport import joined
from platforms.errors import ArchiveError, RegistryError

REFERRERS: Final = 4096
"""Referrers that one manifest may have: more are refused."""
_PAGES: Final = 64
_NO_API: Final = frozenset({400, 404, 405, 406, 415, 501})
"""What registries say to a request that they do not know; they agree on no status."""
_NEXT: Final = re.compile(r'<([^<>]{1,4000})>\s*;\s*rel="?next"?', re.IGNORECASE)


def fallback_tag(digest: str) -> str:
    """The tag under which the referrers of ``digest`` are listed where there is no API: ``sha256-…``."""
    algorithm, _, value = digest.partition(":")
    return f"{algorithm[:32]}-{value[:64]}"


def listed(session: RegistrySession, endpoint: Endpoint, digest: str, what: str) -> tuple[Descriptor, ...] | None:
    """The referrers of ``digest``; None where the registry has no such API. ``what`` fails when that cannot be told.

    Raises ``RegistryError``, also for a list that is malformed or without end.
    """
    path = f"referrers/{digest}"
    found: list[Descriptor] = []
    for _ in range(_PAGES):
        call = EndpointRequest(
            what,
            "GET",
            path,
            merged(scope(endpoint.repository, "pull")),
            headers=(("Accept", mediatypes.OCI_INDEX),),
            limit=MANIFEST_LIMIT,
            accept=frozenset({200}) | _NO_API,
        )
        reply = session.call(endpoint, call)
        if reply.status != 200 or not reply.header("content-type").lower().startswith(mediatypes.OCI_INDEX):
            return None
        try:
            page = parse(reply.body, mediatypes.OCI_INDEX)
        except ArchiveError as error:
            raise RegistryError(what, why=f"{endpoint.registry}: {error}") from error
        if not isinstance(page, Index):
            raise RegistryError(what, why=f"{endpoint.registry} sent no index")
        found += page.manifests
        if len(found) > REFERRERS:
            raise RegistryError(what, why=f"there are more than {REFERRERS} of them")
        following = _NEXT.search(reply.header("link"))
        if following is None:
            return tuple(found)
        path = joined(reply.url, following[1])
    raise RegistryError(what, why=f"{endpoint.registry} has them on more than {_PAGES} pages")

"""Referrers: manifests in a repository that name another one as their subject, such as signatures.

distribution-spec 1.1, "Listing Referrers": a registry with the API returns an index, in pages if it is long. Without
the API, the index is an image in the repository, under a tag made from the subject's digest ("Referrers Tag Schema"),
and is maintained by the clients that push referrers.
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
"""Maximum number of referrers of a manifest."""
_PAGES: Final = 64
_NO_API: Final = frozenset({400, 404, 405, 406, 415, 501})
"""Statuses by which registries refuse a request that they do not know."""
_NEXT: Final = re.compile(r'<([^<>]{1,4000})>\s*;\s*rel="?next"?', re.IGNORECASE)


def fallback_tag(digest: str) -> str:
    """Return the tag under which the referrers of ``digest`` are listed without the API: ``sha256-…``."""
    algorithm, _, value = digest.partition(":")
    return f"{algorithm[:32]}-{value[:64]}"


def listed(session: RegistrySession, endpoint: Endpoint, digest: str, what: str) -> tuple[Descriptor, ...] | None:
    """Return the referrers of ``digest``; None if the registry does not have the API. ``what``: what fails in an error.

    Raises ``RegistryError``, also for a list that is malformed or too long.
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

"""The date of what has none of its own: here-documents, directories that COPY and WORKDIR make, mount points.

The clock's time would give equal inputs different layers. 1970 would do that no harm, but archives of the ZIP format
cannot hold years before 1980, and programs that read times take 1970 for "unknown". So it is 2000-01-01T00:00:00Z,
which is later than 1980 in every time zone, or SOURCE_DATE_EPOCH where a build has one.
"""

from __future__ import annotations

from typing import Final

SECONDS: Final = 946_684_800
NANOSECONDS: Final = SECONDS * 1_000_000_000


def nanoseconds(epoch: int | None) -> int:
    """The moment in a build whose SOURCE_DATE_EPOCH is ``epoch`` (seconds)."""
    return NANOSECONDS if epoch is None else epoch * 1_000_000_000

"""The time of files without one of their own: here-documents, directories that COPY and WORKDIR create, mount points.

With the present time, equal inputs would give different layers. 1970 would not, but ZIP archives cannot store years
before 1980, and programs interpret 1970 as "unknown". So it is 2000-01-01T00:00:00Z, which is after 1980 in every time
zone, or SOURCE_DATE_EPOCH if the build has it.
"""

from __future__ import annotations

from typing import Final

SECONDS: Final = 946_684_800
NANOSECONDS: Final = SECONDS * 1_000_000_000


def nanoseconds(epoch: int | None) -> int:
    """Return the time in nanoseconds for a build whose SOURCE_DATE_EPOCH is ``epoch`` (seconds)."""
    return NANOSECONDS if epoch is None else epoch * 1_000_000_000

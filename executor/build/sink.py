"""A blob in the making as what a download is written to."""

from __future__ import annotations

from executor.store import blobs


class IngestSink:
    """The ``Sink`` of a registry's download, which begins at 0: a registry's client hashes what it hands over."""

    def __init__(self, ingest: blobs.Ingest) -> None:
        self._ingest = ingest
        self.write = ingest.write
        if ingest.resume_offset:
            ingest.restart()

    def reset(self) -> None:
        """Start again at 0."""
        self._ingest.restart()

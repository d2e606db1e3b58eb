"""Writing to a stream that may be slow, limited in its encoding, or closed."""

from __future__ import annotations

from typing import Final, TextIO

from platforms.descriptors import write_all

_PLAIN_FORMS: Final = str.maketrans("✓✗■●○↓↑━─│╭╮╰╯…·⚠", "+x#*ov^=-|++++~-!")
"""Replacements, of the same width, for symbols that the encoding of the stream lacks."""


class OutputStream:
    """Writes text to the descriptor of a stream, bypassing its buffer, or to the stream itself if it has none.

    A closed reader (``| head``) must not fail a build: after the first error, everything is dropped.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        try:
            self._fd = stream.fileno()
        except (OSError, AttributeError, ValueError):
            self._fd = -1

    def write(self, text: str) -> None:
        """Write all of ``text``, blocking on a slow reader."""
        if self._gone or not text:
            return
        try:
            self._stream.flush()
            if self._fd < 0:
                self._stream.write(self._encoded(text).decode(self._encoding))
                self._stream.flush()
            else:
                write_all(self._fd, self._encoded(text))  # some CI runners provide a non-blocking stderr
        except (OSError, ValueError):
            self._gone = True

    def _encoded(self, text: str) -> bytes:
        try:
            return text.encode(self._encoding)
        except UnicodeEncodeError:
            return text.translate(_PLAIN_FORMS).encode(self._encoding, "replace")

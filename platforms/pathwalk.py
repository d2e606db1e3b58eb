"""The confined path walk: resolves untrusted paths within a directory as if it were the root directory.

There is one rule, for paths of images, stages, build contexts, archives and mount targets:

- empty components and ``.`` are skipped; ``..`` leads to the directory above, and from the root to the root;
- a symbolic link is read as text and resolved here, never by the kernel; an absolute one starts again at the root;
- a path may lead through at most ``LINKS`` links, and these through at most ``STEPS`` components.

``LINKS`` is the 255 of containerd's continuity/fs.RootPath (by which containerd unpacks layers and BuildKit copies), of
filepath-securejoin (by which runc finds mount targets) and of Go's filepath.EvalSymlinks. Linux itself follows 40
(MAXSYMLINKS, path_resolution(7)): that is the limit for the programs of a step, and for paths that are passed to
openat2(2).

This module accesses no file system. ``resolve`` is for callers with a function that reads links, ``PathWalk`` for those
who hold descriptors.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final

LINKS: Final = 255
"""Maximum number of symbolic links that a path may lead through."""
STEPS: Final = 4096
"""Maximum number of components that the links of a path may lead through; a ``..`` counts once for each directory
above. Otherwise a few links, each of which leads twice through the one before, would take forever."""


class TooManyLinks(OSError):
    """A path leads through more links, or through more components in them, than the rule allows. ``errno`` is ELOOP."""

    def __init__(self, path: bytes) -> None:
        super().__init__(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(path))


class PathWalk:
    """A walk along one path.

    ``names`` are the components of the directory that has been reached, from the root: none of them is a link. ``next``
    returns the component to look up in that directory; then either ``enter`` or ``follow`` is called, or the walk is
    given up. Between two calls of ``next`` the list of names becomes shorter, or one longer: a caller who keeps a
    descriptor for each name closes those beyond its length.
    """

    def __init__(self, path: bytes, names: Iterable[bytes] = ()) -> None:
        self.names = list(names)
        self.path = path
        """The path as given."""
        self._todo: list[bytes] = []
        self._links = 0
        self._steps = 0
        self._push(path)

    def next(self) -> bytes | None:
        """Return the next component to look up in the directory ``names``; None if that is the result. Raises
        ``TooManyLinks``."""
        todo = self._todo
        while todo:
            name = todo.pop()
            up = name == b".."
            if self._links:
                self._steps += len(self.names) if up else 1
                if self._steps > STEPS:
                    raise TooManyLinks(self.path)
            if not up:
                return name
            del self.names[-1:]
        return None

    @property
    def last(self) -> bool:
        """Whether nothing follows the component that ``next`` returned."""
        return not self._todo

    def below(self, name: bytes) -> bytes:
        """Return the path of ``name`` in the directory that has been reached."""
        return b"/".join((*self.names, name))

    def enter(self, name: bytes) -> None:
        """``name`` is not a link: continue in it."""
        self.names.append(name)

    def follow(self, text: bytes) -> None:
        """``name`` is a link with ``text``: continue where it leads. Raises ``TooManyLinks``."""
        self._links += 1
        if self._links > LINKS:
            raise TooManyLinks(self.path)
        if text.startswith(b"/"):
            self.names.clear()
        self._push(text)

    def _push(self, text: bytes) -> None:
        self._todo += [name for name in reversed(text.split(b"/")) if name not in (b"", b".")]


def resolve(path: bytes, readlink: Callable[[bytes], bytes | None], *, follow_last: bool = True) -> bytes:
    """Return ``path`` without links, dots and doubled slashes. Components that do not exist are kept.

    ``readlink`` returns the text of the link at a path whose parents are not links, None for anything else. With
    ``follow_last=False`` a link that is the last component is kept. Raises ``TooManyLinks``.
    """
    walk = PathWalk(path)
    while (name := walk.next()) is not None:
        text = readlink(b"/".join((*walk.names, name))) if follow_last or not walk.last else None
        if text is None:
            walk.enter(name)
        else:
            walk.follow(text)
    return b"/".join(walk.names)

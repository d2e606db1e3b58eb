"""The confined path walk: how a path that a stranger chose is resolved inside of a directory, as if that were the root.

There is one rule, for paths of images, stages, build contexts, archives and mount targets:

- empty components and ``.`` are skipped; ``..`` leads to the directory above, and from the root to the root;
- a symbolic link is read as text and resolved here, never by the kernel; an absolute one starts again at the root;
- one path may lead through at most ``LINKS`` links, and these through at most ``STEPS`` components.

``LINKS`` is the 255 of containerd's continuity/fs.RootPath (by which containerd unpacks layers and BuildKit copies), of
filepath-securejoin (by which runc finds mount targets) and of Go's filepath.EvalSymlinks. Linux itself follows 40
(MAXSYMLINKS, path_resolution(7)): that holds for the programs of a step, and wherever a path is given to openat2(2).

This module looks at no file system. Whoever walks says what is at a name: ``resolve`` for those who have a function
that reads links, ``PathWalk`` for those who hold descriptors.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final

LINKS: Final = 255
"""Symbolic links that one path may lead through."""
STEPS: Final = 4096
"""Components that the links of one path may lead through; going up counts once for each directory above. Without that
bound, a few links that each lead twice through the one before make a short path take for ever."""


class TooManyLinks(OSError):
    """A path leads through more links, or further through them, than the rule allows. ``errno`` is ELOOP."""

    def __init__(self, path: bytes) -> None:
        super().__init__(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(path))


class PathWalk:
    """One path on its way through a tree.

    ``names`` are the components of the directory that has been reached, seen from the root: none of them is a link.
    ``next`` gives the component to look up in that directory, and then either ``enter`` or ``follow`` is called, unless
    the walk ends there. Between two calls of ``next`` the list of names only becomes shorter, or one longer: who keeps
    a descriptor for each of them closes those beyond its length.
    """

    def __init__(self, path: bytes, names: Iterable[bytes] = ()) -> None:
        self.names = list(names)
        self.path = path
        """The path as it was given."""
        self._todo: list[bytes] = []
        self._links = 0
        self._steps = 0
        self._push(path)

    def next(self) -> bytes | None:
        """The next component to look up in the directory ``names``; None when that is what the path means."""
        while self._todo:
            name = self._todo.pop()
            self._steps += len(self.names) if name == b".." else 1
            if self._links and self._steps > STEPS:
                raise TooManyLinks(self.path)
            if name != b"..":
                return name
            del self.names[-1:]
        return None

    @property
    def last(self) -> bool:
        """Whether nothing follows the component that ``next`` gave."""
        return not self._todo

    def below(self, name: bytes) -> bytes:
        """The path of ``name`` in the directory that has been reached."""
        return b"/".join((*self.names, name))

    def enter(self, name: bytes) -> None:
        """``name`` is no link: go on in it."""
        self.names.append(name)

    def follow(self, text: bytes) -> None:
        """``name`` is a link with ``text``: go on where that leads. Raises ``TooManyLinks``."""
        self._links += 1
        if self._links > LINKS:
            raise TooManyLinks(self.path)
        if self._links == 1:
            self._steps = 0
        if text.startswith(b"/"):
            self.names.clear()
        self._push(text)

    def _push(self, text: bytes) -> None:
        self._todo += [name for name in reversed(text.split(b"/")) if name not in (b"", b".")]


def resolve(path: bytes, readlink: Callable[[bytes], bytes | None], *, follow_last: bool = True) -> bytes:
    """``path`` without links, dots and doubled slashes; what does not exist is kept as it is written.

    ``readlink`` gives the text of the link at a path whose parents are no links, None for all else. With
    ``follow_last=False`` a link that is the path's last component stays. Raises ``TooManyLinks``.
    """
    walk = PathWalk(path)
    while (name := walk.next()) is not None:
        text = readlink(walk.below(name)) if follow_last or not walk.last else None
        if text is None:
            walk.enter(name)
        else:
            walk.follow(text)
    return b"/".join(walk.names)

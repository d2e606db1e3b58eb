"""The one way in which a word becomes part of a path of this machine.

A word of a Dockerfile, an image, a cache, an archive, a registry or a directory's listing that is joined to a directory
by other means leads out of it: ``..`` climbs, a slash goes through links, an absolute path begins anew, and a NUL byte
ends the path early. ``tests/unit/test_paths.py`` fails where the sources do so.
"""

from __future__ import annotations

import errno
import os

_NOT_NAMES = frozenset(("", os.curdir, os.pardir))


def component(word: str) -> str:
    """``word``, which is the name of one file: not empty, not ``.`` or ``..``, without ``/`` and NUL.

    Raises ``OSError`` (EINVAL) for any other, as the kernel does for names that a file system does not take.
    """
    if word in _NOT_NAMES or "/" in word or "\0" in word:
        raise OSError(errno.EINVAL, "not the name of a file", word)
    return word


def below(directory: str, *words: str) -> str:
    """The path of ``directory/WORD/…``, where each of ``words`` is a ``component``. Links are not looked at."""
    if not directory:
        raise OSError(errno.EINVAL, "no directory to look for a name in", "/".join(words))
    return "/".join((directory.rstrip("/"), *map(component, words)))


def named_by_user(directory: str, path: str) -> str:
    """``path`` as seen from ``directory``, for what the person who runs the build has written, ``~`` included."""
    return os.path.join(directory, os.path.expanduser(path))

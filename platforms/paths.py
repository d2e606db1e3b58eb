"""Joining untrusted words to paths of this machine.

A word of a Dockerfile, an image, a cache, an archive, a registry or a directory listing that is joined to a directory
by other means can lead out of it: by ``..``, by a slash and a link, as an absolute path, or with a NUL byte that ends
the path early. ``tests/unit/test_paths.py`` fails where the sources do so.
"""

from __future__ import annotations

import errno
import os

_NOT_NAMES = frozenset(("", os.curdir, os.pardir))


def component(word: str) -> str:
    """Return ``word`` if it is a file name: not empty, not ``.`` or ``..``, without ``/`` and NUL.

    Raises ``OSError`` (EINVAL) for any other, as the kernel does for names that a file system does not accept.
    """
    if word in _NOT_NAMES or "/" in word or "\0" in word:
        raise OSError(errno.EINVAL, "not the name of a file", word)
    return word


def below(directory: str, *words: str) -> str:
    """Return the path ``directory/WORD/…``, where each of ``words`` is a ``component``. Links are not resolved."""
    if not directory:
        raise OSError(errno.EINVAL, "no directory to look for a name in", "/".join(words))
    return "/".join((directory.rstrip("/"), *map(component, words)))


def named_by_user(directory: str, path: str) -> str:
    """Return ``path``, as given by the user, relative to ``directory``; ``~`` is expanded."""
    return os.path.join(directory, os.path.expanduser(path))


def cache_directory() -> str:
    """Return the directory of what can be made again: ``$XDG_CACHE_HOME/kanifold``."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return below(cache_home, "kanifold")


def settings_file(name: str) -> str:
    """Return the path of the user's settings file ``name``: ``$XDG_CONFIG_HOME/kanifold/NAME``."""
    config_home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return below(config_home, "kanifold", name)

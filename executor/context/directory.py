"""Contexts that are directories of this machine, filtered by an ignore file.

Every file of a context is owned by root (Dockerfile reference, "COPY --chown"), whoever owns it on disk. Only contexts
from archives have owners of their own.
"""

from __future__ import annotations

import stat

from executor.dockerfile import ignore
from executor.rootfs.tree import Hides, Tree, open_directory
from executor.snapshotter import records
from executor.snapshotter.records import Applied
from executor.store import stat_cache
from platforms.errors import ContextError


def open_context(path: str, ignore_text: str, *, owners: bool = False) -> Tree:
    """Open the context in the directory ``path`` without what ``ignore_text`` (.dockerignore) excludes.

    With ``owners``, it is the content of an archive, and files keep their owners, and what else is recorded of them
    beside the directory.
    """
    try:
        hidden = hides(path, ignore_text)
        if owners:
            meaning = Applied(records.read(path).get)
            return open_directory(path, hides=hidden, stamp=stat_cache.stat_signature, meaning=meaning)
        return open_directory(path, hides=hidden, owner=(0, 0), stamp=stat_cache.stat_signature)
    except OSError as error:
        raise ContextError(f"cannot read the build context {path}", why=error.strerror or str(error)) from error


def hides(path: str, ignore_text: str) -> Hides | None:
    """Return the filter by which ``ignore_text`` hides paths below ``path``; None if it hides nothing.

    An excluded directory is not hidden as long as a later ``!`` rule includes something in it.
    """
    patterns = ignore.parse(ignore_text)
    if not patterns:
        return None
    bare = open_directory(path)
    seen: dict[bytes, bool] = {}  # of directories

    def hidden(name: bytes, directory: bool) -> bool:
        if not directory:
            return patterns.excludes(name.decode("utf-8", "surrogateescape"), directory)
        known = seen.get(name)
        if known is None:
            text = name.decode("utf-8", "surrogateescape")
            known = patterns.excludes(text, directory)
            if known and patterns.may_contain_included(text):
                known = not _holds_visible(name)
            seen[name] = known
        return known

    def _holds_visible(directory: bytes) -> bool:
        for child in bare.names(directory):
            below = directory + b"/" + child
            found = bare.lstat(below)
            if found is not None and not hidden(below, stat.S_ISDIR(found.st_mode)):
                return True
        return False

    return hidden

"""What each of many files was first seen with, remembered in a few bytes."""

from __future__ import annotations

import hashlib

from executor.solver.fingerprints import Fingerprints


def digest(number: int) -> str:
    return hashlib.sha256(b"%d" % number).hexdigest()


def test_the_first_digest_counts() -> None:
    seen = Fingerprints()
    assert seen.first_different([(b"a", digest(1)), (b"b", digest(2))]) is None
    assert seen.first_different([(b"a", digest(1)), (b"b", digest(3)), (b"a", digest(4))]) == b"b"
    assert seen.first_different([(b"b", digest(2))]) is None


def test_many_are_told_apart() -> None:
    seen = Fingerprints()
    every = [(b"path/%d" % number, digest(number)) for number in range(5000)]
    for _ in range(2):
        assert seen.first_different(every) is None
    for name, _ in every[::97]:
        assert seen.first_different([(name, digest(-1))]) == name

"""Which steps share the directory of a cache mount."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from executor.solver import treename
from executor.solver.mounts import CacheIdentity
from executor.solver.treename import Name

PLAIN = CacheIdentity("id", (0, 0, 0o755), None, treename.name(""))
FILLED = replace(PLAIN, path="/src", seed=Name("local", "remote", ("cache",)))


@pytest.mark.parametrize(
    ("identity", "sources", "expected"),
    [
        pytest.param(PLAIN, (), "id", id="the id alone"),
        pytest.param(replace(PLAIN, metadata=(1, 2, 0o700)), (), "id (1:2 700)", id="owner and mode"),
        pytest.param(FILLED, (), "id from /src of local", id="initial content"),
        pytest.param(PLAIN, ("a", "b"), "id told by a, b", id="remote caches"),
        pytest.param(
            replace(FILLED, metadata=(0, 0, 0o1777)), ("a",), "id (0:0 1777) from /src of local told by a", id="all"
        ),
    ],
)
def test_directories_of_existing_stores_keep_their_names(
    identity: CacheIdentity, sources: tuple[str, ...], expected: str
) -> None:
    assert identity.directory_id(sources) == expected


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(replace(FILLED, name="other"), id="name"),
        pytest.param(replace(FILLED, metadata=(1, 0, 0o755)), id="owner"),
        pytest.param(replace(FILLED, metadata=(0, 1, 0o755)), id="group"),
        pytest.param(replace(FILLED, metadata=(0, 0, 0o700)), id="mode"),
        pytest.param(replace(FILLED, path="/other"), id="path of the initial content"),
        pytest.param(replace(FILLED, path=None, seed=treename.name("")), id="no initial content"),
        pytest.param(replace(FILLED, seed=Name("other", "remote", ("cache",))), id="false result of a remote cache"),
    ],
)
@pytest.mark.parametrize("sources", [(), ("a",)])
def test_steps_that_disagree_share_no_directory(other: CacheIdentity, sources: tuple[str, ...]) -> None:
    assert other.directory_id(sources) != FILLED.directory_id(sources)


@pytest.mark.parametrize("identity", [PLAIN, FILLED])
def test_only_steps_above_the_same_remote_caches_share_a_directory(identity: CacheIdentity) -> None:
    ids = {identity.directory_id(sources) for sources in ((), ("a",), ("b",), ("a", "b"))}
    assert len(ids) == 4

"""Git repositories as contexts of builds in a cluster: Pods fetch the commit themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import git_server
import pytest
from cluster_builds import Farm
from conftest import Reader
from git_server import Repository
from registry_server import Asked, Said, Served, served

pytestmark = pytest.mark.slow

TOKEN = "c3e1-token"


@pytest.fixture
def server(farm: Farm, tmp_path: Path) -> Iterator[Served]:
    """A repository that asks for a token, where Pods reach it."""
    repository = Repository.make(tmp_path / "git" / "repository.git")
    repository.commit({"Dockerfile": f"FROM {farm.base}\nCOPY data /\nRUN arch >/arch\n", "data": "d" * 4_000})

    def answer(asked: Asked) -> Said:
        if "authorization" not in asked.headers:
            return Said(401, {"WWW-Authenticate": 'Basic realm="test"'})
        return git_server.backend(tmp_path / "git", asked)

    with served(answer, farm.cluster.registry.partition(":")[0]) as running:
        yield running


@pytest.mark.parametrize("limit", ["1Ki", "1Gi"])
def test_pods_fetch_a_large_commit(farm: Farm, server: Served, read: Reader, limit: str) -> None:
    words = farm.words("FROM scratch\n", platforms="linux/amd64,linux/arm64", context_limit=limit)
    words[1] = f"{server.url}/repository.git/.git"
    done = farm.kanifold.run(*words, "--secret", "id=GIT_AUTH_TOKEN,env=TOKEN", TOKEN=TOKEN)
    assert done.code == 0, done.said
    assert "GitContext" not in done.err
    fetched = [each for each in server.seen("POST", "/git-upload-pack") if b"command=fetch" in each.body]
    assert len(fetched) == (3 if limit == "1Ki" else 1), "by the orchestrator, and by two Pods"
    for each in ("amd64", "arm64"):
        assert read(farm.name("app"), f"linux/{each}").text("data") == "d" * 4_000
    farm.assert_nothing_is_left()

"""Attack 72: a service with caches leads builds to other hosts, holds them up, or shows one build's entries to another.

The service of a cache is whoever the user names, and it may be broken into; who writes to it is anybody who may run a
workflow. What it says counts for builds that ask it; a pull request's entries are for that pull request alone, also on
a machine whose store has seen them (CVE-2025-36852); the account goes to the service and nowhere else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from conftest import Base, Kanifold
from object_services import MAIN, PULL, S3, CacheService, Reply, Request, bucket, served, workflow
from remote_builds import AMD64, RANDOM, Machine, only_warning

from executor.objects import actions_objects
from executor.objects.cache_account import CacheAccount
from executor.protocol import CacheInActions
from executor.transport import SystemTrust
from platforms.errors import CacheError

Context = Callable[[Mapping[str, str | bytes]], Path]
Machines = Callable[[str], Machine]


@pytest.fixture
def machine(kanifold: Kanifold) -> Machines:
    return lambda name: Machine(kanifold, name)


@pytest.fixture
def line(busybox: Base, context: Context) -> Path:
    """A context with two steps, whose image comes out different whenever they are done again."""
    return context({"Dockerfile": f"FROM {busybox.ref}\nCOPY file /\nRUN {RANDOM} > /first\n", "file": "content"})


@pytest.fixture
def s3() -> Iterator[S3]:
    with served(service := S3()):
        yield service


@pytest.fixture
def actions() -> Iterator[CacheService]:
    with served(service := CacheService()):
        yield service


def test_a_store_keeps_apart_what_jobs_with_other_rights_have_seen(
    machine: Machines, line: Path, actions: CacheService
) -> None:
    """On a runner that keeps its store, what a pull request has written is not found by a build of its base."""
    given = ("--cache-from", "type=gha", "--cache-to", "type=gha,mode=max")
    machine("elsewhere").build(line, *given, platforms=AMD64, **workflow(actions, PULL))
    shared = machine("shared")
    assert shared.build(line, *given, platforms=AMD64, **workflow(actions, PULL)).ran() == set()
    assert len(shared.build(line, *given, platforms=AMD64, **workflow(actions, MAIN)).ran()) == 2


@pytest.mark.parametrize("what", ["another key", "another host", "no answer", "endless"])
def test_a_cache_service_that_lies_is_one_warning(
    machine: Machines, line: Path, actions: CacheService, what: str
) -> None:
    machine("first").build(line, "--cache-to", "type=gha", platforms=AMD64, **workflow(actions))
    answer = {
        "another key": f'{{"ok":true,"matched_key":"other","signed_download_url":"{actions.url}/blobs/0?sig=first"}}',
        "another host": '{"ok":true,"matched_key":"KEY","signed_download_url":"http://169.254.169.254/latest"}',
        "no answer": "[" * 1000,
        "endless": " " * (1 << 20),
    }[what]

    def lie(request: Request) -> Reply | None:
        if not request.path.endswith("GetCacheEntryDownloadURL"):
            return None
        key = request.body.decode().partition('"key":"')[2].partition('"')[0]
        return Reply(200, answer.replace("KEY", key).encode())

    actions.faults.append(lie)
    second = machine("second").build(line, "--cache-from", "type=gha", platforms=AMD64, **workflow(actions))
    assert "cannot be used, the build goes on without it" in only_warning(second)
    assert len(second.ran()) == 2


def test_a_list_without_an_end_is_given_up(machine: Machines, line: Path, s3: S3) -> None:
    def endless(request: Request) -> Reply | None:
        if "list-type" not in request.query:
            return None
        more = "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
        rest = "<Size>1</Size><ETag>e</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        contents = "".join(
            f"<Contents><Key>kanifold/steps/kanifold/{len(s3.requests):060x}{number:04x}</Key>{rest}</Contents>"
            for number in range(100)
        )
        return Reply(200, f"<ListBucketResult>{more}{contents}</ListBucketResult>".encode())

    s3.faults.append(endless)
    built = machine("one").build(line, "--cache-to", bucket(s3, "timeout=3s"), platforms=AMD64)
    assert "cannot be kept small" in only_warning(built)


def test_an_account_is_in_nothing_that_is_kept_or_told(
    kanifold: Kanifold, machine: Machines, line: Path, s3: S3, tmp_path: Path
) -> None:
    s3.token = "session-of-nobody-else"
    trace = tmp_path / "trace"
    cache = bucket(s3, f"session_token={s3.token}", "mode=max")
    built = machine("one").build(
        line, "--cache-to", cache, "--cache-from", cache, "--trace", str(trace), platforms=AMD64, KANIFOLD_DEBUG="1"
    )
    assert s3.objects
    kept = [trace, *(path for path in machine("one").root.rglob("*") if path.is_file())]
    for secret in ("very-secret", s3.token):
        assert secret not in built.outcome.said
        assert not [path for path in kept if secret.encode() in path.read_bytes()]
        assert not [key for key, data in s3.objects.items() if secret.encode() in data]


def test_a_signed_address_is_not_told(machine: Machines, line: Path, actions: CacheService) -> None:
    """Whoever has it may write what the base branch reads."""
    actions.faults.append(lambda asked: Reply(507, asked.path.encode()) if asked.path.startswith("/blobs/") else None)
    built = machine("one").build(
        line, "--cache-to", "type=gha", platforms=AMD64, KANIFOLD_DEBUG="1", **workflow(actions)
    )
    assert "status 507" in built.outcome.said
    assert "sig=" not in built.outcome.said
    assert MAIN not in built.outcome.said


def test_a_layer_that_comes_byte_by_byte_is_given_up(actions: CacheService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer ends after a byte, so that each attempt makes progress."""
    monkeypatch.setattr(actions_objects, "_PIECE_SECONDS", 1.0)
    location = CacheInActions("cache", actions.url, 2, "scope")
    objects = actions_objects.in_actions(location, lambda: CacheAccount(token=MAIN), SystemTrust(), threading.Event())
    objects.put("layer", lambda: iter((bytes(1000),)), 1000)
    objects.find("layer")
    drop = {"Content-Length": "1000", "Connection": "close"}
    actions.faults.append(lambda asked: Reply(206, b"0", drop) if asked.method == "GET" else None)
    with pytest.raises(CacheError, match="slow"):
        list(objects.stream("layer", 1000, 0))
    assert len(actions.asked("GET", "/blobs/")) > 1

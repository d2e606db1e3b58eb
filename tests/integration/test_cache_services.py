"""Remote caches at services: S3, Azure Blob Storage, and GitHub's cache service; true ones, slow ones, and liars."""

from __future__ import annotations

import base64
import hmac
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest
from conftest import Base, Kanifold
from object_services import (
    FORK,
    MAIN,
    PULL,
    S3,
    SILENCE,
    CacheService,
    FirstCacheService,
    Reply,
    Request,
    Service,
    bucket,
    served,
    token,
    workflow,
)
from remote_builds import AMD64, RANDOM, Built, Machine, only_warning

Context = Callable[[Mapping[str, str | bytes]], Path]
Machines = Callable[[str], Machine]

DAY = 86400.0


@pytest.fixture
def machine(kanifold: Kanifold) -> Machines:
    return lambda name: Machine(kanifold, name)


@pytest.fixture
def stages(busybox: Base, context: Context) -> Path:
    """A context whose image comes out different whenever any of its four steps is done again."""
    return context(
        {
            "Dockerfile": f"FROM {busybox.ref} AS made\nRUN {RANDOM} > /made\nFROM {busybox.ref}\nCOPY file /\n"
            f"RUN {RANDOM} > /first && head -c 100000 /dev/urandom > /big\nCOPY --from=made /made /copied\n",
            "file": "content",
        }
    )


@pytest.fixture
def large(busybox: Base, context: Context) -> Path:
    """A context whose image has a layer that is sent in parts."""
    return context({"Dockerfile": f"FROM {busybox.ref}\nRUN head -c 36000000 /dev/urandom > /big\n"})


@pytest.fixture
def s3() -> Iterator[S3]:
    service = S3()
    with served(service):
        yield service


@pytest.fixture
def actions() -> Iterator[CacheService]:
    service = CacheService()
    with served(service):
        yield service


def on(reply: Reply, method: str = "", part: str = "") -> Callable[[Request], Reply | None]:
    """A fault: ``reply`` to requests with ``method`` and with ``part`` in their path."""
    return lambda asked: reply if method in ("", asked.method) and part in asked.path else None


def spoil(s3: S3, actions: CacheService) -> None:
    """Replace every layer by zeros."""
    s3.objects.update({key: bytes(len(data)) for key, data in s3.objects.items() if "/sha256/" in key})
    for each in actions.entries:
        if "sha256" in each.key:
            each.data = bytes(len(each.data))


def secretless(built: Built, *secrets: str) -> None:
    for secret in secrets:
        assert secret not in built.outcome.said


# -- what a cache is for ------------------------------------------------------------------------------------------


def test_a_bucket_of_s3_has_what_a_second_machine_needs(machine: Machines, stages: Path, s3: S3) -> None:
    cache = bucket(s3, "prefix=ci/", "name=main")
    first = machine("first").build(stages, "--cache-to", f"{cache},mode=max", platforms=AMD64)
    second = machine("second").build(stages, "--cache-from", cache, "--cache-to", f"{cache},mode=max", platforms=AMD64)
    assert len(list(second.steps())) == 4
    assert (second.ran(), second.digest, first.warnings, second.warnings) == (set(), first.digest, [], [])
    assert all(key.startswith(("ci/kanifold/steps/main/", "ci/kanifold/blobs/")) for key in s3.objects)
    secretless(first, "very-secret")
    assert not any(b"very-secret" in path.read_bytes() for path in machine("first").root.rglob("*") if path.is_file())


def test_the_account_for_s3_comes_from_the_environment(machine: Machines, stages: Path, s3: S3) -> None:
    s3.token = "session"
    cache = f"type=s3,bucket=bucket,endpoint_url={s3.url}"
    built = machine("first").build(
        stages, "--cache-to", cache, platforms=AMD64,
        AWS_REGION="eu-west-1", AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="s", AWS_SESSION_TOKEN="session",
    )  # fmt: skip
    assert built.warnings == []
    assert s3.objects


def test_the_account_for_s3_comes_from_a_profile(kanifold: Kanifold, machine: Machines, stages: Path, s3: S3) -> None:
    (kanifold.home / ".aws").mkdir()
    (kanifold.home / ".aws" / "credentials").write_text("[ci]\naws_access_key_id=key\naws_secret_access_key=s\n")
    cache = f"type=s3,bucket=bucket,region=r,endpoint_url={s3.url}"
    assert machine("first").build(stages, "--cache-to", cache, platforms=AMD64, AWS_PROFILE="ci").warnings == []
    assert s3.objects


def test_a_workflow_finds_what_an_earlier_run_has_cached(
    machine: Machines, stages: Path, actions: CacheService
) -> None:
    given = ("--cache-from", "type=gha", "--cache-to", "type=gha,mode=max")
    first = machine("first").build(stages, *given, platforms=AMD64, **workflow(actions))
    written = len(actions.entries)
    second = machine("second").build(stages, *given, platforms=AMD64, **workflow(actions))
    assert (second.ran(), second.digest, first.warnings, second.warnings) == (set(), first.digest, [], [])
    assert len(actions.entries) == written, "what was found there is written again"
    assert all(key.startswith(("kanifold-step/buildkit/", "kanifold-layer/sha256/")) for key in actions.keys(MAIN_REF))
    secretless(first, MAIN, "sig=")


MAIN_REF = "refs/heads/main"


def test_version_1_of_the_protocol(machine: Machines, large: Path) -> None:
    with served(service := FirstCacheService()):
        given = ("--cache-from", "type=gha", "--cache-to", "type=gha,mode=max")
        place = {"ACTIONS_CACHE_URL": f"{service.url}/", "ACTIONS_RUNTIME_TOKEN": "first"}
        first = machine("first").build(large, *given, platforms=AMD64, **place)
        second = machine("second").build(large, *given, platforms=AMD64, **place)
    assert (second.ran(), second.digest, first.warnings, second.warnings) == (set(), first.digest, [], [])
    assert len(service.asked("PATCH", "/caches/")) > len(service.entries), "no layer was sent in parts"


def test_several_names_are_asked_in_order_and_all_written(machine: Machines, stages: Path, s3: S3) -> None:
    first = machine("first").build(stages, "--cache-to", bucket(s3, "name=a;b", "mode=max"), platforms=AMD64)
    for name in ("b", "none;a"):
        other = machine(f"of-{name[0]}").build(stages, "--cache-from", bucket(s3, f"name={name}"), platforms=AMD64)
        assert (other.ran(), other.digest) == (set(), first.digest)


def test_with_a_token_for_the_list_nothing_is_asked_for_that_is_not_there(
    machine: Machines, stages: Path, actions: CacheService
) -> None:
    job = workflow(actions) | {"GITHUB_API_URL": actions.url}
    given = ("--cache-from", "type=gha,ghtoken=rest-token", "--cache-to", "type=gha,ghtoken=rest-token,mode=max")
    first = machine("first").build(stages, *given, platforms=AMD64, **job)
    asked = "GetCacheEntryDownloadURL"
    assert actions.asked("POST", asked) == []
    second = machine("second").build(stages, *given, platforms=AMD64, **job)
    assert (second.ran(), second.digest, first.warnings, second.warnings) == (set(), first.digest, [], [])
    wrong = ("--cache-from", "type=gha,ghtoken=wrong")
    third = machine("third").build(stages, *wrong, platforms=AMD64, **job)
    assert (third.ran(), third.warnings) == (set(), [])
    secretless(second, "rest-token")


def test_a_large_layer_is_sent_as_blocks(machine: Machines, large: Path, actions: CacheService) -> None:
    folder = large
    first = machine("first").build(folder, "--cache-to", "type=gha", platforms=AMD64, **workflow(actions))
    assert max(len(each.blocks) for each in actions.entries) == 3
    second = machine("second").build(folder, "--cache-from", "type=gha", platforms=AMD64, **workflow(actions))
    assert (second.ran(), second.digest) == (set(), first.digest)


def test_scopes_keep_caches_of_one_repository_apart(machine: Machines, stages: Path, actions: CacheService) -> None:
    machine("first").build(stages, "--cache-to", "type=gha,scope=a", platforms=AMD64, **workflow(actions))
    other = machine("second").build(stages, "--cache-from", "type=gha,scope=b", platforms=AMD64, **workflow(actions))
    assert len(other.ran()) == 4
    assert "has nothing for this build" in only_warning(other)


def test_directories_of_one_bucket_are_kept_apart(machine: Machines, stages: Path, s3: S3) -> None:
    main, other = bucket(s3, "manifests_prefix=main"), bucket(s3, "manifests_prefix=other")
    machine("first").build(stages, "--cache-to", main, platforms=AMD64)
    trusted = {key: data for key, data in s3.objects.items() if key.startswith("main/")}
    second = machine("second").build(stages, "--cache-from", main, "--cache-to", f"{other},mode=max", platforms=AMD64)
    assert second.warnings == []
    assert any(key.startswith("other/") for key in s3.objects), "it is written where it was told"
    assert {key: data for key, data in s3.objects.items() if key.startswith("main/")} == trusted


def test_the_account_for_azure_is_that_of_the_machine(machine: Machines, stages: Path) -> None:
    """A managed identity, by the endpoint that App Service has for it."""

    class Azure(Service):
        def reply(self, request: Request) -> Reply:
            if request.path == "/identity":
                assert request.headers["x-identity-header"] == "secret"
                assert request.query["resource"] == "https://storage.azure.com"
                return Reply(
                    200, json.dumps({"access_token": "lent", "expires_on": str(int(time.time()) + 3600)}).encode()
                )
            return Reply(404 if request.headers.get("authorization") == "Bearer lent" else 401)

    with served(azure := Azure()):
        built = machine("one").build(
            stages, "--cache-from", f"type=azblob,account_url={azure.url},account_name=a", platforms=AMD64,
            IDENTITY_ENDPOINT=f"{azure.url}/identity", IDENTITY_HEADER="secret",
        )  # fmt: skip
    assert "has nothing for this build" in only_warning(built)
    assert azure.asked("GET", "/identity")


# -- pull requests ------------------------------------------------------------------------------------------------


def test_a_pull_request_reads_its_base_and_writes_for_itself(
    machine: Machines, stages: Path, actions: CacheService
) -> None:
    given = ("--cache-from", "type=gha", "--cache-to", "type=gha,mode=max")
    machine("first").build(stages, *given, platforms=AMD64, **workflow(actions))
    (stages / "file").write_text("changed")
    pull = machine("second").build(stages, *given, platforms=AMD64, **workflow(actions, PULL))
    assert f"RUN {RANDOM} > /made" not in pull.ran()
    assert "COPY file /" in pull.ran()
    assert actions.keys("refs/pull/7/merge")
    base = machine("third").build(stages, "--cache-from", "type=gha", platforms=AMD64, **workflow(actions))
    assert "COPY file /" in base.ran(), "the base uses what a pull request has written"


def test_a_pull_request_from_a_fork_only_reads(machine: Machines, stages: Path, actions: CacheService) -> None:
    given = ("--cache-from", "type=gha", "--cache-to", "type=gha,mode=max")
    machine("first").build(stages, *given, platforms=AMD64, **workflow(actions))
    before = len(actions.requests)
    (stages / "file").write_text("changed")
    fork = machine("second").build(stages, *given, platforms=AMD64, **workflow(actions, FORK))
    assert f"RUN {RANDOM} > /made" not in fork.ran()
    assert "is not written" in only_warning(fork)
    assert "may only read" in fork.outcome.err
    assert not [each for each in actions.requests[before:] if "Create" in each.path], "it was tried"


# -- size and age -------------------------------------------------------------------------------------------------


def test_what_is_used_is_touched_and_so_found_after_a_week_of_other_branches(
    machine: Machines, stages: Path, s3: S3
) -> None:
    cache = bucket(s3, "max_age=14d", "mode=max")
    machine("main").build(stages, "--cache-to", cache, platforms=AMD64)
    shared = set(s3.objects)
    for week in range(3):
        s3.ages.update({key: s3.ages.get(key, 0.0) + 7 * DAY for key in s3.objects})
        (stages / "file").write_text(f"of branch {week}")
        machine(f"branch{week}").build(stages, "--cache-from", cache, "--cache-to", cache, platforms=AMD64)
    gone = shared - set(s3.objects)
    assert gone, "what was not used for three weeks is left"
    (stages / "file").write_text("of branch 3")
    after = machine("after").build(stages, "--cache-from", cache, platforms=AMD64)
    assert f"RUN {RANDOM} > /made" not in after.ran()


def test_a_cache_is_bounded_by_size(machine: Machines, stages: Path, s3: S3) -> None:
    s3.objects["kanifold/blobs/not-ours"] = bytes(1 << 20)
    s3.objects["other"] = bytes(1 << 20)
    machine("one").build(stages, "--cache-to", bucket(s3, "max_size=1g", "mode=max"), platforms=AMD64)
    s3.ages.update(dict.fromkeys(s3.objects, 2 * DAY))
    large = {key for key, data in s3.objects.items() if "/sha256/" in key and len(data) > 90_000}
    (stages / "file").write_text("changed")
    two = machine("two").build(stages, "--cache-to", bucket(s3, "max_size=120k", "mode=max"), platforms=AMD64)
    assert two.warnings == []
    ours = {key: data for key, data in s3.objects.items() if "not-ours" not in key and key != "other"}
    assert sum(map(len, ours.values())) <= 120 << 10
    assert {"kanifold/blobs/not-ours", "other"} <= set(s3.objects)
    assert large, "nothing is large"
    assert not large & ours.keys(), "what was used longest ago is left"
    assert max(map(len, ours.values())) > 90_000, "what was just used is gone"


def test_a_directory_is_bounded_if_that_is_asked_for(machine: Machines, stages: Path, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    machine("one").build(stages, "--cache-to", f"type=local,dest={place},mode=max", platforms=AMD64)
    for each in [*place.rglob("*")]:
        os.utime(each, (0, 0))
    (place / "blobs" / "sha256" / "notes.txt").write_text("not a layer")
    (stages / "file").write_text("changed")
    machine("two").build(stages, "--cache-to", f"type=local,dest={place},mode=max,max_age=30d", platforms=AMD64)
    left = [each for each in place.rglob("*") if each.is_file()]
    assert all(each.stat().st_mtime > 0 for each in left), "something of 1970 is left"
    assert {each.name for each in left} > {"notes.txt", "bounded"}
    assert machine("three").build(stages, "--cache-from", f"type=local,src={place}", platforms=AMD64).ran() == set()


def test_an_entry_whose_layer_is_gone_is_none(machine: Machines, stages: Path, s3: S3) -> None:
    cache = bucket(s3, "mode=max")
    machine("first").build(stages, "--cache-to", cache, platforms=AMD64)
    for key in [key for key in s3.objects if "/sha256/" in key]:
        del s3.objects[key]
    second = machine("second").build(stages, "--cache-from", cache, "--cache-to", cache, platforms=AMD64)
    assert (len(second.ran()), second.warnings) == (4, [])
    third = machine("third").build(stages, "--cache-from", cache, platforms=AMD64)
    assert (third.ran(), third.digest) == (set(), second.digest)


# -- services that fail -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [403, 429, 500, 507])
def test_a_bucket_that_refuses_is_one_warning(machine: Machines, stages: Path, s3: S3, status: int) -> None:
    s3.faults.append(on(Reply(status, b"<Error><Code>Full</Code><Message>no more</Message></Error>"), "PUT"))
    built = machine("one").build(stages, "--cache-to", bucket(s3), platforms=AMD64)
    assert "cannot be used, its cache is not written" in only_warning(built)
    assert f"status {status}" in built.outcome.err
    assert "Full: no more" in built.outcome.err


@pytest.mark.parametrize("status", [401, 403, 429, 507])
def test_a_cache_service_that_refuses_is_one_warning(
    machine: Machines, stages: Path, actions: CacheService, status: int
) -> None:
    actions.faults.append(on(Reply(status, b'{"code":"no","msg":"no more"}'), part="CreateCacheEntry"))
    built = machine("one").build(stages, "--cache-to", "type=gha", platforms=AMD64, **workflow(actions))
    assert "cannot be used, its cache is not written" in only_warning(built)
    assert f"status {status}: no more" in built.outcome.err


def test_a_service_that_does_not_speak_the_protocol_is_one_warning(
    machine: Machines, stages: Path, actions: CacheService
) -> None:
    """As GitHub Enterprise Server without version 2, whose answer to a miss has the same status."""
    actions.faults.append(on(Reply(404, b"<html>Page not found</html>")))
    built = machine("one").build(
        stages, "--cache-from", "type=gha", "--cache-to", "type=gha", platforms=AMD64, **workflow(actions)
    )
    assert "cannot be used" in only_warning(built)
    assert "Page not found" in built.outcome.err


@pytest.mark.parametrize("method", ["PUT", ""])
def test_a_cache_that_has_to_be_written_fails_the_build(
    kanifold: Kanifold, stages: Path, s3: S3, registry: str, method: str
) -> None:
    s3.faults.append(on(Reply(507), method))
    ref = f"{registry}/cache-services/required:1"
    cache = bucket(s3, "ignore-error=false")
    done = kanifold.run("build", stages, "--cache-from", cache, "--cache-to", cache, "-t", ref, "--push")
    assert done.code == 1
    assert "cannot be written, and ignore-error=false was given" in done.err
    missing = kanifold.run("index", "inspect", ref)
    assert missing.code == 1, "the tag was set"


@pytest.mark.parametrize("kind", ["s3", "gha"])
def test_a_silent_service_is_one_warning_and_does_not_hold_the_build_up(
    machine: Machines, stages: Path, s3: S3, actions: CacheService, kind: str
) -> None:
    for service in (s3, actions):
        service.faults.append(on(SILENCE))
    cache = bucket(s3, "timeout=1s") if kind == "s3" else "type=gha,timeout=1s"
    began = time.monotonic()
    built = machine("one").build(
        stages, "--cache-from", cache, "--cache-to", cache, platforms=AMD64, **workflow(actions)
    )
    assert "cannot be used, the build goes on without it" in only_warning(built)
    assert time.monotonic() - began < 30


def test_an_export_that_takes_too_long_ends(machine: Machines, stages: Path, s3: S3) -> None:
    def slow(request: Request) -> Reply | None:
        if request.method == "PUT":
            time.sleep(0.3)
        return None

    s3.faults.append(slow)
    built = machine("one").build(stages, "--cache-to", bucket(s3, "timeout=500ms", "mode=max"), platforms=AMD64)
    assert "its cache is not written" in only_warning(built)


@pytest.mark.parametrize("kind", ["s3", "gha"])
def test_wrong_bytes_are_one_warning_and_the_step_is_done_again(
    machine: Machines, stages: Path, s3: S3, actions: CacheService, kind: str
) -> None:
    cache = bucket(s3, "mode=max") if kind == "s3" else "type=gha,mode=max"
    first = machine("first").build(stages, "--cache-to", cache, platforms=AMD64, **workflow(actions))
    spoil(s3, actions)
    second = machine("second").build(stages, "--cache-from", cache, platforms=AMD64, **workflow(actions))
    assert "cannot be used, the build goes on without it" in only_warning(second)
    assert "not what its digest says" in second.outcome.err
    assert second.ran()
    again = machine("second").build(stages, platforms=AMD64)
    assert (again.ran(), again.digest) == (set(), second.digest)
    assert first.digest != second.digest


@pytest.mark.parametrize("kind", ["s3", "gha"])
def test_wrong_layers_are_replaced_by_who_may_write(
    machine: Machines, stages: Path, s3: S3, actions: CacheService, kind: str
) -> None:
    cache = bucket(s3, "mode=max") if kind == "s3" else "type=gha,mode=max"
    machine("first").build(stages, "--cache-to", cache, platforms=AMD64, **workflow(actions))
    spoil(s3, actions)
    both = ("--cache-from", cache, "--cache-to", cache)
    second = machine("second").build(stages, *both, platforms=AMD64, **workflow(actions))
    third = machine("third").build(stages, "--cache-from", cache, platforms=AMD64, **workflow(actions))
    assert (third.ran(), third.digest, third.warnings) == (set(), second.digest, [])


def test_a_url_that_has_expired_is_asked_for_again(machine: Machines, stages: Path, actions: CacheService) -> None:
    machine("first").build(stages, "--cache-to", "type=gha", platforms=AMD64, **workflow(actions))

    def expire(request: Request) -> Reply | None:
        """URLs are valid until the first layer is read."""
        if request.method == "GET" and "layer" in actions.entries[int(request.path.rpartition("/")[2])].key:
            actions.signature = "second"
        return None

    actions.faults.append(expire)
    second = machine("second").build(stages, "--cache-from", "type=gha", platforms=AMD64, **workflow(actions))
    assert (actions.signature, second.ran(), second.warnings) == ("second", set(), [])


def test_a_token_that_has_expired_is_one_warning(machine: Machines, stages: Path, actions: CacheService) -> None:
    old = token((MAIN_REF, 3), seconds=-60)
    built = machine("one").build(
        stages, "--cache-from", "type=gha", "--cache-to", "type=gha", platforms=AMD64, **workflow(actions, old)
    )
    assert "cannot be used" in only_warning(built)
    assert "has expired" in built.outcome.err
    assert actions.requests == []


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
def test_an_account_with_a_line_break_is_one_warning(machine: Machines, stages: Path, s3: S3, variable: str) -> None:
    account = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_SESSION_TOKEN": "session"}
    account[variable] += "\n"
    cache = f"type=s3,bucket=bucket,region=r,endpoint_url={s3.url}"
    built = machine("first").build(stages, "--cache-to", cache, platforms=AMD64, **account)
    assert "cannot be used" in only_warning(built)
    assert "has a line break" in built.outcome.said
    assert s3.objects == {}
    secretless(built, "hush")


def test_a_token_with_a_line_break_is_one_warning(machine: Machines, stages: Path, actions: CacheService) -> None:
    environment = workflow(actions) | {"ACTIONS_RUNTIME_TOKEN": "hush\n"}
    built = machine("first").build(stages, "--cache-to", "type=gha", platforms=AMD64, **environment)
    assert "cannot be used" in only_warning(built)
    assert "has a line break" in built.outcome.said
    secretless(built, "hush")


def test_session_tokens_of_s3_that_have_expired_are_one_warning(machine: Machines, stages: Path, s3: S3) -> None:
    s3.token = "new"
    cache = bucket(s3, "session_token=old")
    built = machine("one").build(stages, "--cache-from", cache, "--cache-to", cache, platforms=AMD64)
    assert "cannot be used" in only_warning(built)
    assert "ExpiredToken" in built.outcome.err


def test_outside_of_a_workflow_the_cache_is_one_warning(machine: Machines, stages: Path) -> None:
    built = machine("one").build(stages, "--cache-from", "type=gha", "--cache-to", "type=gha", platforms=AMD64)
    assert "cannot be used" in only_warning(built)
    assert "ACTIONS_RESULTS_URL" in built.outcome.err


# -- the real services ----------------------------------------------------------------------------------------------

AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The documented key of the account of every Azurite."""


@contextmanager
def running(port: int, *command: str | Path, **environment: str) -> Iterator[None]:
    """A server, from when it listens on ``port``."""
    process = subprocess.Popen(
        list(map(str, command)), env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, "the server has ended"
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def program(name: str, how: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}: {how}")
    return found


def make_container(port: int, name: str) -> None:
    """Create Container, with a signature by the account's key (Authorize with Shared Key)."""
    account, date = "devstoreaccount1", formatdate(usegmt=True)
    text = (
        "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:2021-08-06\n/{account}/{account}/{name}\nrestype:container"
    )
    signature = base64.b64encode(hmac.digest(base64.b64decode(AZURITE_KEY), text.encode(), "sha256")).decode()
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/{account}/{name}?restype=container",
        method="PUT",
        headers={
            "x-ms-date": date,
            "x-ms-version": "2021-08-06",
            "Authorization": f"SharedKey {account}:{signature}",
            "Content-Length": "0",
        },
    )
    with urllib.request.urlopen(asked, timeout=10) as reply:
        assert reply.status == 201


@pytest.fixture
def versity(tmp_path: Path) -> Iterator[str]:
    """A cache in a real S3 server, as options."""
    found = program("versitygw", "go install github.com/versity/versitygw/cmd/versitygw@latest")
    port = free_port()
    (tmp_path / "s3" / "bucket").mkdir(parents=True)
    command = (found, "--port", f"127.0.0.1:{port}", "posix", tmp_path / "s3")
    with running(port, *command, ROOT_ACCESS_KEY="key", ROOT_SECRET_KEY="very-secret"):
        yield (
            f"type=s3,bucket=bucket,region=us-east-1,endpoint_url=http://127.0.0.1:{port},use_path_style=true,"
            "access_key_id=key,secret_access_key=very-secret"
        )


@pytest.fixture
def azurite(tmp_path: Path) -> Iterator[str]:
    """A cache in Microsoft's emulator of Azure Blob Storage, as options."""
    found = program("azurite-blob", "npm install -g azurite")
    port = free_port()
    command = (found, "--location", tmp_path / "azurite", "--blobPort", str(port), "--skipApiVersionCheck")
    with running(port, *command):
        make_container(port, "buildkit-cache")
        yield (
            f"type=azblob,account_url=http://127.0.0.1:{port}/devstoreaccount1,account_name=devstoreaccount1,"
            f"secret_access_key={AZURITE_KEY}"
        )


@pytest.fixture
def real(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


REAL = pytest.mark.parametrize("real", ["versity", "azurite"], indirect=True)


@REAL
def test_a_real_service_has_what_a_second_machine_needs(
    machine: Machines, busybox: Base, context: Context, real: str
) -> None:
    folder = context(
        {"Dockerfile": f"FROM {busybox.ref}\nRUN head -c 20000000 /dev/urandom > /big\nRUN {RANDOM} > /x\n"}
    )
    given = ("--cache-from", real, "--cache-to", f"{real},mode=max,touch_refresh=0s")
    first = machine("first").build(folder, *given)
    second = machine("second").build(folder, *given)
    assert (second.ran(), second.digest) == (set(), first.digest)
    assert not [each for each in (*first.warnings, *second.warnings) if "cache" in each]
    secretless(first, "very-secret", AZURITE_KEY)


@REAL
def test_a_real_service_refuses_in_words(machine: Machines, stages: Path, real: str) -> None:
    place = real.replace("bucket=bucket", "bucket=none") if "type=s3" in real else f"{real},container=none"
    built = machine("one").build(stages, "--cache-from", place, "--cache-to", place, platforms=AMD64)
    assert "cannot be used" in only_warning(built)
    assert ("NoSuchBucket" if "type=s3" in real else "ContainerNotFound") in built.outcome.err


@REAL
def test_a_real_service_refuses_a_wrong_key(machine: Machines, stages: Path, real: str) -> None:
    wrong = real.replace("secret_access_key=", "secret_access_key=AAAA")
    built = machine("one").build(stages, "--cache-from", wrong, platforms=AMD64)
    assert "cannot be used" in only_warning(built)
    assert "access was denied" in built.outcome.err


@REAL
def test_a_real_service_is_bounded(machine: Machines, stages: Path, real: str) -> None:
    machine("one").build(stages, "--cache-to", f"{real},mode=max,max_size=1k", platforms=AMD64)
    second = machine("two").build(stages, "--cache-from", real, platforms=AMD64)
    assert second.ran(), "nothing was removed"

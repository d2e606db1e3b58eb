"""The client against an in-process registry that fails in every way a network and a server can."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import itertools
import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace
from registry_server import Asked, MemoryRegistry, OddRegistry, Said, Served, digest_of, error, served

from executor import transport
from executor.image import mediatypes
from executor.image.manifest import Descriptor, Index, Manifest, describe, encode
from executor.registry import notices, upload
from executor.registry.auth import Credential
from executor.registry.client import Client
from executor.registry.reference import Reference, parse
from executor.registry.registry_session import RegistrySession, TransferOptions
from executor.registry.registry_settings import RegistrySettings
from executor.registry.transfer import Direction
from executor.retry import RetryPolicy, TransientError
from platforms.errors import Interrupted, KanifoldError, RegistryError, StoreError

QUICK = TransferOptions(RetryPolicy(first_delay=0.001, longest_delay=0.002))
BLOB = hashlib.sha256(b"seed").digest() * 40_000  # 1.28 MB


class Buffer(io.BytesIO):
    """A sink in memory."""

    resets = 0

    def reset(self) -> None:
        self.resets += 1
        self.seek(0)
        self.truncate()


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry()


@pytest.fixture
def server(registry: MemoryRegistry) -> Iterator[Served]:
    with served(registry) as server:
        yield server


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(options=QUICK) as client:
        yield client


def ref(server: Served, text: str = "team/app:1") -> Reference:
    return parse(f"{server.host}/{text}")


def mirrored(server: Served, mirror: Served) -> RegistrySettings:
    """Settings by which ``mirror`` is asked before ``server``."""
    return RegistrySettings(mirrors=((server.host, (mirror.host,)),))


def layer(data: bytes) -> Descriptor:
    return Descriptor(mediatypes.OCI_LAYER_GZIP, digest_of(data), len(data))


def image(layers: tuple[Descriptor, ...] = ()) -> tuple[Descriptor, bytes]:
    return describe(Manifest(mediatypes.OCI_MANIFEST, layer(b"{}"), layers))


def failing(times: int, part: str, answer: Callable[[], Said | None], method: str = "GET") -> Callable[[Asked], object]:
    """A fault that strikes the first ``times`` requests of ``method`` whose path holds ``part``."""
    count = itertools.count()
    return lambda asked: answer() if asked.method == method and part in asked.path and next(count) < times else ...


# -- what passes is tried again --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_status_is_tried_again(registry: MemoryRegistry, server: Served, client: Client, status: int) -> None:
    descriptor, data = image()
    registry.add_manifest("team/app", "1", descriptor.media_type, data)
    registry.fault = failing(2, "manifests", lambda: error(status, "NOPE", "not now"))
    assert client.manifest(ref(server))[2] == descriptor
    assert len(server.seen("GET", "manifests")) == 3


@pytest.mark.parametrize("status", [400, 403, 404, 405, 410, 418, 501])
def test_a_lasting_status_is_not(registry: MemoryRegistry, server: Served, client: Client, status: int) -> None:
    registry.fault = failing(99, "manifests", lambda: error(status, "NOPE", "not ever"))
    with pytest.raises(RegistryError, match="NOPE not ever") as caught:
        client.manifest(ref(server))
    assert str(status) in caught.value.problem.why
    assert len(server.seen("GET", "manifests")) == 1


def test_a_broken_connection_is_tried_again_and_then_given_up(
    registry: MemoryRegistry, server: Served, client: Client
) -> None:
    descriptor, data = image()
    registry.add_manifest("team/app", "1", descriptor.media_type, data)
    registry.fault = failing(5, "manifests", lambda: None)
    assert client.manifest(ref(server))[2] == descriptor
    registry.fault = failing(99, "manifests", lambda: None)
    with pytest.raises(RegistryError, match="tried 6 times"):
        client.manifest(ref(server))


def test_retry_after_is_waited_for(registry: MemoryRegistry, server: Served, client: Client) -> None:
    descriptor, data = image()
    registry.add_manifest("team/app", "1", descriptor.media_type, data)
    registry.fault = failing(1, "manifests", lambda: Said(429, {"Retry-After": "1"}))
    begun = time.monotonic()
    client.manifest(ref(server))
    assert time.monotonic() - begun >= 1.0


def test_an_unbearable_retry_after_is_reported_rather_than_waited_for(
    registry: MemoryRegistry, server: Served, client: Client
) -> None:
    registry.fault = failing(99, "manifests", lambda: Said(429, {"Retry-After": "21600"}))
    begun = time.monotonic()
    with pytest.raises(RegistryError, match="wait 21600 s"):
        client.manifest(ref(server))
    assert time.monotonic() - begun < 20


def test_a_nonsensical_retry_after_is_ignored(registry: MemoryRegistry, server: Served, client: Client) -> None:
    descriptor, data = image()
    registry.add_manifest("team/app", "1", descriptor.media_type, data)
    registry.fault = failing(1, "manifests", lambda: Said(503, {"Retry-After": "soon"}))
    assert client.manifest(ref(server))[2] == descriptor


def test_stopping_ends_a_wait_at_once(registry: MemoryRegistry, server: Served) -> None:
    stop = threading.Event()

    def fault(_asked: Asked) -> Said:
        stop.set()
        return Said(503, {"Retry-After": "60"})

    registry.fault = fault
    begun = time.monotonic()
    with Client(cancel=stop) as client, pytest.raises(Interrupted):
        client.manifest(ref(server))
    assert time.monotonic() - begun < 20


def test_a_closed_port_is_one_clear_error(client: Client) -> None:
    with served(lambda _: Said()) as gone:
        host = gone.host
    with pytest.raises(RegistryError, match="refused") as caught:
        client.manifest(parse(f"{host}/app"))
    assert host in caught.value.problem.why
    assert caught.value.problem.remedy


def test_a_name_that_does_not_resolve_is_one_clear_error(client: Client) -> None:
    with pytest.raises(RegistryError, match="cannot find") as caught:
        client.manifest(parse("nowhere.invalid/app"))
    assert "resolve" in caught.value.problem.why


def test_https_spoken_to_a_plain_server_says_what_to_do(server: Served) -> None:
    settings = RegistrySettings(tls=frozenset({server.host}))
    with Client(settings, options=QUICK) as client, pytest.raises(RegistryError, match="TLS") as caught:
        client.manifest(ref(server))
    assert f"--insecure-registry {server.host}" in caught.value.problem.remedy


def test_whether_an_insecure_registry_has_tls_is_found_out_once(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(RegistrySettings(insecure=frozenset({server.host}))) as client:
        assert client.probed_settings() == client.settings
        client.has_manifest(ref(server))
        learned = client.probed_settings()
    assert learned.without_tls == {server.host}

    def probe(*_: object) -> str:
        raise AssertionError("tried TLS again")

    monkeypatch.setattr(RegistrySession, "_probe", probe)
    with Client(learned) as other:
        assert other.has_manifest(ref(server)) is None


def test_a_silent_server_is_given_up(registry: MemoryRegistry, server: Served, client: Client) -> None:
    heard = threading.Event()
    registry.fault = lambda _: heard.wait(30) and None
    request = transport.HTTPRequest("GET", f"{server.url}/v2/", read_timeout=0.05)
    with pytest.raises(TransientError, match="silent"):
        client._session.transport.call(request, 10)
    heard.set()


def limited(seconds: float, registry: str = "") -> RegistrySettings:
    return RegistrySettings(timeouts=((registry, seconds),))


@pytest.fixture
def stalled(registry: MemoryRegistry) -> Iterator[threading.Event]:
    """The registry says nothing for as long as a test lasts."""
    heard = threading.Event()
    registry.fault = lambda _: heard.wait(30) and None
    yield heard
    heard.set()


def test_a_stalled_registry_is_given_up_when_the_user_says(server: Served, stalled: threading.Event) -> None:
    begun = time.monotonic()
    with Client(limited(0.2)) as client, pytest.raises(RegistryError, match="silent"):
        client.resolve(ref(server))
    assert time.monotonic() - begun < 20
    assert len(server.asked) == 1


def test_a_time_for_one_registry_is_not_for_others() -> None:
    settings = RegistrySettings(timeouts=(("", 9.0), ("r.example", 2.0)))
    assert settings.timeout_of("r.example") == 2.0
    assert settings.timeout_of("other.example") == 9.0
    assert limited(2.0, "r.example").timeout_of("other.example") == 0.0


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT"])
def test_a_stalled_push_is_given_up_when_the_user_says(registry: MemoryRegistry, server: Served, method: str) -> None:
    over = threading.Event()
    registry.fault = lambda asked: over.wait(30) and None if asked.method == method else ...
    begun = time.monotonic()
    with Client(limited(0.2)) as client, contextlib.suppress(RegistryError):
        push(client, server, BLOB)
    over.set()
    assert time.monotonic() - begun < 20  # thinking about a finished upload may take ten times as long
    assert len(server.seen(method)) == 1


def test_a_stalled_download_is_given_up_when_the_user_says(registry: MemoryRegistry, server: Served) -> None:
    over = threading.Event()

    def half() -> Iterator[bytes]:
        yield BLOB[:1000]
        over.wait(30)

    registry.fault = lambda _: Said(200, stream=half(), length=len(BLOB))
    begun = time.monotonic()
    with Client(limited(0.2)) as client, pytest.raises(RegistryError, match="silent"):
        client.read_blob(ref(server), layer(BLOB))
    over.set()
    assert time.monotonic() - begun < 20


def test_a_stalled_token_service_is_given_up_when_the_user_says(registry: MemoryRegistry, server: Served) -> None:
    over = threading.Event()
    challenge = {"WWW-Authenticate": f'Bearer realm="{server.url}/token"'}
    registry.fault = lambda asked: over.wait(30) and None if asked.path == "/token" else Said(401, challenge)
    begun = time.monotonic()
    with Client(limited(0.2)) as client, pytest.raises(RegistryError, match="silent"):
        client.resolve(ref(server))
    over.set()
    assert time.monotonic() - begun < 20


def test_the_tries_of_a_registry_that_fails_end_when_the_user_says(registry: MemoryRegistry, server: Served) -> None:
    registry.fault = lambda _: Said(503)
    begun = time.monotonic()
    with Client(limited(1.0)) as client, pytest.raises(RegistryError, match="503"):
        client.resolve(ref(server))
    assert time.monotonic() - begun < 20
    assert 1 < len(server.asked) < 6


def test_what_is_waited_for_is_told_with_what_went_wrong(
    registry: MemoryRegistry, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(notices, "AGAIN_SECONDS", 0.05)
    heard: list[notices.Notice] = []
    told = threading.Event()

    def tell(notice: notices.Notice) -> None:
        heard.append(notice)
        if isinstance(notice, notices.Wait) and notice.why:
            told.set()

    descriptor, data = image()
    registry.add_manifest("team/app", "1", descriptor.media_type, data)
    count = itertools.count()
    registry.fault = lambda _: Said(503) if next(count) == 0 else (told.wait(30), ...)[1]
    with Client(tell=tell, options=QUICK) as client:
        client.resolve(ref(server))
    waits = [each for each in heard if isinstance(each, notices.Wait)]
    assert {(each.registry, each.what) for each in waits} == {(server.host, f"resolve {server.host}/team/app:1")}
    assert any(each.why == "status 503" for each in waits)
    assert [each.over for each in waits] == [False] * (len(waits) - 1) + [True]


# -- downloads -------------------------------------------------------------------------------------------------------


def test_a_blob_arrives_whole(registry: MemoryRegistry, server: Served) -> None:
    registry.add_blob("team/app", BLOB)
    told: list[tuple[str, str, int, int]] = []

    class Telling(Client):
        def progress(self, action: Direction, name: str, done: int, total: int) -> None:
            told.append((action, name, done, total))

    with Telling() as client:
        sink = Buffer()
        client.fetch(ref(server), layer(BLOB), sink)
    assert sink.getvalue() == BLOB
    assert told[-1] == ("pull", digest_of(BLOB), len(BLOB), len(BLOB))


def test_an_empty_blob_arrives(registry: MemoryRegistry, server: Served, client: Client) -> None:
    registry.add_blob("team/app", b"")
    assert client.read_blob(ref(server), layer(b"")) == b""


def breaks(*cuts: int) -> Callable[[Asked], object]:
    """Downloads that are cut after so many bytes, one after the other, ranges honoured."""
    left = list(cuts)

    def fault(asked: Asked) -> object:
        if asked.method != "GET" or "/blobs/" not in asked.path or not left:
            return ...
        start = int(asked.headers.get("range", "bytes=0-")[6:-1])
        rest = BLOB[start:]
        headers = {"Content-Range": f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}"} if start else {}
        return Said(206 if start else 200, headers, rest, length=len(rest), cut=left.pop(0))

    return fault


def test_a_broken_body_is_taken_up_at_the_byte_where_it_broke(
    registry: MemoryRegistry, server: Served, client: Client
) -> None:
    registry.add_blob("team/app", BLOB)
    registry.fault = breaks(700_000, 300_000, 1)
    sink = Buffer()
    client.fetch(ref(server), layer(BLOB), sink)
    assert sink.getvalue() == BLOB
    assert sink.resets == 0
    ranges = [each.headers.get("range", "") for each in server.seen("GET", "blobs")]
    assert ranges[0] == ""
    assert all(each.startswith("bytes=") for each in ranges[1:])
    # A reset may overtake bytes on their way, never the other way round.
    assert 0 < int(ranges[1][6:-1]) <= 700_000


def test_a_server_without_ranges_is_read_from_the_start_again(
    registry: MemoryRegistry, server: Served, client: Client
) -> None:
    registry.add_blob("team/app", BLOB)
    registry.ranges = False
    registry.fault = failing(1, "blobs", lambda: Said(200, {}, BLOB, length=len(BLOB), cut=500_000))
    sink = Buffer()
    client.fetch(ref(server), layer(BLOB), sink)
    assert sink.getvalue() == BLOB


@pytest.mark.parametrize(
    "wrong",
    [
        Said(206, {"Content-Range": "bytes 0-9/10"}, b"0123456789"),
        Said(206, {}, b"x"),
        Said(206, {"Content-Range": f"bytes 500000-{len(BLOB)}/{len(BLOB) + 1}"}, b"x"),
        Said(416),
    ],
)
def test_a_range_that_was_not_asked_for_is_not_used(
    registry: MemoryRegistry, server: Served, client: Client, wrong: Said
) -> None:
    registry.add_blob("team/app", BLOB)
    answers = iter([Said(200, {}, BLOB, length=len(BLOB), cut=500_000), wrong])
    registry.fault = lambda asked: next(answers, ...) if "/blobs/" in asked.path else ...
    sink = Buffer()
    client.fetch(ref(server), layer(BLOB), sink)
    assert sink.getvalue() == BLOB


def test_a_body_stitched_wrongly_is_fetched_whole(registry: MemoryRegistry, server: Served, client: Client) -> None:
    registry.add_blob("team/app", BLOB)

    def fault(asked: Asked) -> object:
        if "/blobs/" not in asked.path:
            return ...
        if "range" in asked.headers:
            start = int(asked.headers["range"][6:-1])
            span = f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}"
            return Said(206, {"Content-Range": span}, bytes(len(BLOB) - start))
        return ... if len(server.seen("GET", "blobs")) > 2 else Said(200, {}, BLOB, length=len(BLOB), cut=99_999)

    registry.fault = fault
    sink = Buffer()
    client.fetch(ref(server), layer(BLOB), sink)
    assert sink.getvalue() == BLOB
    assert sink.resets == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (bytes(len(BLOB)), "digest"),
        (BLOB + b"x", "announced"),
        (BLOB[:-1], "announced"),
        (b"", "announced"),
    ],
)
def test_wrong_content_is_refused(
    registry: MemoryRegistry, server: Served, client: Client, body: bytes, reason: str
) -> None:
    registry.blobs["team/app", digest_of(BLOB)] = body
    with pytest.raises(RegistryError, match=reason):
        client.fetch(ref(server), layer(BLOB), Buffer())


def test_a_body_without_length_that_ends_early_is_resumed(
    registry: MemoryRegistry, server: Served, client: Client
) -> None:
    registry.add_blob("team/app", BLOB)
    registry.fault = failing(1, "blobs", lambda: Said(200, stream=iter([BLOB[:1000]])))
    sink = Buffer()
    client.fetch(ref(server), layer(BLOB), sink)
    assert sink.getvalue() == BLOB
    assert server.seen("GET", "blobs")[1].headers["range"] == "bytes=1000-"


def test_a_body_that_never_gets_further_is_given_up(registry: MemoryRegistry, server: Served, client: Client) -> None:
    registry.add_blob("team/app", BLOB)
    registry.fault = failing(99, "blobs", lambda: Said(200, {}, BLOB, length=len(BLOB), cut=0))
    with pytest.raises(RegistryError, match="tried 6 times"):
        client.fetch(ref(server), layer(BLOB), Buffer())


def test_a_dripping_body_is_given_up(
    registry: MemoryRegistry, server: Served, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "RATE_SECONDS", 0.05)
    gate = threading.Event()

    def drip() -> Iterator[bytes]:
        for at in range(100):
            yield BLOB[at : at + 1]
            gate.wait(0.01)

    registry.add_blob("team/app", BLOB)
    registry.fault = failing(1, "blobs", lambda: Said(200, stream=drip()))
    sink = Buffer()
    client.fetch(ref(server), layer(BLOB), sink)
    assert sink.getvalue() == BLOB
    assert 0 < int(server.seen("GET", "blobs")[1].headers["range"][6:-1]) < 100


def test_a_stream_tells_at_its_end_whether_it_was_true(
    registry: MemoryRegistry, server: Served, client: Client
) -> None:
    registry.add_blob("team/app", BLOB)
    registry.fault = breaks(700_000)
    assert b"".join(client.open_stream(ref(server), layer(BLOB))) == BLOB
    registry.blobs["team/app", digest_of(BLOB)] = BLOB[:-1] + b"?"
    with pytest.raises(RegistryError, match="digest"):
        for _ in client.open_stream(ref(server), layer(BLOB)):
            pass


def test_an_abandoned_stream_frees_its_connection(registry: MemoryRegistry, server: Served, client: Client) -> None:
    registry.add_blob("team/app", BLOB)
    for _ in range(transport.CONNECTIONS + 1):
        stream = client.open_stream(ref(server), layer(BLOB))
        next(stream)
        stream.close()  # type: ignore[attr-defined]


def test_a_small_blob_may_not_be_large(server: Served, client: Client) -> None:
    with pytest.raises(RegistryError, match="allowed"):
        client.read_blob(ref(server), Descriptor("x", digest_of(b""), 1 << 40))
    assert not server.asked


def test_a_full_disk_is_not_taken_for_a_bad_network(registry: MemoryRegistry, server: Served, client: Client) -> None:
    class Full(Buffer):
        def write(self, data: object, /) -> int:
            raise OSError(28, "No space left on device")

    registry.add_blob("team/app", BLOB)
    with pytest.raises(OSError, match="No space"):
        client.fetch(ref(server), layer(BLOB), Full())
    assert len(server.seen("GET", "blobs")) == 1


def test_many_threads_share_one_client(registry: MemoryRegistry, server: Served, client: Client) -> None:
    blobs = [bytes([number]) * 100_000 for number in range(24)]
    for blob in blobs:
        registry.add_blob("team/app", blob)
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(lambda blob: client.read_blob(ref(server), layer(blob)), blobs)) == blobs


def test_stopping_ends_a_download(registry: MemoryRegistry, server: Served) -> None:
    stop = threading.Event()
    registry.add_blob("team/app", BLOB)

    class Stopping(Buffer):
        def write(self, data: object, /) -> int:
            stop.set()
            return 0

    with Client(cancel=stop) as client, pytest.raises(Interrupted):
        client.fetch(ref(server), layer(BLOB), Stopping())


def test_closing_ends_what_other_threads_wait_for(registry: MemoryRegistry, server: Served) -> None:
    arrived, released = threading.Event(), threading.Event()

    def fault(_asked: Asked) -> None:
        arrived.set()
        released.wait(30)

    registry.fault = fault
    client = Client()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.manifest, ref(server))
        assert arrived.wait(10)
        client.close()
        with pytest.raises(Interrupted):
            waiting.result(timeout=10)
    released.set()


# -- credentials -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
def test_each_repository_of_a_registry_may_have_its_own_account(scheme: str) -> None:
    """Tokens and passwords of one are never shown to the other, in whatever order they are asked for."""
    registry = MemoryRegistry()
    users = {"org-a": "usera", "org-b": "userb"}

    def fault(asked: Asked) -> object:
        sent = asked.headers.get("authorization", "")
        user = base64.b64decode(sent[6:]).decode().partition(":")[0] if sent.startswith("Basic ") else ""
        if asked.path == "/token":
            return Said(200, {}, json.dumps({"token": f"{user}-token"}).encode())
        owner = users[asked.path.split("/")[2]]
        if (user or sent.removeprefix("Bearer ").removesuffix("-token")) == owner:
            return ...
        realm = f'realm="http://{asked.headers["host"]}/token"'
        return Said(401, {"WWW-Authenticate": f"{scheme.capitalize()} {realm}"})

    def keychain(name: str) -> Credential | None:
        return Credential(users[name.split("/")[1]], "x")

    registry.fault = fault
    with served(registry) as server, Client(keychain=keychain, options=QUICK) as client:
        for number, repository in enumerate(("org-a/app", "org-b/app", "org-a/app", "org-b/other")):
            data = str(number).encode()
            client.push(ref(server, repository), layer(data), lambda data=data: io.BytesIO(data))  # type: ignore[misc]
            assert registry.blobs[repository, digest_of(data)] == data
        assert len([each for each in server.asked if each.path.startswith("/v2") and each.method == "HEAD"]) <= 5


def test_a_scope_in_a_challenge_that_its_own_token_service_refuses_is_left_out() -> None:
    registry = MemoryRegistry()

    def fault(asked: Asked) -> object:
        if asked.path == "/token":
            odd = any("user/image" in each for each in asked.query["scope"])
            return error(403, "DENIED", "no such thing") if odd else Said(200, {}, b'{"token": "t"}')
        if asked.headers.get("authorization") == "Bearer t":
            return ...
        realm = f'realm="http://{asked.headers["host"]}/token",scope="repository:user/image:pull"'
        return Said(401, {"WWW-Authenticate": f"Bearer {realm}"})

    descriptor, data = image()
    registry.add_manifest("team/app", "1", descriptor.media_type, data)
    registry.fault = fault
    with served(registry) as server, Client(options=QUICK) as client:
        assert client.manifest(ref(server))[2] == descriptor


# -- uploads ---------------------------------------------------------------------------------------------------------


def push(client: Client, server: Served, data: bytes, **options: object) -> str:
    return client.push(ref(server), layer(data), lambda: io.BytesIO(data), **options)  # type: ignore[arg-type]


def test_a_blob_is_sent_once(registry: MemoryRegistry, server: Served, client: Client) -> None:
    assert push(client, server, BLOB) == "uploaded"
    assert registry.blobs["team/app", digest_of(BLOB)] == BLOB
    assert push(client, server, BLOB) == "present"
    assert len(server.seen("PUT")) == 1


def test_what_is_sent_is_at_hand_before_the_registry_waits_for_it(server: Served, client: Client) -> None:
    """A base's layer may have to be pulled first, and registries end requests whose bytes do not come."""
    asked: list[list[str]] = []

    def content() -> io.BytesIO:
        asked.append([each.method for each in server.asked])
        return io.BytesIO(BLOB)

    assert client.push(ref(server), layer(BLOB), content) == "uploaded"
    assert asked[0] == ["HEAD"]


def test_an_empty_blob_is_sent(registry: MemoryRegistry, server: Served, client: Client) -> None:
    assert push(client, server, b"") == "uploaded"
    assert registry.blobs["team/app", digest_of(b"")] == b""


def test_a_blob_of_another_repository_is_mounted(registry: MemoryRegistry, server: Served, client: Client) -> None:
    registry.add_blob("team/base", BLOB)
    assert push(client, server, BLOB, mount_from=["team/none", "team/app", "team/base"]) == "mounted"
    assert not server.seen("PUT")
    # The session that was opened in place of the failed mount is given back.
    assert len(server.seen("DELETE")) == 1


def test_a_failed_mounts_session_is_used(registry: MemoryRegistry, server: Served, client: Client) -> None:
    assert push(client, server, BLOB, mount_from=["team/none"]) == "uploaded"
    assert len(server.seen("POST")) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 429, 500, 503])
def test_a_refused_mount_is_no_failure(registry: MemoryRegistry, server: Served, client: Client, status: int) -> None:
    registry.fault = lambda asked: Said(status) if "mount" in asked.query else ...
    assert push(client, server, BLOB, mount_from=["team/base"]) == "uploaded"
    assert len([each for each in server.seen("POST") if "mount" in each.query]) == 1


def test_a_mount_that_breaks_is_no_failure(registry: MemoryRegistry, server: Served, client: Client) -> None:
    registry.fault = lambda asked: None if "mount" in asked.query else ...
    assert push(client, server, BLOB, mount_from=["team/base"]) == "uploaded"


def test_a_mount_whose_scope_the_token_service_refuses_is_no_failure_and_not_tried_again() -> None:
    registry = MemoryRegistry()

    def fault(asked: Asked) -> object:
        if asked.path == "/token":
            foreign = any("team/base" in each for each in asked.query["scope"])
            return error(403, "DENIED", "not yours") if foreign else Said(200, {}, b'{"token": "t"}')
        if asked.headers.get("authorization") != "Bearer t":
            return Said(401, {"WWW-Authenticate": f'Bearer realm="http://{asked.headers["host"]}/token"'})
        return ...

    registry.fault = fault
    with served(registry) as server, Client(options=QUICK) as client:
        for blob in (BLOB, b"another"):
            assert push(client, server, blob, mount_from=["team/base"]) == "uploaded"
            assert registry.blobs["team/app", digest_of(blob)] == blob
        foreign = [
            each for each in server.seen("GET", "/token") if any("base" in scope for scope in each.query["scope"])
        ]
    assert len(foreign) == 1


@pytest.mark.parametrize(("length", "digest", "present"), [("", "", True), ("0", "", False), ("0", "right", True)])
def test_a_blob_is_known_by_its_size_or_its_digest(
    registry: MemoryRegistry, server: Served, client: Client, length: str, digest: str, present: bool
) -> None:
    """Proxies put a length on answers that have no body."""
    headers = {"Docker-Content-Digest": digest_of(BLOB)} if digest else {}
    answer = Said(200, headers | ({"Content-Length": length} if length else {}), BLOB)
    registry.fault = lambda asked: answer if asked.method == "HEAD" else ...
    assert push(client, server, BLOB) == ("present" if present else "uploaded")


@pytest.mark.parametrize("answer", [Said(401), Said(403), Said(500), None])
def test_a_blob_that_may_not_be_looked_for_is_sent(
    registry: MemoryRegistry, server: Served, client: Client, answer: Said | None
) -> None:
    registry.fault = lambda asked: answer if asked.method == "HEAD" else ...
    assert push(client, server, BLOB) == "uploaded"


CHUNK = 300_000


@pytest.fixture
def small_chunks() -> Iterator[Client]:
    with Client(options=replace(QUICK, chunk=CHUNK)) as client:
        yield client


@pytest.fixture
def chunked() -> Iterator[Client]:
    """A client for which ``BLOB`` is one of the large blobs, which go in chunks."""
    with Client(options=replace(QUICK, chunk=CHUNK, whole=1000)) as client:
        yield client


def test_a_large_blob_goes_in_chunks(registry: MemoryRegistry, server: Served, chunked: Client) -> None:
    assert push(chunked, server, BLOB) == "uploaded"
    assert registry.blobs["team/app", digest_of(BLOB)] == BLOB
    spans = [each.headers["content-range"] for each in server.seen("PATCH")]
    assert spans[0] == f"0-{CHUNK - 1}"
    assert spans[-1].endswith(f"-{len(BLOB) - 1}")
    assert server.seen("PUT")[0].body == b""


def test_a_registrys_least_chunk_is_respected(registry: MemoryRegistry, server: Served, chunked: Client) -> None:
    location = {"Location": "/v2/team/app/blobs/uploads/0", "OCI-Chunk-Min-Length": "900000"}

    def fault(asked: Asked) -> object:
        if asked.method != "POST":
            return ...
        registry.uploads["0"] = bytearray()
        return Said(202, location)

    registry.fault = fault
    push(chunked, server, BLOB)
    assert [len(each.body) for each in server.seen("PATCH")] == [900_000, len(BLOB) - 900_000]


@pytest.mark.parametrize("answer", [None, Said(500), Said(503, {"Retry-After": "0"})])
def test_a_chunk_that_fails_midway_is_sent_again_from_where_the_registry_stands(
    registry: MemoryRegistry, server: Served, chunked: Client, answer: Said | None
) -> None:
    count = itertools.count()
    registry.fault = lambda asked: answer if asked.method == "PATCH" and next(count) in (1, 2) else ...
    assert push(chunked, server, BLOB) == "uploaded"
    assert registry.blobs["team/app", digest_of(BLOB)] == BLOB
    assert len(server.seen("POST")) == 1
    sent = sum(len(each.body) for each in server.seen("PATCH"))
    assert sent == len(BLOB) + 2 * CHUNK


def test_a_chunk_whose_answer_is_lost_is_not_sent_twice(
    registry: MemoryRegistry, server: Served, chunked: Client
) -> None:
    count = itertools.count()

    def fault(asked: Asked) -> object:
        if asked.method == "PATCH" and next(count) == 1:
            registry.serve(asked)
            return None
        return ...

    registry.fault = fault
    assert push(chunked, server, BLOB) == "uploaded"
    assert sum(len(each.body) for each in server.seen("PATCH")) == len(BLOB)


def test_an_upload_that_the_registry_forgot_begins_anew(
    registry: MemoryRegistry, server: Served, chunked: Client
) -> None:
    count = itertools.count()

    def fault(asked: Asked) -> object:
        if asked.method == "PATCH" and next(count) == 2:
            registry.uploads.clear()
        return ...

    registry.fault = fault
    assert push(chunked, server, BLOB) == "uploaded"
    assert registry.blobs["team/app", digest_of(BLOB)] == BLOB


def test_a_registry_without_chunks_gets_the_blob_whole(
    registry: MemoryRegistry, server: Served, chunked: Client
) -> None:
    registry.patches = False
    assert push(chunked, server, BLOB) == "uploaded"
    assert len(server.seen("PUT")[0].body) == len(BLOB)


def test_after_a_break_the_rest_goes_in_chunks(registry: MemoryRegistry, server: Served, small_chunks: Client) -> None:
    registry.fault = failing(1, "uploads", lambda: None, "PUT")
    assert push(small_chunks, server, BLOB) == "uploaded"
    assert server.seen("PATCH")


@pytest.mark.parametrize("counting", ["stuck", "last", "over"])
@pytest.mark.parametrize("broken", [0, 1, 2])
def test_chunks_arrive_where_the_registrys_count_is_odd(chunked: Client, counting: str, broken: int) -> None:
    """Nothing but what broke is sent again as long as no connection breaks; then once more, whole."""
    registry = OddRegistry(counting)
    registry.fault = failing(broken and 1, "uploads", lambda: None, "PATCH")
    if broken == 2:
        count = itertools.count()
        registry.fault = lambda asked: None if asked.method == "PATCH" and next(count) == 1 else ...
    with served(registry) as server:
        assert push(chunked, server, BLOB) == "uploaded"
        sent = sum(len(each.body) for each in server.asked)
    assert registry.blobs["team/app", digest_of(BLOB)] == BLOB
    assert sent <= len(BLOB) + min(broken, 1) * CHUNK


def test_a_chunk_that_was_accepted_in_part_goes_on_where_the_registry_stands(
    registry: MemoryRegistry, server: Served, chunked: Client
) -> None:
    count = itertools.count()

    def fault(asked: Asked) -> object:
        if asked.method != "PATCH":
            return ...
        if next(count) == 1:
            name = asked.path.rpartition("/")[2]
            registry.uploads[name] += asked.body[:1000]
            return registry.stands(202, "team/app", name)
        said = registry.serve(asked)
        return said if said.status != 416 else registry.stands(416, "team/app", asked.path.rpartition("/")[2])

    registry.fault = fault
    assert push(chunked, server, BLOB) == "uploaded"
    assert registry.blobs["team/app", digest_of(BLOB)] == BLOB
    assert len(server.seen("POST")) == 1


def test_chunks_that_are_too_large_for_a_registry_are_followed_by_the_whole(chunked: Client) -> None:
    registry = OddRegistry(largest_chunk=CHUNK // 2)
    with served(registry) as server:
        assert push(chunked, server, BLOB) == "uploaded"
        assert len(server.seen("PATCH")) == 1  # a 416 is not answered with the same
        assert [len(each.body) for each in server.seen("PUT")] == [len(BLOB)]
    assert registry.blobs["team/app", digest_of(BLOB)] == BLOB


def test_chunks_become_smaller_where_the_whole_is_too_large() -> None:
    registry = OddRegistry(largest_chunk=600_000)
    registry.fault = lambda asked: Said(413) if asked.method == "PUT" and len(asked.body) > 700_000 else ...
    with served(registry) as server, Client(options=replace(QUICK, chunk=1_000_000, whole=1000)) as client:
        assert push(client, server, BLOB) == "uploaded"
        assert [len(each.body) for each in server.seen("PATCH")][:2] == [1_000_000, upload.LEAST_CHUNK]
    assert registry.blobs["team/app", digest_of(BLOB)] == BLOB


def test_a_broken_connection_before_a_registry_that_takes_small_chunks_only(small_chunks: Client) -> None:
    """Whole, then in chunks, then whole again: what failed for one reason is not given up for another."""
    registry = OddRegistry(largest_chunk=CHUNK // 2)
    registry.fault = failing(1, "uploads", lambda: None, "PUT")
    with served(registry) as server:
        assert push(small_chunks, server, BLOB) == "uploaded"
        assert [each.method for each in server.asked if each.body] == ["PUT", "PATCH", "PUT"]
    assert registry.blobs["team/app", digest_of(BLOB)] == BLOB


@pytest.mark.parametrize("status", [404, 405])
def test_a_registry_whose_closing_request_takes_no_bytes_gets_them_before(
    registry: MemoryRegistry, server: Served, client: Client, status: int
) -> None:
    registry.fault = lambda asked: Said(status) if asked.method == "PUT" and asked.body else ...
    assert push(client, server, BLOB) == "uploaded"
    assert registry.blobs["team/app", digest_of(BLOB)] == BLOB


def test_a_token_that_expires_while_the_blob_is_on_its_way_is_answered_with_chunks() -> None:
    """A proxy hands the request on when it has all of it; a token does not live as long."""
    registry = MemoryRegistry()
    challenge = {"WWW-Authenticate": 'Bearer realm="http://{}/token"'}

    def fault(asked: Asked) -> object:
        if asked.path == "/token":
            return Said(200, {}, b'{"token": "t"}')
        if asked.headers.get("authorization") == "Bearer t" and len(asked.body) <= CHUNK:
            return ...
        return Said(401, {key: value.format(asked.headers["host"]) for key, value in challenge.items()})

    registry.fault = fault
    with served(registry) as server, Client(options=replace(QUICK, chunk=CHUNK)) as client:
        assert push(client, server, BLOB) == "uploaded"
    assert registry.blobs["team/app", digest_of(BLOB)] == BLOB


@pytest.mark.parametrize("status", [200, 201])
def test_a_registry_that_says_created_or_ok_is_understood(
    registry: MemoryRegistry, server: Served, client: Client, status: int
) -> None:
    def fault(asked: Asked) -> object:
        said = registry.serve(asked)
        said.status = status if said.status < 300 else said.status
        return said

    registry.fault = fault
    assert push(client, server, BLOB) == "uploaded"


def test_the_last_try_sends_the_blob_whole(registry: MemoryRegistry, server: Served, chunked: Client) -> None:
    registry.fault = failing(99, "uploads", lambda: Said(500), "PUT")
    with pytest.raises(RegistryError):
        push(chunked, server, BLOB)
    assert len(server.seen("PUT")[-1].body) == len(BLOB)


def test_a_blob_that_cannot_be_sent_says_what_happened_to_it(
    registry: MemoryRegistry, server: Served, chunked: Client
) -> None:
    def fault(asked: Asked) -> object:
        if asked.method == "PATCH":
            return error(416, "RANGE_INVALID", "not there")
        return None if asked.method == "PUT" else ...

    registry.fault = fault
    with pytest.raises(RegistryError) as caught:
        push(chunked, server, BLOB)
    problem = caught.value.problem
    assert "RANGE_INVALID not there, sent in chunks" in problem.why
    assert "sent whole" in problem.why
    assert "neither whole nor in chunks" in problem.remedy
    assert "HTTP_PROXY" not in problem.remedy


def test_a_proxys_body_limit_is_respected(registry: MemoryRegistry, server: Served, small_chunks: Client) -> None:
    registry.fault = lambda asked: Said(413) if len(asked.body) > 400_000 else ...
    assert push(small_chunks, server, BLOB) == "uploaded"
    assert registry.blobs["team/app", digest_of(BLOB)] == BLOB


def test_a_finished_upload_whose_answer_is_lost_counts(
    registry: MemoryRegistry, server: Served, client: Client
) -> None:
    def fault(asked: Asked) -> object:
        if asked.method == "PUT":
            registry.serve(asked)
            return None
        return ...

    registry.fault = fault
    assert push(client, server, BLOB) == "uploaded"
    assert len(server.seen("PUT")) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 429, 404])
def test_an_upload_is_tried_again(registry: MemoryRegistry, server: Served, client: Client, status: int) -> None:
    registry.fault = failing(3, "uploads", lambda: Said(status), "PUT")
    assert push(client, server, BLOB) == "uploaded"
    assert registry.blobs["team/app", digest_of(BLOB)] == BLOB


def test_an_upload_is_given_up_in_the_end_and_given_back(
    registry: MemoryRegistry, server: Served, client: Client
) -> None:
    registry.fault = failing(99, "uploads", lambda: Said(500), "PUT")
    with pytest.raises(RegistryError, match="tried 6 times"):
        push(client, server, BLOB)
    assert server.seen("DELETE")


@pytest.mark.parametrize("status", [400, 403, 507])
def test_a_refused_upload_is_an_error_at_once(
    registry: MemoryRegistry, server: Served, client: Client, status: int
) -> None:
    registry.fault = failing(99, "uploads", lambda: error(status, "DENIED", "no"), "PUT")
    with pytest.raises(RegistryError, match="DENIED no"):
        push(client, server, BLOB)
    assert len(server.seen("PUT")) == 1


def test_a_registry_that_never_moves_on_does_not_hold_us(
    registry: MemoryRegistry, server: Served, chunked: Client
) -> None:
    registry.fault = lambda asked: (
        Said(202, {"Location": asked.path, "Range": "0-0"}) if asked.method == "PATCH" else ...
    )
    assert push(chunked, server, BLOB) == "uploaded"  # whole, in the end
    assert len(server.seen("PATCH")) < 20


def test_a_local_copy_that_is_too_short_is_an_error(registry: MemoryRegistry, server: Served, client: Client) -> None:
    with pytest.raises(StoreError, match="ends after"):
        client.push(ref(server), layer(BLOB), lambda: io.BytesIO(BLOB[:1000]))
    assert ("team/app", digest_of(BLOB)) not in registry.blobs


def test_a_stopped_upload_is_given_back(registry: MemoryRegistry, server: Served) -> None:
    stop = threading.Event()

    class Stopping(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            stop.set()
            return super().read(size)

    with Client(cancel=stop, options=QUICK) as client, pytest.raises(Interrupted):
        client.push(ref(server), layer(BLOB), lambda: Stopping(BLOB))
    assert len(server.seen("DELETE")) == 1
    assert registry.uploads == {}


def test_an_upload_without_a_location_is_an_error(registry: MemoryRegistry, server: Served, client: Client) -> None:
    registry.fault = lambda asked: Said(202) if asked.method == "POST" else ...
    with pytest.raises(RegistryError, match="where to go on"):
        push(client, server, BLOB)


def test_a_location_keeps_the_query_it_came_with(registry: MemoryRegistry, server: Served, client: Client) -> None:
    def fault(asked: Asked) -> object:
        if asked.method != "POST":
            return ...
        registry.uploads["7"] = bytearray()
        return Said(202, {"Location": "/v2/team/app/blobs/uploads/7?_state=a%2Bb%3D%3D&x=1"})

    registry.fault = fault
    assert push(client, server, BLOB) == "uploaded"
    (put,) = server.seen("PUT")
    assert put.query == {"_state": ["a+b=="], "x": ["1"], "digest": [digest_of(BLOB)]}


# -- manifests -------------------------------------------------------------------------------------------------------


def test_a_manifest_goes_and_comes_back(registry: MemoryRegistry, server: Served, client: Client) -> None:
    descriptor, data = image()
    assert client.put_manifest(ref(server), data, descriptor.media_type) == descriptor
    assert client.resolve(ref(server)) == descriptor
    assert client.has_manifest(ref(server)) == descriptor
    document, back, again = client.manifest(ref(server).with_digest(descriptor.digest))
    assert (back, again) == (data, descriptor)
    assert isinstance(document, Manifest)
    assert client.has_manifest(ref(server, "team/app:2")) is None
    assert client.has_manifest(ref(server, "team/none:1")) is None


def test_without_a_tag_a_manifest_goes_under_its_digest(
    registry: MemoryRegistry, server: Served, client: Client
) -> None:
    descriptor, data = image()
    client.put_manifest(ref(server, "team/app"), data, descriptor.media_type)
    assert server.seen("PUT")[0].path == f"/v2/team/app/manifests/{descriptor.digest}"
    with pytest.raises(RegistryError, match="digest"):
        client.put_manifest(ref(server, f"team/app@{digest_of(b'other')}"), data, descriptor.media_type)


@pytest.mark.parametrize(
    "headers",
    [{}, {"Content-Type": mediatypes.OCI_MANIFEST}, {"Docker-Content-Digest": "sha256:short"}],
)
def test_a_head_answer_that_says_too_little_is_completed_by_get(
    registry: MemoryRegistry, server: Served, client: Client, headers: dict[str, str]
) -> None:
    descriptor, data = image()
    registry.add_manifest("team/app", "1", descriptor.media_type, data)
    registry.fault = lambda asked: Said(200, headers) if asked.method == "HEAD" else ...
    assert client.resolve(ref(server)) == descriptor


def test_a_registry_without_head_is_asked_with_get(registry: MemoryRegistry, server: Served, client: Client) -> None:
    descriptor, data = image()
    registry.add_manifest("team/app", "1", descriptor.media_type, data)
    registry.fault = lambda asked: Said(405) if asked.method == "HEAD" else ...
    assert client.resolve(ref(server)) == descriptor


@pytest.mark.parametrize("status", [400, 403, 404, 405])
def test_a_manifest_is_found_where_head_is_not_answered(
    registry: MemoryRegistry, server: Served, client: Client, status: int
) -> None:
    descriptor, data = image()
    registry.add_manifest("team/app", "1", descriptor.media_type, data)
    registry.fault = lambda asked: Said(status) if asked.method == "HEAD" else ...
    found = client.find(ref(server))
    assert found is not None
    assert found[1:] == (data, descriptor)
    assert len(server.asked) == 1
    assert client.find(ref(server, "team/app:none")) is None
    assert client.has_manifest(ref(server)) == (None if status == 404 else descriptor)
    assert client.has_manifest(ref(server, "team/app:none")) is None


def test_a_connection_that_breaks_in_its_handshake_is_tried_again() -> None:
    """A listener that closes each connection at once, as an overloaded balancer does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        accepted = []

        def close() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    accepted.append(connection.recv(1 << 16))
                    connection.close()

        thread = threading.Thread(target=close, daemon=True)
        thread.start()
        settings = RegistrySettings(tls=frozenset({host}))
        with Client(settings, options=QUICK) as client, pytest.raises(RegistryError, match="tried 3 times"):
            client.resolve(parse(f"{host}/app"))
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert len(accepted) == 3


def test_a_missing_tag_is_explained(server: Served, client: Client) -> None:
    with pytest.raises(RegistryError, match="MANIFEST_UNKNOWN") as caught:
        client.resolve(ref(server, "team/app:none"))
    assert "team/app:none" in caught.value.problem.what
    assert "tag" in caught.value.problem.remedy


def test_other_bytes_than_the_digest_says_are_refused(registry: MemoryRegistry, server: Served, client: Client) -> None:
    descriptor, _ = image()
    other = image((layer(b"x"),))[1]
    registry.manifests["team/app", descriptor.digest] = (descriptor.media_type, other)
    with pytest.raises(RegistryError, match="sent"):
        client.manifest(ref(server).with_digest(descriptor.digest))


def test_a_registry_that_stores_something_else_is_found_out(
    registry: MemoryRegistry, server: Served, client: Client
) -> None:
    descriptor, data = image()
    registry.fault = lambda asked: (
        Said(201, {"Docker-Content-Digest": digest_of(b"other")}) if asked.method == "PUT" else ...
    )
    with pytest.raises(RegistryError, match="something else"):
        client.put_manifest(ref(server), data, descriptor.media_type)


def test_an_immutable_tag_that_is_right_already_is_no_failure(
    registry: MemoryRegistry, server: Served, client: Client
) -> None:
    descriptor, data = image()
    registry.immutable = True
    for _ in range(2):
        assert client.put_manifest(ref(server), data, descriptor.media_type) == descriptor
    other = image((layer(b"x"),))
    with pytest.raises(RegistryError, match="immutable") as caught:
        client.put_manifest(ref(server), other[1], descriptor.media_type)
    assert descriptor.digest in caught.value.problem.remedy
    assert "choose another" in caught.value.problem.remedy


def test_a_store_that_takes_nothing_twice_is_no_failure(
    registry: MemoryRegistry, server: Served, client: Client
) -> None:
    descriptor, data = image()
    reference = ref(server, "team/app")
    client.put_manifest(reference, data, descriptor.media_type)
    registry.fault = lambda asked: Said(403) if asked.method == "PUT" else ...
    assert client.put_manifest(reference, data, descriptor.media_type) == descriptor
    with pytest.raises(RegistryError, match="403"):
        client.put_manifest(reference, image((layer(b"x"),))[1], descriptor.media_type)


@pytest.mark.parametrize("code", ["MANIFEST_BLOB_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN"])
def test_what_a_registry_does_not_know_yet_is_waited_for(
    registry: MemoryRegistry, server: Served, client: Client, code: str
) -> None:
    descriptor, data = image()
    registry.fault = failing(2, "manifests", lambda: error(404, code, "not here yet"), "PUT")
    assert client.put_manifest(ref(server), data, descriptor.media_type) == descriptor


def test_a_repository_that_has_to_be_made_first_is_met_with_a_hint(
    registry: MemoryRegistry, server: Served, client: Client
) -> None:
    registry.fault = lambda asked: error(404, "NAME_UNKNOWN", "no such repository") if asked.method == "POST" else ...
    with pytest.raises(RegistryError) as caught:
        client.check_push(ref(server))
    assert "create it first" in caught.value.problem.remedy


@pytest.mark.parametrize(
    ("status", "code"), [(404, ""), (400, "MANIFEST_INVALID"), (405, "UNSUPPORTED"), (415, "MANIFEST_INVALID")]
)
def test_a_registry_that_does_not_know_oci_indexes_is_met_with_a_hint(
    registry: MemoryRegistry, server: Served, client: Client, status: int, code: str
) -> None:
    registry.fault = lambda asked: error(status, code, "no") if asked.method == "PUT" else ...
    data = encode(Index(mediatypes.OCI_INDEX, ()))
    with pytest.raises(RegistryError) as caught:
        client.put_manifest(ref(server), data, mediatypes.OCI_INDEX)
    assert "oci-mediatypes=false" in caught.value.problem.remedy
    with pytest.raises(RegistryError) as caught:
        client.put_manifest(ref(server), encode(Index(mediatypes.DOCKER_INDEX, ())), mediatypes.DOCKER_INDEX)
    assert "oci-mediatypes" not in caught.value.problem.remedy


@pytest.mark.parametrize(("refusals", "works"), [(1, True), (3, True), (4, False)])
def test_a_blob_that_another_uploads_too_may_be_missed_for_a_moment(
    registry: MemoryRegistry, server: Served, client: Client, refusals: int, works: bool
) -> None:
    descriptor, data = image()
    refusal = b'{"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown to registry"}]}'
    left = [refusals]

    def fault(asked: Asked) -> object:
        if asked.method != "PUT" or not left[0]:
            return ...
        left[0] -= 1
        return Said(400, {"Content-Type": "application/json"}, refusal)

    registry.fault = fault
    if works:
        assert client.put_manifest(ref(server), data, descriptor.media_type) == descriptor
    else:
        with pytest.raises(RegistryError, match="MANIFEST_BLOB_UNKNOWN"):
            client.put_manifest(ref(server), data, descriptor.media_type)


def test_a_registrys_warnings_are_passed_on_once(registry: MemoryRegistry, server: Served) -> None:
    descriptor, data = image()
    registry.add_manifest("team/app", "1", descriptor.media_type, data)
    warning = {"Warning": '299 - "this tag goes away", 299 - "\x1b]0;x and more"'}
    reply = Said(200, {"Content-Type": descriptor.media_type, **warning}, data)
    registry.fault = lambda asked: reply if "manifests" in asked.path else ...
    heard: list[str] = []
    with Client(tell=lambda notice: heard.append(notice.text)) as client:  # type: ignore[union-attr]
        client.manifest(ref(server))
        client.manifest(ref(server))
    assert heard[0] == "this tag goes away"
    assert len(heard) == 2
    assert heard[1].isprintable()


# -- mirrors ---------------------------------------------------------------------------------------------------------


def test_a_mirror_is_asked_first_and_the_registry_for_what_it_lacks(registry: MemoryRegistry, server: Served) -> None:
    descriptor, data = image()
    registry.add_manifest("team/app", "1", descriptor.media_type, data)
    registry.add_blob("team/app", BLOB)
    mirror = MemoryRegistry()
    mirror.add_manifest("hub/team/app", "1", descriptor.media_type, data)
    with served(mirror) as near:
        settings = RegistrySettings(mirrors=((server.host, (f"{near.host}/hub",)),))
        with Client(settings, options=QUICK) as client:
            assert client.resolve(ref(server)) == descriptor
            assert not server.asked
            assert client.read_blob(ref(server), layer(BLOB)) == BLOB
            assert near.seen("GET", "blobs") and server.seen("GET", "blobs")
            assert push(client, server, b"new") == "uploaded"
            assert not near.seen("PUT")


def test_a_lying_mirror_is_passed_over(registry: MemoryRegistry, server: Served) -> None:
    registry.add_blob("team/app", BLOB)
    mirror = MemoryRegistry()
    mirror.blobs["team/app", digest_of(BLOB)] = bytes(len(BLOB))
    with (
        served(mirror) as near,
        Client(mirrored(server, near), options=QUICK) as client,
    ):
        sink = Buffer()
        client.fetch(ref(server), layer(BLOB), sink)
    assert sink.getvalue() == BLOB
    assert sink.resets == 1


@pytest.fixture
def base(registry: MemoryRegistry) -> Descriptor:
    """An image in ``registry`` with ``BLOB`` as its layer."""
    descriptor, data = image((layer(BLOB),))
    registry.add_manifest("team/app", "1", descriptor.media_type, data)
    registry.add_blob("team/app", BLOB)
    return descriptor


def pull(client: Client, server: Served, base: Descriptor) -> None:
    assert client.resolve(ref(server)) == base
    assert client.manifest(ref(server).with_digest(base.digest))[2] == base
    assert client.read_blob(ref(server), layer(BLOB)) == BLOB


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
def test_a_mirror_that_fails_is_asked_once_a_build(server: Served, base: Descriptor, status: int) -> None:
    with served(lambda _: error(status, "UNAVAILABLE", "mirror is down")) as near:
        settings = mirrored(server, near)
        with Client(settings, options=QUICK) as client:
            pull(client, server, base)
            learned = client.probed_settings()
        with Client(learned, options=QUICK) as other:  # an executor of the same build
            pull(other, server, base)
        assert len(near.asked) == 1


def test_that_a_mirror_is_left_is_told_once(server: Served, base: Descriptor) -> None:
    heard: list[notices.Notice] = []
    with served(lambda _: error(503, "UNAVAILABLE", "mirror is down")) as near:
        settings = mirrored(server, near)
        with Client(settings, tell=heard.append, options=QUICK) as client:
            pull(client, server, base)
    (remark,) = heard
    assert isinstance(remark, notices.Remark)
    assert near.host in remark.text
    assert "status 503" in remark.text


def test_a_mirror_that_is_not_there_is_asked_once_a_build(server: Served, base: Descriptor) -> None:
    with served(lambda _: Said()) as gone:
        host = gone.host
    with Client(RegistrySettings(mirrors=((server.host, (host,)),)), options=QUICK) as client:
        pull(client, server, base)
        assert client.probed_settings().failing == {host}


def test_a_mirror_whose_blobs_fail_is_left_with_the_first(server: Served, base: Descriptor) -> None:
    mirror = MemoryRegistry()
    mirror.fault = lambda asked: Said(502) if "/blobs/" in asked.path else ...
    with (
        served(mirror) as near,
        Client(mirrored(server, near), options=QUICK) as client,
    ):
        for _ in range(3):
            assert client.read_blob(ref(server), layer(BLOB)) == BLOB
        assert len(near.asked) == 1


def test_a_mirrors_connection_that_breaks_is_tried_once_more(server: Served, base: Descriptor) -> None:
    mirror = MemoryRegistry()
    mirror.blobs["team/app", digest_of(BLOB)] = BLOB
    mirror.fault = failing(1, "blobs", lambda: None)
    with (
        served(mirror) as near,
        Client(mirrored(server, near), options=QUICK) as client,
    ):
        assert client.read_blob(ref(server), layer(BLOB)) == BLOB
        assert len(near.asked) == 2
        assert not server.asked


@pytest.mark.parametrize(("headers", "asked"), [({}, 3), ({"Retry-After": "60"}, 1)])
def test_a_mirror_that_is_asked_too_often_is_passed_over_without_a_wait(
    server: Served, base: Descriptor, headers: dict[str, str], asked: int
) -> None:
    """For one question, or for as long as it asks; other processes may find it ready again."""
    with served(lambda _: Said(429, headers)) as near:
        settings = mirrored(server, near)
        with Client(settings, options=TransferOptions(RetryPolicy(first_delay=600))) as client:
            pull(client, server, base)
            assert client.probed_settings().failing == frozenset()
        assert len(near.asked) == asked


@pytest.mark.parametrize("status", [401, 403])
def test_a_mirror_that_does_not_let_us_in_is_left_for_that_repository(
    registry: MemoryRegistry, server: Served, base: Descriptor, status: int
) -> None:
    registry.add_manifest("team/other", "1", base.media_type, registry.manifests["team/app", "1"][1])
    mirror = MemoryRegistry()
    mirror.add_manifest("team/other", "1", base.media_type, registry.manifests["team/app", "1"][1])
    mirror.fault = lambda asked: error(status, "DENIED", "no") if "team/app" in asked.path else ...
    with (
        served(mirror) as near,
        Client(mirrored(server, near), options=QUICK) as client,
    ):
        pull(client, server, base)
        assert len(near.asked) == 2  # HEAD, and GET for the explanation
        assert client.resolve(ref(server, "team/other:1")) == base
        assert len(near.asked) == 3


def test_a_mirror_that_lacks_an_image_is_asked_for_the_next(server: Served, base: Descriptor) -> None:
    with served(MemoryRegistry()) as near:
        with Client(mirrored(server, near), options=QUICK) as client:
            pull(client, server, base)
        assert near.seen("GET", "blobs")


def test_the_error_tells_of_registry_and_mirror(server: Served) -> None:
    with served(lambda _: Said(503)) as near:
        settings = mirrored(server, near)
        with Client(settings, options=QUICK) as client, pytest.raises(RegistryError) as caught:
            client.resolve(ref(server))
    assert "MANIFEST_UNKNOWN" in caught.value.problem.why
    assert f"mirror {near.host}" in caught.value.problem.why


# -- odds ------------------------------------------------------------------------------------------------------------


def test_one_fault_in_ten_costs_a_fifth_more_bytes_at_most(
    registry: MemoryRegistry, server: Served, small_chunks: Client
) -> None:
    """Each request has a chance of 10% to break somewhere in its body; every transfer still succeeds."""
    dice = random.Random(7)
    blobs = [dice.randbytes(900_000) for _ in range(60)]

    def fault(asked: Asked) -> object:
        if dice.random() > 0.1 or asked.method == "DELETE":
            return ...
        if asked.method != "GET" or "/blobs/sha256" not in asked.path:
            return None
        said = registry.serve(asked)
        said.length, said.cut = len(said.body), dice.randrange(len(said.body) + 1)
        return said if said.status < 300 else None

    registry.fault = fault
    for blob in blobs:
        push(small_chunks, server, blob)
        assert small_chunks.read_blob(ref(server), layer(blob)) == blob
    sent = sum(len(each.body) for each in server.asked)
    assert sent <= 1.2 * sum(map(len, blobs))


def test_every_error_of_httpx_is_translated() -> None:
    import httpx

    def kinds(kind: type[BaseException]) -> Iterator[type[BaseException]]:
        yield kind
        for each in kind.__subclasses__():
            yield from kinds(each)

    roots = (httpx.RequestError, httpx.InvalidURL, httpx.StreamError)
    for kind in (each for root in roots for each in kinds(root)):
        raised = kind.__new__(kind)
        Exception.__init__(raised, "reason")
        with pytest.raises((TransientError, KanifoldError)), transport.translated("http://r.example/v2/"):
            raise raised


def test_a_push_and_a_pull_leave_no_file_descriptor(registry: MemoryRegistry, server: Served) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc to count file descriptors in")

    def round_trip() -> None:
        registry.blobs.clear()
        with Client(options=QUICK) as client:
            push(client, server, BLOB)
            client.read_blob(ref(server), layer(BLOB))

    def ours() -> int:
        links = (os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _there(fd))
        return sum(not link.startswith("socket:") for link in links)

    round_trip()
    before = ours()
    for _ in range(5):
        round_trip()
    assert ours() == before


def _there(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_diagnostics_are_short_and_printable(registry: MemoryRegistry, server: Served, client: Client) -> None:
    errors = [{"code": "X" * 1000, "message": "\x1b[31m" + "y" * 100_00}] * 50
    registry.fault = lambda asked: Said(400, {}, json.dumps({"errors": errors}).encode())
    with pytest.raises(RegistryError) as caught:
        client.manifest(ref(server))
    assert len(caught.value.problem.why) < 500
    assert caught.value.problem.why.isprintable()

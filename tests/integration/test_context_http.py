"""Downloads from a real server: names, times, checksums, resuming, revalidating, and servers that misbehave."""

from __future__ import annotations

import gzip
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from registry_server import Asked, Said, digest_of, self_signed, served

from executor.context import http
from executor.retry import RetryPolicy
from platforms.errors import ContextError, Interrupted, StoreError

QUICK = RetryPolicy(first_delay=0.001, longest_delay=0.002)
OLD = "Sun, 06 Nov 1994 08:49:37 GMT"
BODY = bytes(range(256)) * 4096


def gives(body: bytes = BODY, **headers: str) -> Callable[[Asked], Said]:
    return lambda _: Said(headers={key.replace("_", "-"): text for key, text in headers.items()}, body=body)


def fetch(url: str, directory: Path, **options: object) -> http.Downloaded:
    how = {"retry": QUICK} | {name: options.pop(name) for name in ("cancel", "retry") if name in options}
    return http.download(url, str(directory), http.RequestOptions(**how), **options)  # type: ignore[arg-type]


def test_a_file_arrives_with_name_mode_time_and_digest(tmp_path: Path) -> None:
    with served(gives(Last_Modified=OLD, ETag='"v1"')) as server:
        got = fetch(f"{server.url}/dir/some%20file?x=1", tmp_path)
    path = tmp_path / "content"
    assert path.read_bytes() == BODY
    assert path.stat().st_mode & 0o7777 == 0o600
    assert path.stat().st_mtime == 784111777
    assert got == http.Downloaded(
        str(path), "some file", 784111777, digest_of(BODY), len(BODY), http.Validators('"v1"', OLD, str(len(BODY)))
    )
    assert server.asked[0].headers["accept-encoding"] == "identity"


def test_a_file_without_a_date_is_of_1970(tmp_path: Path) -> None:
    with served(gives()) as server:
        assert fetch(server.url, tmp_path).mtime is None
    assert (tmp_path / "content").stat().st_mtime == 0


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    with served(gives(b"")) as server:
        assert fetch(f"{server.url}/empty", tmp_path).size == 0
    assert (tmp_path / "content").read_bytes() == b""


def test_the_checksum_is_verified(tmp_path: Path) -> None:
    with served(gives()) as server:
        with pytest.raises(ContextError) as caught:
            fetch(f"{server.url}/wrong", tmp_path, checksum=digest_of(b"else"))
        fetch(f"{server.url}/right", tmp_path, checksum=digest_of(BODY))
    assert digest_of(BODY) in str(caught.value)
    assert digest_of(b"else") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["content"]


@pytest.mark.parametrize("checksum", ["sha256:12", "md5:" + "0" * 32, "sha256:" + "A" * 64, "0" * 64])
def test_a_checksum_that_is_none_is_refused_before_asking(tmp_path: Path, checksum: str) -> None:
    with served(gives()) as server, pytest.raises(ContextError, match="checksum"):
        fetch(f"{server.url}/x", tmp_path, checksum=checksum)
    assert server.asked == []


@pytest.mark.parametrize("url", ["ftp://h/x", "file:///etc/passwd", "http:///x", "http://[z]/"])
def test_only_addresses_of_http_are_asked(tmp_path: Path, url: str) -> None:
    with pytest.raises(ContextError, match="no address"):
        fetch(url, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "remedy"), [(404, "check the URL"), (401, "HTTP_AUTH_TOKEN_127.0.0.1"), (500, "later")]
)
def test_a_refusal_names_the_status(tmp_path: Path, status: int, remedy: str) -> None:
    with served(lambda _: Said(status)) as server, pytest.raises(ContextError) as caught:
        fetch(f"{server.url}/x?secret=1", tmp_path)
    assert str(status) in str(caught.value)
    assert "secret" not in str(caught.value)
    assert remedy in caught.value.problem.remedy or status == 500
    assert list(tmp_path.iterdir()) == []


def test_a_moment_of_weakness_is_waited_out(tmp_path: Path) -> None:
    answers = iter([Said(503), Said(429, {"Retry-After": "0"}), None, Said(body=BODY)])
    with served(lambda _: next(answers)) as server:
        assert fetch(f"{server.url}/x", tmp_path).digest == digest_of(BODY)
    assert len(server.asked) == 4


def test_nobody_waits_for_hours(tmp_path: Path) -> None:
    with served(lambda _: Said(503, {"Retry-After": "9999"})) as server, pytest.raises(ContextError, match="9999 s"):
        fetch(f"{server.url}/x", tmp_path)
    assert len(server.asked) == 1


def test_a_host_that_is_not_there(tmp_path: Path) -> None:
    with served(gives()) as server:
        url = f"{server.url}/x"
    with pytest.raises(ContextError, match="tried 3 times") as caught:
        fetch(url, tmp_path)
    assert caught.value.problem.remedy


# -- taking up what broke off ----------------------------------------------------------------------------------------


def breaking(etag: str, *, versions: tuple[bytes, ...] = (BODY,)) -> Callable[[Asked], Said]:
    """Breaks off after 300,000 bytes, does ranges, and has the next version of the file after the first answer."""
    times = iter(range(100))

    def answer(asked: Asked) -> Said:
        number = next(times)
        body = versions[min(number, len(versions) - 1)]
        headers = {"ETag": f'{etag}{body[0]}"'} if etag else {}
        wanted = asked.headers.get("range")
        if wanted is None or asked.headers.get("if-range") != headers.get("ETag"):
            return Said(200, headers, body, cut=300_000 if number == 0 else None, length=len(body))
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return Said(206, headers, body[start:])

    return answer


def test_a_broken_download_goes_on_where_it_broke(tmp_path: Path) -> None:
    with served(breaking('"')) as server:
        got = fetch(f"{server.url}/x", tmp_path, checksum=digest_of(BODY))
    assert got.size == len(BODY)
    assert int(server.asked[1].headers["range"].removeprefix("bytes=").rstrip("-")) > 0


@pytest.mark.parametrize("etag", ["", 'W/"'])
def test_without_a_strong_validator_it_starts_over(tmp_path: Path, etag: str) -> None:
    with served(breaking(etag)) as server:
        fetch(f"{server.url}/x", tmp_path, checksum=digest_of(BODY))
    assert "range" not in server.asked[1].headers


def test_parts_of_two_versions_are_never_put_together(tmp_path: Path) -> None:
    other = b"\1" + BODY[:0:-1]
    with served(breaking('"', versions=(BODY, other))) as server:
        fetch(f"{server.url}/x", tmp_path, checksum=digest_of(other))
    assert (tmp_path / "content").read_bytes() == other


@pytest.mark.parametrize("status", [206, 416])
def test_a_wrong_range_starts_over(tmp_path: Path, status: int) -> None:
    def answer(asked: Asked) -> Said:
        if len(server.asked) == 1:
            return Said(200, {"ETag": '"a"'}, BODY, cut=300_000, length=len(BODY))
        if "range" in asked.headers:
            return Said(status, {"Content-Range": "bytes 1-2/3"}, b"xy")
        return Said(body=BODY)

    with served(answer) as server:
        fetch(f"{server.url}/x", tmp_path, checksum=digest_of(BODY))


def test_a_server_that_always_breaks_is_given_up(tmp_path: Path) -> None:
    with served(lambda _: Said(body=BODY, cut=100_000)) as server, pytest.raises(ContextError, match="tried"):
        fetch(f"{server.url}/x", tmp_path)
    assert len(server.asked) <= 2 * QUICK.attempts
    assert list(tmp_path.iterdir()) == []


def test_an_endless_file_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LIMIT", 1 << 20)
    endless = lambda _: Said(stream=iter(lambda: bytes(1 << 16), b""))  # noqa: E731
    with served(endless) as server, pytest.raises(ContextError, match="larger than"):
        fetch(f"{server.url}/x", tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- content codings -------------------------------------------------------------------------------------------------


def test_gzip_that_nobody_asked_for_is_undone(tmp_path: Path) -> None:
    with served(gives(gzip.compress(BODY), Content_Encoding="gzip")) as server:
        assert fetch(f"{server.url}/x", tmp_path).digest == digest_of(BODY)


def test_gzip_that_is_the_file_stays(tmp_path: Path) -> None:
    packed = gzip.compress(BODY)
    with served(gives(packed, Content_Type="application/gzip")) as server:
        assert fetch(f"{server.url}/x.gz", tmp_path).digest == digest_of(packed)


def test_a_gzip_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LIMIT", 1 << 20)
    bomb = gives(gzip.compress(bytes(64 << 20)), Content_Encoding="gzip")
    with served(bomb) as server, pytest.raises(ContextError, match="more than"):
        fetch(f"{server.url}/x", tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- redirects and trust ---------------------------------------------------------------------------------------------


def test_a_redirect_does_not_change_the_name(tmp_path: Path) -> None:
    def answer(asked: Asked) -> Said:
        return Said(302, {"Location": "/elsewhere?signed=1"}) if asked.path == "/named" else Said(body=BODY)

    with served(answer) as server:
        assert fetch(f"{server.url}/named", tmp_path).name == "named"


def test_circles_end(tmp_path: Path) -> None:
    with served(lambda _: Said(302, {"Location": "/x"})) as server, pytest.raises(ContextError, match="circles"):
        fetch(f"{server.url}/x", tmp_path)
    assert len(server.asked) == http.REDIRECTS + 1


@pytest.mark.parametrize("address", ["http://169.254.169.254/latest/", "http://[fe80::1]/", "http://0.0.0.0/"])
def test_a_redirect_into_the_machine_room_is_refused(tmp_path: Path, address: str) -> None:
    with served(lambda _: Said(302, {"Location": address})) as server, pytest.raises(ContextError, match="link-local"):
        fetch(f"{server.url}/x", tmp_path)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    target = tmp_path / "target"
    target.mkdir()
    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"https://127.0.0.1:{server.server_port}/cert.pem"
        try:
            with pytest.raises(ContextError, match="cannot trust") as caught:
                fetch(url, target)
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            fetch(url, target)
        finally:
            server.shutdown()
            thread.join()
    assert "SSL_CERT_FILE" in caught.value.problem.remedy
    assert (target / "content").read_bytes() == certificate.read_bytes()


# -- asking again ----------------------------------------------------------------------------------------------------


def changing(state: dict[str, str], *, heeds: bool) -> Callable[[Asked], Said]:
    """A file whose headers are ``state``; ``heeds`` conditions, or ignores them as some servers do."""

    def answer(asked: Asked) -> Said:
        headers = dict(state)
        same = "ETag" in state and asked.headers.get("if-none-match") == state["ETag"]
        same = same or ("ETag" not in state and asked.headers.get("if-modified-since") == state.get("Last-Modified"))
        return Said(304, headers) if heeds and same else Said(200, headers, BODY)

    return answer


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
def test_one_small_question_tells_whether_a_file_changed(tmp_path: Path, header: str, heeds: bool) -> None:
    state = {header: '"one"' if header == "ETag" else OLD}
    with served(changing(state, heeds=heeds)) as server:
        got = fetch(f"{server.url}/x", tmp_path)
        assert http.unchanged(f"{server.url}/x", got.validators)
        assert [each.method for each in server.asked] == ["GET", "HEAD"]
        state[header] = '"two"' if header == "ETag" else "Mon, 07 Nov 1994 08:49:37 GMT"
        assert not http.unchanged(f"{server.url}/x", got.validators)


def test_a_weak_tag_is_the_same_tag() -> None:
    with served(gives(ETag='W/"a"')) as server:
        assert http.unchanged(f"{server.url}/x", http.Validators('"a"'))


def test_a_file_not_older_than_the_answer_is_asked_for_again(tmp_path: Path) -> None:
    with served(gives(Last_Modified="Wed, 01 Jan 2200 00:00:00 GMT")) as server:
        got = fetch(f"{server.url}/x", tmp_path)
        assert not http.unchanged(f"{server.url}/x", got.validators)
    assert len(server.asked) == 1


@pytest.mark.parametrize("said", [Said(404), Said(405), Said(403), Said(200), Said(500)])
def test_in_doubt_a_file_has_changed(said: Said) -> None:
    with served(lambda _: said) as server:
        assert not http.unchanged(f"{server.url}/x", http.Validators('"a"'))


def test_a_server_that_is_gone_is_an_error() -> None:
    with served(gives()) as server:
        url = f"{server.url}/x?signature=abc"
    with pytest.raises(ContextError) as caught:
        http.unchanged(url, http.Validators('"a"'), http.RequestOptions(retry=QUICK))
    assert "abc" not in str(caught.value)


# -- stopping, and disks ---------------------------------------------------------------------------------------------


def test_a_download_stops_when_it_is_told_to(tmp_path: Path) -> None:
    cancel: Future[None] = Future()
    with served(lambda _: Said(stream=iter(lambda: bytes(1 << 16), b""))) as server, pytest.raises(Interrupted):
        fetch(f"{server.url}/x", tmp_path, cancel=cancel, progress=lambda *_: cancel.done() or cancel.set_result(None))
    assert list(tmp_path.iterdir()) == []


def test_waiting_stops_when_it_is_told_to(tmp_path: Path) -> None:
    cancel: Future[None] = Future()
    asked = threading.Event()

    def answer(_: Asked) -> Said:
        asked.set()
        return Said(503)

    def stop() -> None:
        asked.wait()
        cancel.set_result(None)

    stopper = threading.Thread(target=stop)
    stopper.start()
    with served(answer) as server, pytest.raises(Interrupted):
        fetch(f"{server.url}/x", tmp_path, cancel=cancel, retry=RetryPolicy(first_delay=600, longest_delay=600))
    stopper.join()


def test_progress_ends_at_the_size(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with served(gives()) as server:
        fetch(f"{server.url}/x", tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[0][1] == len(BODY)
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "canary").write_text("alive")
    (tmp_path / "content").symlink_to("canary")
    with served(gives()) as server, pytest.raises(StoreError):
        fetch(f"{server.url}/x", tmp_path)
    assert (tmp_path / "canary").read_text() == "alive"
    assert (tmp_path / "content").is_symlink()

"""Objects in GitHub's cache service for workflows, as actions/cache uses it.

Version 2 of its protocol is Twirp with JSON (``github.actions.results.api.v1.CacheService`` of actions/toolkit): the
service gives out signed URLs of Azure Blob Storage, to which objects are written as blocks, and from which they are
read. Version 1, of GitHub Enterprise Server and of act, has requests of its own for all of that.

An object can be written once and never be replaced. Therefore a key here is the beginning of a key there, which ends
with a digest of the content, and is asked for as a prefix (``restore_keys``): the service returns the newest. Reading
an object marks it as used; the service removes what was not used for a week, and the least recently used first if a
repository has more than it may.

Who may read and write is in the token, as *scopes*: refs of the repository with permissions. A pull request reads what
its base and its own runs have written, and may write for its own runs only, or not at all if it comes from a fork.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from executor.objects import workflow_token
from executor.objects.cache_account import Account
from executor.objects.object_store import PIECE, SILENCE, StoredObject, shown
from executor.retry import RETRYABLE_STATUSES, Attempts, RetryPolicy, StallClock, TransientError
from executor.solver.lazy import Lazy
from executor.transport import (
    Cancel,
    HTTPRequest,
    HTTPResponse,
    TransientStatus,
    Transport,
    Trust,
    check_target,
    origin_of,
)
from platforms import debug, decoding
from platforms.errors import CacheError, RegistryError, printable

if TYPE_CHECKING:
    from executor.protocol import CacheInActions

_SERVICE: Final = "/twirp/github.actions.results.api.v1.CacheService/"
_CREATE: Final = "CreateCacheEntry"
_FIND: Final = "GetCacheEntryDownloadURL"
_API: Final = "/_apis/artifactcache/"
_V1_ACCEPT: Final = "application/json;api-version=6.0-preview.1"
_VERSION: Final = hashlib.sha256(b"kanifold cache 1").hexdigest()
"""What the service calls a version: entries of another one are not found. A change of the format needs another."""
_LIST_LIMIT: Final = 1 << 20
_PAGES: Final = 50
"""Pages of a list, of 100 entries each, that are read: asking for single entries is faster than more."""
_ANSWER_LIMIT: Final = 256 << 10
_BLOCK: Final = 2 * PIECE
"""Bytes of a block of a blob, which is held in memory: there may be 50,000 of up to 4,000 MiB (Put Block)."""
_ONE_REQUEST: Final = _BLOCK
"""Maximum size of a blob that is written in one request (Put Blob)."""
_MARK: Final = 16
"""Hexadecimal digits of the digest at the end of a key."""
_READING: Final = RetryPolicy(attempts=3, first_delay=0.3, longest_delay=2.0, longest_retry_after=10.0)
_READING_SECONDS: Final = 20.0
"""How long after its start a request that a step waits for is not tried again."""
_WRITING: Final = RetryPolicy(attempts=4, first_delay=0.3, longest_delay=2.0)
"""GitHub allows so many uploads a minute, and says how long to wait."""
_PIECE_SECONDS: Final = 60.0
"""How long the transfer of ``PIECE`` bytes may take."""
_REFUSED: Final = frozenset({401, 403})


class _Answer(msgspec.Struct, frozen=True):
    """An answer of the service, in any version and to any request."""

    ok: bool = False
    message: str = ""
    msg: str = ""
    code: str = ""
    signed_upload_url: str = ""
    signed_download_url: str = ""
    matched_key: str = ""
    archive_location: str = msgspec.field(default="", name="archiveLocation")
    cache_key: str = msgspec.field(default="", name="cacheKey")
    cache_id: int = msgspec.field(default=0, name="cacheId")


class _Call(msgspec.Struct, frozen=True):
    """A request to the service."""

    method: str
    path: str
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)
    writes: bool = True
    """Whether it is part of an export, which can wait, and not of a look-up, for which a step waits."""


class _Pace:
    """The pace of a download, over all attempts: a layer that comes slowly is given up, as the step may be faster."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._size = 0
        self._begun = time.monotonic()

    def check(self, size: int) -> None:
        """Note that ``size`` more bytes came. Raises ``CacheError`` when ``PIECE`` bytes take longer than
        ``_PIECE_SECONDS``."""
        self._size += size
        now = time.monotonic()
        if self._size >= PIECE:
            self._size, self._begun = 0, now
        elif now - self._begun > _PIECE_SECONDS:
            why = f"the cache service is slow: {self._size} bytes in {_PIECE_SECONDS:g} s"
            raise CacheError(self._what, why=why)


class _Listed(msgspec.Struct, frozen=True):
    """An entry in the list of GitHub's REST API."""

    ref: str
    key: str
    version: str


class _List(msgspec.Struct, frozen=True):
    actions_caches: tuple[_Listed, ...]


_LIST: Final[msgspec.json.Decoder[_List]] = msgspec.json.Decoder(_List)
_ANSWER: Final[msgspec.json.Decoder[_Answer]] = msgspec.json.Decoder(_Answer)


def in_actions(location: CacheInActions, account: Account, trust: Trust, cancel: Cancel) -> ActionsObjects:
    """Return the objects of ``location``."""
    return ActionsObjects(location, account, Transport(trust, cancel), trust)


class ActionsObjects:
    """The entries of the cache service at ``location``."""

    def __init__(self, location: CacheInActions, account: Account, transport: Transport, trust: Trust) -> None:
        self._url = location.url.rstrip("/")
        self._version = location.version
        self._silence = min(SILENCE, location.pace.patience)
        self._account = account
        self._transport = transport
        self._trust = trust
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        """URLs of objects that were looked for, by key."""
        self._superseded: set[str] = set()
        self._list_url = location.list_url
        self._listed = Lazy(self._list_keys)

    def get(self, key: str, limit: int) -> tuple[bytes, StoredObject] | None:
        """A URL that has expired is asked for once more."""
        reply = None
        while (url := self._look_up(key)) is not None:
            again = reply is not None
            reply = self._read(url, f"cannot read {shown(key)}", limit)
            if reply.status == 200:
                return reply.body, StoredObject(key, len(reply.body), time.time())
            if again or reply.status not in _REFUSED:
                raise _refused(f"cannot read {shown(key)}", reply)
        return None

    def find(self, key: str) -> StoredObject | None:
        return None if self._look_up(key) is None else StoredObject(key, -1, time.time())

    def stream(self, key: str, size: int, offset: int) -> Iterator[bytes]:
        """An interrupted answer is continued; a URL that has expired is asked for once more."""
        with self._lock:
            url = self._known.get(key)
        attempts, pace = self._reading(), _Pace(f"cannot read {shown(key)}")
        fresh = url is None
        while offset < size:
            if url is None:
                url = self._look_up(key)
                if url is None:
                    raise CacheError(f"cannot read {shown(key)}", why="the cache service does not have it any more")
            with _translated(f"cannot read {shown(key)}"), attempts:
                response, _ = self._transport.open(self._download(url, offset), redirects=0)
                with closing(response):
                    if response.status_code in _REFUSED and not fresh:
                        url, fresh = None, True
                        continue
                    reply = HTTPResponse(response.status_code, response.headers, b"", "")
                    if reply.status in RETRYABLE_STATUSES:
                        raise TransientStatus(reply)
                    if reply.status not in {200, 206}:
                        raise _refused(f"cannot read {shown(key)}", reply)
                    skip = offset if reply.status == 200 else 0
                    for chunk in self._transport.chunks(response):
                        pace.check(len(chunk))
                        part, skip = chunk[skip:], max(0, skip - len(chunk))
                        if part:
                            offset += len(part)
                            attempts.progressed()
                            yield part
                if offset < size:
                    raise TransientError("the answer ended too early")

    def put(self, key: str, content: Callable[[], Iterator[bytes]], size: int) -> None:
        what = f"cannot write {shown(key)}"
        self._check_writable(what)
        mark = os.urandom(_MARK // 2).hex() if key in self._superseded else _mark(content())
        whole = f"{key}-{mark}"
        if self._version == 1:
            self._put_v1(what, whole, content, size)
            return
        made = self._ask(_CREATE, what, {"key": whole, "version": _VERSION})
        if made is None:
            return  # somebody has written it, or is about to
        if not made.signed_upload_url:
            raise CacheError(what, why=f"the cache service refused: {printable(made.message or 'without a reason')}")
        self._upload(what, self._checked(made.signed_upload_url), content, size)
        done = self._ask("FinalizeCacheEntryUpload", what, {"key": whole, "version": _VERSION, "size_bytes": str(size)})
        if done is None or not done.ok:
            reason = printable("" if done is None else done.message) or "without a reason"
            raise CacheError(what, why=f"the cache service refused: {reason}")

    def touch(self, found: StoredObject) -> None:
        """Nothing: looking for an object marks it as used."""

    def list(self, directory: str) -> Iterator[StoredObject]:
        """Yield nothing: the service bounds its caches by itself, and has no list for workflows."""
        return iter(())

    def delete(self, keys: Sequence[str]) -> None:
        """Give what is written under ``keys`` from now on other ends of keys, as nothing can be removed: what is newer
        is found."""
        with self._lock:
            self._superseded.update(keys)

    def _read(self, url: str, what: str, limit: int) -> HTTPResponse:
        attempts = self._reading()
        while True:
            with _translated(what), attempts:
                reply, _ = self._transport.call(self._download(url, 0), limit, redirects=0)
                if reply.status in RETRYABLE_STATUSES:
                    raise TransientStatus(reply)
                return reply

    def _reading(self) -> Attempts:
        return Attempts(_READING, self._transport.pause, clock=StallClock(_READING_SECONDS))

    # -- asking the service

    def _look_up(self, key: str) -> str | None:
        """Return a URL of the newest object whose key begins with ``key``; None if there is none."""
        if self._list_url and (listed := self._listed()) is not None and key not in listed:
            return None
        what, prefix = f"cannot look for {shown(key)}", f"{key}-"
        if self._version == 1:
            from urllib.parse import urlencode

            asked = urlencode({"keys": prefix, "version": _VERSION})
            reply = self._call(what, _Call("GET", f"{_API}cache?{asked}", writes=False))
            if reply.status == 204:
                return None
            answer = self._decoded(what, reply)
            matched, url = answer.cache_key, answer.archive_location
        else:
            body = {"key": prefix, "restore_keys": [prefix], "version": _VERSION}
            found = self._ask(_FIND, what, body)
            if found is None or not found.ok:
                return None
            matched, url = found.matched_key, found.signed_download_url
        if not matched.lower().startswith(prefix.lower()):
            raise CacheError(what, why=f"the cache service answered with another key: {printable(matched, 80)}")
        checked = self._checked(url)
        with self._lock:
            self._known[key] = checked
        return checked

    def _list_keys(self) -> frozenset[str] | None:
        """Return the keys of all objects that the token may read, without their ends; None if they cannot be listed.

        It spares a request for each that does not exist. What other jobs write from now on is not found.
        """
        known = workflow_token.scopes(self._token("cannot list the cache"))
        refs = None if known is None else {each.scope for each in known}
        found: set[str] = set()
        for page in range(1, _PAGES + 1):
            url = _with_query(self._list_url, key="kanifold-", per_page="100", page=str(page))
            headers = (("Accept", "application/vnd.github+json"), ("X-GitHub-Api-Version", "2022-11-28"))
            request = HTTPRequest("GET", url, headers, f"Bearer {self._account().secret}", read_timeout=self._silence)
            try:
                with _translated("cannot list the cache"):
                    reply, _ = self._transport.call(request, _LIST_LIMIT, redirects=0)
                listed = decoding.decode(_LIST, reply.body).actions_caches if reply.status == 200 else None
            except (CacheError, msgspec.DecodeError) as error:
                debug.log("remote cache not listed", why=str(error))
                return None
            if listed is None:
                debug.log("remote cache not listed", why=_said(reply))
                return None
            found.update(
                each.key.rpartition("-")[0]
                for each in listed
                if each.version == _VERSION and (refs is None or each.ref in refs)
            )
            if len(listed) < 100:
                return frozenset(found)
        return None

    def _ask(self, method: str, what: str, body: dict[str, Any]) -> _Answer | None:
        """Return the answer to a call of the Twirp service; None if there is no such entry, or if there is one already
        that was to be created."""
        call = _Call("POST", f"{_SERVICE}{method}", msgspec.json.encode(body), writes=method != _FIND)
        reply = self._call(what, call)
        if reply.status not in {404, 409}:
            return self._decoded(what, reply)
        if _code(reply) == {_FIND: "not_found", _CREATE: "already_exists"}.get(method):
            return None
        raise _refused(what, reply)

    def _call(self, what: str, call: _Call) -> HTTPResponse:
        """Return the reply of the service, after retries. Raises ``CacheError`` unless it is one of success, or says
        that something does not exist, or exists already."""
        token = self._token(what)
        accept = _V1_ACCEPT if self._version == 1 else "application/json"
        request = HTTPRequest(
            call.method,
            f"{self._url}{call.path}",
            headers=(("Accept", accept), *call.headers),
            authorization=f"Bearer {token}",
            content=None if call.body is None else lambda: iter((call.body or b"",)),
            length=len(call.body or b""),
            read_timeout=self._silence,
            stall_timeout=self._silence,
        )
        attempts = Attempts(_WRITING, self._transport.pause) if call.writes else self._reading()
        while True:
            with _translated(what), attempts:
                reply, _ = self._transport.call(request, _ANSWER_LIMIT, redirects=0)
                if reply.status in RETRYABLE_STATUSES:
                    raise TransientStatus(reply, _said(reply))
                if reply.status not in {200, 201, 204, 404, 409}:
                    raise _refused(what, reply)
                return reply

    def _token(self, what: str) -> str:
        if not self._url:
            raise CacheError(
                what,
                why="there is no cache service: neither ACTIONS_RESULTS_URL nor ACTIONS_CACHE_URL is set",
                remedy="in a workflow, pass them on to the step (crazy-max/ghaction-github-runtime), "
                "or give url_v2= and token=",
            )
        token = self._account().token
        if workflow_token.is_expired(token):
            raise CacheError(what, why="the token of this job has expired", remedy="run the job again")
        return token

    def _check_writable(self, what: str) -> None:
        if not workflow_token.may_write(self._token(what)):
            raise CacheError(
                what,
                why="the token of this job may only read, as that of a pull request from a fork",
                remedy="leave --cache-to out there: what the base branch has written is used all the same",
            )

    def _download(self, url: str, offset: int) -> HTTPRequest:
        headers = (("Range", f"bytes={offset}-"),) if offset else ()
        return HTTPRequest("GET", url, headers=headers, read_timeout=self._silence, stall_timeout=self._silence)

    def _checked(self, url: str) -> str:
        """Return ``url``, which the service has sent, if it is one that it may send us to. Raises ``CacheError``."""
        try:
            service = origin_of(self._url)
            check_target(origin_of(url), service, service, self._trust)
        except RegistryError as error:
            raise CacheError(
                "the cache service sent us to an address that is not used", why=error.problem.why or error.problem.what
            ) from error
        return url

    def _decoded(self, what: str, reply: HTTPResponse) -> _Answer:
        try:
            return decoding.decode(_ANSWER, reply.body)
        except msgspec.DecodeError as error:
            raise CacheError(what, why=f"the cache service sent what is no answer: {error}") from error

    # -- writing

    def _upload(self, what: str, url: str, content: Callable[[], Iterator[bytes]], size: int) -> None:
        """Write the blob of a signed ``url``, in one request or as blocks (Put Blob, Put Block, Put Block List)."""
        kind = (("x-ms-blob-type", "BlockBlob"), ("Content-Type", "application/octet-stream"))
        if size <= _ONE_REQUEST:
            self._send(what, "PUT", url, b"".join(content()), kind)
            return
        blocks: list[str] = []
        for block in _blocks(content()):
            name = base64.b64encode(b"%08d" % len(blocks)).decode()
            self._send(what, "PUT", _with_query(url, comp="block", blockid=name), block)
            blocks.append(name)
        listed = "".join(f"<Latest>{name}</Latest>" for name in blocks)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()
        self._send(what, "PUT", _with_query(url, comp="blocklist"), body, (("Content-Type", "application/xml"),))

    def _put_v1(self, what: str, key: str, content: Callable[[], Iterator[bytes]], size: int) -> None:
        body = msgspec.json.encode({"key": key, "version": _VERSION, "cacheSize": size})
        reply = self._call(what, _Call("POST", f"{_API}caches", body))
        if reply.status == 409:
            return
        entry = f"{_API}caches/{self._decoded(what, reply).cache_id}"
        begin = 0
        for block in _blocks(content()):
            span = ("Content-Range", f"bytes {begin}-{begin + len(block) - 1}/*")
            sent = self._call(what, _Call("PATCH", entry, block, (("Content-Type", "application/octet-stream"), span)))
            if sent.status in {404, 409}:
                raise _refused(what, sent)
            begin += len(block)
        done = self._call(what, _Call("POST", entry, msgspec.json.encode({"size": size})))
        if done.status in {404, 409}:
            raise _refused(what, done)

    def _send(self, what: str, method: str, url: str, data: bytes, headers: tuple[tuple[str, str], ...] = ()) -> None:
        request = HTTPRequest(
            method,
            url,
            headers=headers,
            content=lambda: iter((data,)),
            length=len(data),
            stall_timeout=self._silence,
        )
        attempts = Attempts(_WRITING, self._transport.pause)
        while True:
            with _translated(what), attempts:
                reply, _ = self._transport.call(request, _ANSWER_LIMIT, redirects=0)
                if reply.status in RETRYABLE_STATUSES:
                    raise TransientStatus(reply, _said(reply))
                if not 200 <= reply.status < 300:
                    raise _refused(what, reply)
                return


def _blocks(content: Iterator[bytes]) -> Iterator[bytes]:
    """Yield ``content`` in blocks of ``_BLOCK`` bytes, the last of which may be smaller."""
    held = bytearray()
    for piece in content:
        held += piece
        while len(held) >= _BLOCK:
            yield bytes(held[:_BLOCK])
            del held[:_BLOCK]
    if held:
        yield bytes(held)


def _mark(content: Iterator[bytes]) -> str:
    """Return the end of the key of an object, from the beginning of its ``content``: a layer's key has its digest."""
    first = next(content, b"")
    return hashlib.sha256(first).hexdigest()[:_MARK]


def _with_query(url: str, **values: str) -> str:
    from urllib.parse import urlencode

    return f"{url}{'&' if '?' in url else '?'}{urlencode(values)}"


def _code(reply: HTTPResponse) -> str:
    """Return the code of an error of Twirp; "" if ``reply`` is none."""
    try:
        return decoding.decode(_ANSWER, reply.body).code
    except msgspec.DecodeError:
        return ""


def _said(reply: HTTPResponse) -> str:
    """Return the status of ``reply``, and what the service said: Twirp's ``msg``, or the beginning of the text."""
    try:
        found = decoding.decode(_ANSWER, reply.body)
        text = found.msg or found.message or found.code
    except msgspec.DecodeError:
        text = reply.body[:300].decode("utf-8", "replace")
    return f"status {reply.status}{': ' if text else ''}{printable(text)}"


def _refused(what: str, reply: HTTPResponse) -> CacheError:
    if reply.status in _REFUSED:
        return CacheError(
            what,
            why=f"the cache service denied access ({_said(reply)})",
            remedy="the token of a job lasts as long as the job, and that of a pull request from a fork may only read",
        )
    return CacheError(what, why=f"the cache service refused ({_said(reply)})")


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Raise ``CacheError`` for the errors of the transport."""
    try:
        yield
    except TransientError as error:
        tries = f" (tried {error.attempts} times)" if error.attempts > 1 else ""
        raise CacheError(what, why=f"the cache service: {error}{tries}") from error
    except RegistryError as error:
        raise CacheError(what, why=str(error)) from error

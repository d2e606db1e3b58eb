"""Objects in a bucket of S3, or in a container of Azure Blob Storage, by the library obstore.

Requests are signed, sent and retried by the library, which is compiled and loads in a hundredth of a second. Large
objects are sent and requested in pieces, so that the time that a request may take bounds how slow a service may be.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from executor.objects.cache_account import Account
from executor.objects.object_store import PIECE, SILENCE, StoredObject, shown
from platforms import debug
from platforms.errors import CacheError, printable

if TYPE_CHECKING:
    import obstore
    from obstore.store import ClientConfig, RetryConfig

    from executor.protocol import CacheInBucket, CacheInContainer

_PIECE_SECONDS: Final = 60.0
"""How long the transfer of one piece may take."""
_CONNECT_SECONDS: Final = 5.0
_LISTED: Final = 100
"""How many objects of a list are taken at a time; a request brings up to 1,000."""
_RETRIES: Final = 2
_RETRY_SECONDS: Final = 20.0
"""How long after its start a request is not tried again."""
_COPY_SUFFIX: Final = ".touched"
_STATUS: Final = re.compile(r"status code: (\d+[\w ]*)")
_TIME: Final = re.compile(r" in ([\d.]+m?s)\b")
"""How long the library has tried, in the texts of its errors."""
_NO_PLACE: Final = ("NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted")
"""Codes of services for a bucket or container that does not exist: the status is that of an object that does not."""


def in_bucket(location: CacheInBucket, account: Account) -> BucketObjects:
    """Return the objects in the bucket of ``location``. Raises ``CacheError`` without the library."""
    made = _library()
    from obstore.store import S3Store

    def credential() -> Any:
        found = account()
        return {
            "access_key_id": found.key_id,
            "secret_access_key": found.secret,
            "token": found.token or None,
            "expires_at": _until(found.seconds),
        }

    store = S3Store(
        location.bucket,
        region=location.region,
        virtual_hosted_style_request=not location.path_style,
        client_options=_client(location.endpoint, location.pace.patience),
        retry_config=_retries(),
        credential_provider=credential,
        config={"endpoint": _endpoint(location)} if location.endpoint else {},
    )
    return BucketObjects(made, store, location.name)


def in_container(location: CacheInContainer, account: Account) -> BucketObjects:
    """Return the objects in the container of ``location``. Raises ``CacheError`` without the library."""
    made = _library()
    from obstore.store import AzureStore

    def credential() -> Any:
        found = account()
        expires = _until(found.seconds)
        if found.secret:
            return {"access_key": found.secret, "expires_at": expires}
        return {"token": found.token, "expires_at": expires}

    store = AzureStore(
        location.container,
        account_name=location.account,
        endpoint=location.account_url,
        client_options=_client(location.account_url, location.pace.patience),
        retry_config=_retries(),
        credential_provider=credential,
    )
    return BucketObjects(made, store, location.name)


class BucketObjects:
    """The objects in ``store``, of which errors say that it is ``name``."""

    def __init__(self, library: Any, store: obstore.store.ObjectStore, name: str) -> None:
        self._library = library
        self._store = store
        self._name = name

    def get(self, key: str, limit: int) -> tuple[bytes, StoredObject] | None:
        try:
            with self._translated(f"cannot read {shown(key)}"):
                found = self._library.get(self._store, key)
                meta = found.meta
                if meta["size"] > limit:
                    raise CacheError(f"{self._name} has something too large", why=f"{key} exceeds {limit} bytes")
                return bytes(found.bytes()), _described(meta)
        except FileNotFoundError:
            return None

    def find(self, key: str) -> StoredObject | None:
        try:
            with self._translated(f"cannot look for {shown(key)}"):
                return _described(self._library.head(self._store, key))
        except FileNotFoundError:
            return None

    def stream(self, key: str, size: int, offset: int) -> Iterator[bytes]:
        while offset < size:
            with self._translated(f"cannot read {shown(key)}"):
                piece = bytes(self._library.get_range(self._store, key, start=offset, length=min(PIECE, size - offset)))
            if not piece:
                return
            offset += len(piece)
            yield piece

    def put(self, key: str, content: Callable[[], Iterator[bytes]], size: int) -> None:
        with self._translated(f"cannot write {shown(key)}"):
            # Concurrent parts would each be held in memory; layers are sent concurrently already.
            self._library.put(
                self._store,
                key,
                content() if size > PIECE else b"".join(content()),
                use_multipart=size > PIECE,
                chunk_size=PIECE,
                max_concurrency=2,
            )

    def touch(self, found: StoredObject) -> None:
        """S3 does not copy an object to itself (CopyObject), so it is copied there and back; nothing is transferred."""
        copy = f"{found.key}{_COPY_SUFFIX}"
        with self._translated(f"cannot touch {shown(found.key)}"):
            self._library.copy(self._store, found.key, copy)
            self._library.copy(self._store, copy, found.key)
            self._library.delete(self._store, copy)

    def list(self, directory: str) -> Iterator[StoredObject]:
        with self._translated(f"cannot list {directory}"):
            for some in self._library.list(self._store, directory, chunk_size=_LISTED):
                yield from map(_described, some)

    def delete(self, keys: Sequence[str]) -> None:
        try:
            with self._translated("cannot remove what is too old"):
                self._library.delete(self._store, list(keys))
        except FileNotFoundError:  # another job was faster
            pass

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Raise ``CacheError`` for the library's errors, and ``FileNotFoundError`` for an object that is not there."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        began, outcome = time.monotonic(), "failed"
        try:
            yield
            outcome = "done"
        except FileNotFoundError as error:
            text = str(error)
            if not any(code in text for code in _NO_PLACE):
                raise FileNotFoundError(f"{what}: it is not in {self._name}") from None
            raise CacheError(what, why=_plain(error), remedy="make the bucket or container first") from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise CacheError(f"{what}: access was denied", why=_plain(error)) from None
        except (BaseError, ValueError) as error:
            raise CacheError(what, why=_plain(error)) from None
        finally:
            seconds = time.monotonic() - began
            debug.log("cache request", cache=self._name, if_not=what, outcome=outcome, seconds=seconds)


def _library() -> Any:
    try:
        import obstore
    except ImportError as error:
        raise CacheError(
            "the library obstore is missing",
            why="caches of type=s3 and type=azblob need it where the build runs",
            remedy="pip install 'kanifold[s3]' or 'kanifold[azblob]' there",
        ) from error
    return obstore


def _client(url: str, patience: float) -> ClientConfig:
    """Return the options of HTTP clients for ``url``."""
    silence = min(SILENCE, patience)
    return {
        "allow_http": url.startswith("http://"),
        "connect_timeout": timedelta(seconds=min(_CONNECT_SECONDS, silence)),
        "read_timeout": timedelta(seconds=silence),
        "timeout": timedelta(seconds=min(_PIECE_SECONDS, patience)),
        "user_agent": "kanifold",
    }


def _retries() -> RetryConfig:
    return {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)}


def _endpoint(location: CacheInBucket) -> str:
    """Return the endpoint as obstore wants it: with the bucket in its host name, unless that is in the path."""
    if location.path_style:
        return location.endpoint
    scheme, _, rest = location.endpoint.partition("://")
    return f"{scheme}://{location.bucket}.{rest}"


def _until(seconds: float) -> datetime | None:
    return datetime.now(UTC) + timedelta(seconds=seconds) if seconds else None


def _described(meta: Any) -> StoredObject:
    return StoredObject(meta["path"], meta["size"], meta["last_modified"].timestamp())


def _plain(error: Exception) -> str:
    """Return what a service has said, if the library has an answer of one, else the library's own words."""
    text = str(error).partition("\n\nDebug source")[0]
    status = _STATUS.search(text)
    if status is None:
        time_taken = _TIME.search(text)
        return printable(f"{text.rpartition(' - ')[2] or text}{f', after {time_taken[1]}' if time_taken else ''}")
    said = ": ".join(found[1] for tag in ("Code", "Message") if (found := re.search(f"<{tag}>([^<]*)</{tag}>", text)))
    return printable(f"status {status[1].rstrip(': ')}{': ' if said else ''}{said}")

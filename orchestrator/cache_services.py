"""``type=s3``, ``type=azblob`` and ``type=gha`` of ``--cache-from`` and ``--cache-to``, with the keys of buildx.

Values that are not given come from the same variables of the environment as for BuildKit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import util
from typing import Final
from urllib.parse import urlsplit

import msgspec

from executor.objects.cache_account import CacheAccount
from executor.protocol import CacheBounds, CacheInActions, CacheInBucket, CacheInContainer, CachePace
from orchestrator import fields
from orchestrator.cache_accounts import (
    WORKFLOW_TOKEN,
    AccountSource,
    AWSAccount,
    AzureAccount,
    GivenAccount,
    WorkflowAccount,
)
from platforms import durations
from platforms.errors import UsageError

_OBJECTS: Final = (
    "name", "prefix", "blobs_prefix", "manifests_prefix", "touch_refresh", "timeout", "max_age", "max_size",
)  # fmt: skip
KEYS: Final = {
    "s3": (
        "bucket", "region", "endpoint_url", "use_path_style", "access_key_id", "secret_access_key", "session_token",
        "upload_parallelism", *_OBJECTS,
    ),
    "azblob": ("account_url", "account_name", "container", "secret_access_key", *_OBJECTS),
    "gha": ("url", "url_v2", "version", "token", "scope", "timeout", "repository", "ghtoken"),
}  # fmt: skip
"""The keys of each type, beside those that all types have."""

_RECORDS: Final = "kanifold/steps"
_LAYERS: Final = "kanifold/blobs"
_NAME: Final = "kanifold"
_SCOPE: Final = "buildkit"
_BOUNDS: Final = CacheBounds(size=20 << 30, age=30 * 86400)


_GITHUB: Final = ".actions.githubusercontent.com"
"""The domain of the services of GitHub itself, which speaks version 2 alone."""


class ServiceCache(msgspec.Struct, frozen=True):
    """A cache at a service, as it was given."""

    to: CacheInBucket | CacheInContainer | CacheInActions
    account: AccountSource
    bounds: CacheBounds | None


def read(kind: str, values: Mapping[str, str], flag: str) -> ServiceCache:
    """Return the cache of type ``kind``, one of ``KEYS``, with these ``values``. Raises ``UsageError``."""
    match kind:
        case "s3":
            return _bucket(values, flag)
        case "azblob":
            return _container(values, flag)
        case _:
            return _actions(values, flag)


def _bucket(values: Mapping[str, str], flag: str) -> ServiceCache:
    _require_library("s3", flag)
    bucket = values.get("bucket") or os.environ.get("AWS_BUCKET", "")
    region = values.get("region") or os.environ.get("AWS_REGION", "")
    if not bucket or not region:
        missing = "region= (or $AWS_REGION)" if bucket else "bucket= (or $AWS_BUCKET)"
        raise UsageError(f"{flag}: type=s3 needs {missing}")
    _directory("bucket", bucket, flag)
    _word("region", region, flag)
    endpoint = _url("endpoint_url", values.get("endpoint_url", ""), flag)
    records, layers, names = _layout(values, flag)
    name = _name(f"{endpoint}/{bucket}" if endpoint else f"s3://{bucket}", records, layers, names)
    key, secret = values.get("access_key_id", ""), values.get("secret_access_key", "")
    if bool(key) != bool(secret):
        raise UsageError(f"{flag}: access_key_id= and secret_access_key= go together")
    parallel = values.get("upload_parallelism", "1")
    if not parallel.isdigit() or parallel == "0":
        raise UsageError(f"{flag}: upload_parallelism={parallel!r} is not a positive number")
    given = GivenAccount(name, CacheAccount(key, secret, values.get("session_token", "")))
    return ServiceCache(
        CacheInBucket(
            name,
            bucket,
            region,
            records,
            names,
            layers,
            endpoint,
            fields.truth(values, "use_path_style", flag, default=_is_address(endpoint)),
            _pace(values, flag),
        ),
        given if key else AWSAccount(name),
        bounds(values, flag),
    )


def _container(values: Mapping[str, str], flag: str) -> ServiceCache:
    _require_library("azblob", flag)
    url = values.get("account_url") or os.environ.get("BUILDKIT_AZURE_STORAGE_ACCOUNT_URL", "")
    if not url:
        raise UsageError(f"{flag}: type=azblob needs account_url= (or $BUILDKIT_AZURE_STORAGE_ACCOUNT_URL)")
    url = _url("account_url", url, flag)
    account = values.get("account_name") or os.environ.get("BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME", "")
    container = values.get("container") or os.environ.get("BUILDKIT_AZURE_STORAGE_CONTAINER", "") or "buildkit-cache"
    _directory("container", container, flag)
    _word("account_name", account, flag)
    default = os.environ.get("BUILDKIT_AZURE_STORAGE_PREFIX", "")
    records, layers, names = _layout({"prefix": default, **values}, flag)
    name = _name(f"{url}/{container}", records, layers, names)
    secret = values.get("secret_access_key", "")
    return ServiceCache(
        CacheInContainer(
            name,
            account or (urlsplit(url).hostname or "").partition(".")[0],
            url,
            container,
            records,
            names,
            layers,
            _pace(values, flag),
        ),
        GivenAccount(name, CacheAccount(secret=secret)) if secret else AzureAccount(name),
        bounds(values, flag),
    )


def _actions(values: Mapping[str, str], flag: str) -> ServiceCache:
    url, version = _service(values, flag)
    scope = values.get("scope", _SCOPE)
    _directory("scope", scope, flag)
    if "," in scope or len(scope) > 200:
        raise UsageError(f"{flag}: scope= has at most 200 characters, and no comma")
    token = values.get("token", "") or os.environ.get(WORKFLOW_TOKEN, "")
    repository = values.get("repository") or os.environ.get("GITHUB_REPOSITORY", "")
    elsewhere = url if values.get("url") or values.get("url_v2") else ""
    name = f"gha:{'/'.join(filter(None, (elsewhere, repository, scope)))}{_seen_by(token)}"
    given = CacheAccount(token=values.get("token", ""), secret=values.get("ghtoken", ""))
    listed = _list_url(repository, flag) if given.secret else ""
    return ServiceCache(
        CacheInActions(name, url, version, scope, listed, _pace(values, flag)),
        GivenAccount(name, given) if given.token else WorkflowAccount(name, given),
        None,
    )


def _list_url(repository: str, flag: str) -> str:
    if not re.fullmatch(r"(?!\.+/)[\w.-]+/(?!\.+$)[\w.-]+", repository, re.ASCII):
        raise UsageError(f"{flag}: ghtoken= needs repository=OWNER/NAME (or $GITHUB_REPOSITORY)")
    api = _url("GITHUB_API_URL", os.environ.get("GITHUB_API_URL", ""), flag) or "https://api.github.com"
    return f"{api}/repos/{repository}/actions/caches"


def _seen_by(token: str) -> str:
    """Return what tells apart what different jobs see of one cache: the refs whose entries ``token`` may read.

    It is part of the cache's name, by which a store keeps what it knows from a cache: what a pull request has written
    is not used by builds of its base that have the same store.
    """
    from executor.objects.workflow_token import scopes

    known = scopes(token)
    return "" if not known else f" of {', '.join(each.scope for each in known)}"


def _service(values: Mapping[str, str], flag: str) -> tuple[str, int]:
    """Return the URL of the cache service and the version of its protocol; "" outside of a workflow."""
    asked = values.get("version", "")
    if asked not in ("", "1", "2"):
        raise UsageError(f"{flag}: version={asked!r} is neither 1 nor 2")
    first_url = values.get("url") or os.environ.get("ACTIONS_CACHE_URL", "")
    second_url = values.get("url_v2") or os.environ.get("ACTIONS_RESULTS_URL", "")
    told = os.environ.get("ACTIONS_CACHE_SERVICE_V2", "").lower() in ("true", "1", "t")
    second = told or (urlsplit(second_url).hostname or "").endswith(_GITHUB)
    if asked:
        version = int(asked)
    elif values.get("url_v2"):
        version = 2
    elif values.get("url"):
        version = 1
    else:
        version = 2 if second or not first_url else 1
    url = second_url if version == 2 else first_url
    return _url("url", url, flag), version


def _name(place: str, records: str, layers: str, names: tuple[str, ...]) -> str:
    """Return the name of a cache in a bucket, which is that of no cache with its objects elsewhere.

    By it a store keeps what it knows from a cache: builds that trust one directory of a bucket do not use what was
    found in another.
    """
    asked = ";".join(f"{records}/{each}" for each in names)
    common = records.removesuffix(_RECORDS)
    return f"{place}/{asked}{'' if layers == f'{common}{_LAYERS}' else f' with {layers}'}"


def _layout(values: Mapping[str, str], flag: str) -> tuple[str, str, tuple[str, ...]]:
    """Return the directories of records and of layers, and the names of a cache in a bucket."""
    prefix = _directory("prefix", values.get("prefix", ""), flag)
    records = _directory("manifests_prefix", values.get("manifests_prefix", ""), flag) or _RECORDS
    layers = _directory("blobs_prefix", values.get("blobs_prefix", ""), flag) or _LAYERS
    if records == layers:
        raise UsageError(f"{flag}: manifests_prefix= and blobs_prefix= have to differ")
    names = tuple(_directory("name", each, flag) for each in values.get("name", _NAME).split(";") if each)
    below = (f"{prefix}/{records}", f"{prefix}/{layers}") if prefix else (records, layers)
    return *below, names or (_NAME,)


def _directory(key: str, text: str, flag: str) -> str:
    """Return ``text`` as a path of directories, without slashes around it."""
    words = text.strip("/").split("/")
    if text.strip("/") and (not text.isprintable() or any(word in ("", ".", "..") for word in words)):
        raise UsageError(f"{flag}: {key}={text!r} is not a path")
    return "/".join(words)


def _word(key: str, text: str, flag: str) -> None:
    """Refuse ``text`` if it cannot stand in a header of HTTP, as with the line break at the end of a secret."""
    if not text.isascii() or not text.isprintable() or " " in text:
        raise UsageError(f"{flag}: {key}={text!r} is not a name")


def _url(key: str, text: str, flag: str) -> str:
    """Return ``text``, an URL without a query, or ""."""
    if not text:
        return ""
    if not text.isprintable() or " " in text:  # of which urlsplit leaves some out
        raise UsageError(f"{flag}: {key}= is not an http or https URL", why="it has a space or a line break")
    try:
        parsed = urlsplit(text)
        host, known = parsed.hostname, parsed.scheme in ("http", "https")
    except ValueError:
        host, known = None, False
    if not host or not known:
        raise UsageError(f"{flag}: {key}= is not an http or https URL")
    if parsed.username is not None or parsed.query or parsed.fragment:
        raise UsageError(
            f"{flag}: {key}= has more than a host and a path", remedy="give secrets by the keys that are for them"
        )
    return text.rstrip("/")


def _is_address(url: str) -> bool:
    """Whether the host of ``url`` is a number or this machine, so that no bucket can be part of its name."""
    host = urlsplit(url).hostname or "" if url else ""
    return ":" in host or host.rpartition(".")[2].isdigit() or host == "localhost"


def _pace(values: Mapping[str, str], flag: str) -> CachePace:
    default = CachePace()
    return CachePace(
        _seconds(values, "timeout", flag, default.patience), _seconds(values, "touch_refresh", flag, default.refresh)
    )


def bounds(values: Mapping[str, str], flag: str, default: CacheBounds = _BOUNDS) -> CacheBounds:
    """Return ``max_age`` and ``max_size``. Raises ``UsageError``."""
    size = fields.size(values["max_size"], flag) if "max_size" in values else default.size
    return CacheBounds(size, int(_seconds(values, "max_age", flag, default.age)))


def _seconds(values: Mapping[str, str], key: str, flag: str, default: float) -> float:
    if key not in values:
        return default
    found = durations.age(values[key])
    if found is None:
        raise UsageError(f"{flag}: {key}={values[key]!r} is not a time", remedy="write 90s, 10m, 24h or 7d")
    return found


def _require_library(extra: str, flag: str) -> None:
    if util.find_spec("obstore") is None:
        raise UsageError(
            f"{flag}: type={extra} needs the library obstore, which is not installed",
            remedy=f"pip install 'kanifold[{extra}]'",
        )

"""Credentials by registry, from the configuration files and credential helpers of docker, podman and CI systems.

Sources, in this order; the first credential found is used:

1. ``DOCKER_AUTH_CONFIG``: the JSON text itself (GitLab CI, and docker since 28);
2. ``REGISTRY_AUTH_FILE`` (podman, buildah, skopeo);
3. ``$DOCKER_CONFIG/config.json``, else ``~/.docker/config.json``;
4. ``$XDG_RUNTIME_DIR/containers/auth.json``, then ``$XDG_CONFIG_HOME/containers/auth.json`` (podman's own).

Within a file the longest key that is a prefix of the repository's name is used (containers-auth.json(5)): for
``registry.example.com/org/app`` the keys are tried in the order ``registry.example.com/org/app``,
``registry.example.com/org``, ``registry.example.com``. For each key, ``credHelpers`` comes before ``auths``;
``credsStore`` comes between the two for a registry, and for a longer key with an empty entry in ``auths``, by which
docker marks what is in the store. A file that cannot be parsed is an error that names the file and shows none of its
content.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from executor.registry.reference import DOCKER_HUB
from platforms import debug, decoding
from platforms.errors import EnvironmentUnfit, RegistryError, printable

OWN_CREDENTIALS: Final = "KANIFOLD_OWN_CREDENTIALS"
"""The variable that, if it is not empty, lets an executor elsewhere use the credentials of its machine."""
FILE_LIMIT: Final = 4 << 20
"""Maximum size of a credentials file in bytes."""
HELPER_SECONDS: Final = 60
"""Maximum run time of a credential helper: those of cloud providers make requests of their own."""
TOKEN_USER: Final = "<token>"
"""The user name by which docker's helpers mark the secret as an identity token."""

_HUB_KEYS: Final = ("https://index.docker.io/v1/", "index.docker.io", DOCKER_HUB, "registry-1.docker.io")
_NOT_FOUND: Final = ("credentials not found", "no credentials", "item not found")


class Credential(msgspec.Struct, frozen=True):
    """A user's credential for one registry: user name and password, or a token. ``repr`` shows no secret."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    """An OAuth2 refresh token for the registry's token service."""
    registry_token: str = ""
    """A bearer token for the registry itself."""

    def __repr__(self) -> str:
        return f"Credential({self.username!r})"


class Loan(msgspec.Struct, frozen=True):
    """What a client on another machine is lent in place of a credential: a token, or, for a registry without a token
    service, user name and password. ``repr`` shows no secret."""

    token: str = ""
    """A bearer token for the scopes that were asked for."""
    seconds: float = 0.0
    """How long the token is valid."""
    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Loan({self.seconds!r}, {self.username!r})"


Lend = Callable[[str, str, frozenset[str], bool], Loan | None]
"""Return a loan for a registry, a repository of it, and scopes (``token.scope``), or None if there is no credential.
With the last argument, not a token that was returned before: it was refused."""
Keychain = Callable[[str], Credential | None]
"""Return the credential for a repository (``docker.io/library/debian``) or a registry (``localhost:5000``), or None."""


def anonymous(_name: str) -> Credential | None:
    """A keychain without credentials."""
    return None


def docker_keychain() -> Keychain:
    """Return the keychain of docker's and podman's files. Files are read on the first call; the answers of helpers are
    cached.

    A call raises ``RegistryError`` for a file that cannot be parsed, ``EnvironmentUnfit`` for a helper that is not
    installed.
    """
    stores: list[_Store] | None = None
    answers: dict[tuple[str, str], Credential | None] = {}

    def helper(name: str, server: str, source: str) -> Credential | None:
        if (name, server) not in answers:
            answers[name, server] = _ask_helper(name, server, source)
        return answers[name, server]

    def lookup(name: str) -> Credential | None:
        nonlocal stores
        if stores is None:
            stores = list(_stores())
        for store in stores:
            found = store.credential(name, helper)
            if found is not None:
                return found
        return None

    return lookup


def own_keychain() -> Keychain:
    """Return the keychain of an executor on another machine than its orchestrator: docker's files there, where the
    machine was given some for builds (``OWN_CREDENTIALS``); else one without credentials."""
    return docker_keychain() if os.environ.get(OWN_CREDENTIALS) else anonymous


_Helper = Callable[[str, str, str], Credential | None]
"""Call the helper with this name (without ``docker-credential-``) for a server; the third argument is the file that
names it."""


class _Store(msgspec.Struct, frozen=True):
    """A parsed credentials file. ``source``: its path, or the environment variable it came from."""

    source: str
    auths: dict[str, Any]
    helpers: dict[str, Any]
    store: str = ""

    def __repr__(self) -> str:
        return f"_Store({self.source!r})"

    def credential(self, name: str, ask: _Helper) -> Credential | None:
        """Return the credential under the longest key that is a prefix of the repository ``name``, or under its
        registry."""
        registry, _, repository = name.partition("/")
        keys = _HUB_KEYS if registry == DOCKER_HUB else (registry,)
        written = {_plain(key): key for key in self.auths}
        while repository:
            for host in keys:
                found = self._of_path(f"{host}/{repository}", written, ask)
                if found is not None:
                    return found
            repository = repository.rpartition("/")[0]
        return self._of_registry(keys, ask)

    def _of_path(self, path: str, written: dict[str, str], ask: _Helper) -> Credential | None:
        """Return the credential under ``path``, a host and a part of a repository's name. ``written``: the keys of
        ``auths`` by their plain form."""
        helper = self.helpers.get(path)
        if isinstance(helper, str) and helper:
            return ask(helper, path, self.source)
        if path not in written:
            return None
        found = self._entry(written[path])
        return ask(self.store, written[path], self.source) if found is None and self.store else found

    def _of_registry(self, keys: tuple[str, ...], ask: _Helper) -> Credential | None:
        for key in keys:
            helper = self.helpers.get(key)
            if isinstance(helper, str) and helper:
                return ask(helper, keys[0], self.source)
        if self.store:
            found = ask(self.store, keys[0], self.source)
            if found is not None:
                return found
        for key in keys:
            if key in self.auths:
                return self._entry(key)
        for key in self.auths:
            if _host_of(key) in keys:
                return self._entry(key)
        return None

    def _entry(self, key: str) -> Credential | None:
        entry = self.auths[key]
        if not isinstance(entry, dict):
            raise _broken(self.source, f"the entry for {key!r} is not an object")
        texts = {
            name: entry.get(name) or "" for name in ("username", "password", "identitytoken", "registrytoken", "auth")
        }
        if not all(isinstance(text, str) for text in texts.values()):
            raise _broken(self.source, f"the entry for {key!r} holds something that is not text")
        username, password = texts["username"], texts["password"]
        if texts["auth"]:
            username, password = _decode(texts["auth"], key, self.source)
        found = Credential(username, password, texts["identitytoken"], texts["registrytoken"])
        return None if found == Credential() else found


def _stores() -> Iterator[_Store]:
    environ = os.environ
    inline = environ.get("DOCKER_AUTH_CONFIG", "")
    if inline.strip():
        yield _parse(os.fsencode(inline), "$DOCKER_AUTH_CONFIG")
    home = os.path.expanduser("~")
    docker = environ.get("DOCKER_CONFIG") or os.path.join(home, ".docker")
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    config = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    paths = (
        environ.get("REGISTRY_AUTH_FILE", ""),
        os.path.join(docker, "config.json"),
        os.path.join(runtime, "containers", "auth.json") if runtime else "",
        os.path.join(config, "containers", "auth.json"),
    )
    for path in filter(None, paths):
        try:
            with open(path, "rb") as file:
                data = file.read(FILE_LIMIT + 1)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise _broken(path, error.strerror or "it cannot be read") from error
        if len(data) > FILE_LIMIT:
            raise _broken(path, f"it is larger than {FILE_LIMIT} bytes")
        if data.strip():
            yield _parse(data, path)


def _parse(data: bytes, source: str) -> _Store:
    try:
        document = decoding.from_json(data)
    except msgspec.DecodeError:
        # The decoder's message may quote the text, and the text is secret.
        raise _broken(source, "it is not JSON") from None
    if not isinstance(document, dict):
        raise _broken(source, "it is not a JSON object")
    auths, helpers = document.get("auths") or {}, document.get("credHelpers") or {}
    store = document.get("credsStore") or ""
    if not isinstance(auths, dict) or not isinstance(helpers, dict) or not isinstance(store, str):
        raise _broken(source, "'auths', 'credHelpers' or 'credsStore' has the wrong type")
    return _Store(source, auths, helpers, store)


def _host_of(key: str) -> str:
    """Return the registry host of a key in any of the forms that tools write; "" for podman's keys of repositories."""
    host, _, path = key.partition("://")[2].partition("/") if "://" in key else key.partition("/")
    return host if path.strip("/") in {"", "v1", "v2"} else ""


def _plain(key: str) -> str:
    """Return ``key`` without scheme and trailing slashes."""
    return (key.partition("://")[2] or key).rstrip("/")


def _decode(auth: str, key: str, source: str) -> tuple[str, str]:
    import base64
    import binascii

    try:
        # docker pads with NUL what it encoded itself in its early days.
        text = base64.b64decode(auth, validate=True).decode().rstrip("\0")
    except (binascii.Error, UnicodeDecodeError):
        raise _broken(source, f"the 'auth' of {key!r} is not base64 text") from None
    username, colon, password = text.partition(":")
    if not colon:
        raise _broken(source, f"the 'auth' of {key!r} has no colon between user and password")
    return username, password


def _ask_helper(name: str, server: str, source: str) -> Credential | None:
    """Return the answer of ``docker-credential-NAME get`` for ``server`` (docker/docker-credential-helpers'
    protocol)."""
    import subprocess

    program = f"docker-credential-{name}"
    if not all(character.isalnum() or character in "-_." for character in name):
        raise _broken(source, f"{name!r} cannot be the name of a credential helper")
    debug.log("credential helper", program=program, server=server)
    try:
        done = subprocess.run(
            [program, "get"], input=server.encode(), capture_output=True, timeout=HELPER_SECONDS, check=False
        )
    except OSError as error:
        raise EnvironmentUnfit(
            f"cannot run the credential helper {program}",
            why=f"{source} asks for it, but: {error.strerror}",
            remedy=f"install {program}, or take 'credsStore' and 'credHelpers' out of {source}",
        ) from error
    except subprocess.TimeoutExpired:
        raise RegistryError(
            f"the credential helper {program} did not answer for {server}",
            why=f"it took more than {HELPER_SECONDS} s",
            remedy=f"try it by hand: echo {server} | {program} get",
        ) from None
    if done.returncode != 0:
        # Helpers report on stdout; what they write may be shown, for they have not found a secret.
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        if any(mark in said.lower() for mark in _NOT_FOUND):
            return None
        raise RegistryError(
            f"the credential helper {program} failed for {server}",
            why=printable(said) or f"exit status {done.returncode}",
            remedy=f"try it by hand: echo {server} | {program} get",
        )
    try:
        answer = decoding.from_json(done.stdout)
        username, secret = answer["Username"], answer["Secret"]
    except (msgspec.DecodeError, KeyError, TypeError):
        answer = username = secret = None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise RegistryError(
            f"the credential helper {program} answered nonsense for {server}",
            why="its output is not a JSON object with Username and Secret",
            remedy=f"try it by hand: echo {server} | {program} get",
        )
    if username == TOKEN_USER:
        return Credential(identity_token=secret)
    return Credential(username, secret) if username or secret else None


def _broken(source: str, why: str) -> RegistryError:
    return RegistryError(
        f"cannot use the credentials file {source}", why=why, remedy="repair it, or write it anew with docker login"
    )

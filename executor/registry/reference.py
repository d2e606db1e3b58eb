"""References of images: parsed, normalised and shown.

The grammar is Docker's (distribution/reference): ``[registry/]repository[:tag][@digest]``. The first component is the
registry if it has a dot, colon or upper-case letter, or is ``localhost``; otherwise the registry is Docker Hub.
"""

from __future__ import annotations

from typing import Final, Self

import msgspec
from msgspec.structs import replace

from executor.image.digest import check_digest
from platforms.errors import ArchiveError, UsageError
from platforms.hosts import split_port

DOCKER_HUB: Final = "docker.io"
_HUB_ALIASES: Final = frozenset({DOCKER_HUB, "index.docker.io"})
_HUB_API: Final = "registry-1.docker.io"
_OFFICIAL: Final = "library/"

REPOSITORY_LIMIT: Final = 255
"""Maximum length of a repository's name (distribution/reference, ``RepositoryNameTotalLengthMax``)."""
TAG_LIMIT: Final = 128
"""Maximum length of a tag (distribution-spec, "Pulling manifests")."""

_LOWER: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_WORD: Final = _LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_HEX: Final = frozenset("0123456789abcdef")
_SEPARATORS: Final = frozenset({".", "_", "__"})


class Reference(msgspec.Struct, frozen=True):
    """An image or a repository in a registry. ``tag`` and ``digest`` are "" if not given."""

    registry: str
    """The host as users write it, with the port if any: ``docker.io``, ``localhost:5000``, ``[::1]:5000``."""
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def api_host(self) -> str:
        """The host of the registry's API, which for Docker Hub has another name."""
        return api_host(self.registry)

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest, else the tag, else ``latest``."""
        return self.digest or self.tag or "latest"

    def with_tag(self, tag: str) -> Self:
        """Return the same repository with ``tag`` and no digest. Raises ``UsageError`` for an invalid tag."""
        _check_tag(tag, f"{self.registry}/{self.repository}:{tag}")
        return replace(self, tag=tag, digest="")

    def with_digest(self, digest: str) -> Self:
        """Return the same reference pinned to ``digest``."""
        return replace(self, digest=check_digest(digest))

    def completed(self) -> Self:
        """Return this reference, with the tag ``latest`` if it has neither tag nor digest."""
        return self if self.tag or self.digest else replace(self, tag="latest")

    def repository_only(self) -> Self:
        """Return this reference without tag and digest."""
        return replace(self, tag="", digest="")

    def familiar(self) -> str:
        """Return the short form that users write: ``debian:bookworm`` for Docker Hub's official image."""
        name = f"{self.registry}/{self.repository}"
        if self.registry == DOCKER_HUB:
            name = self.repository
            short = name.removeprefix(_OFFICIAL)
            if "/" not in short:
                name = short
        return self._suffixed(name)

    def __str__(self) -> str:
        return self._suffixed(f"{self.registry}/{self.repository}")

    def _suffixed(self, name: str) -> str:
        if self.tag:
            name += f":{self.tag}"
        return f"{name}@{self.digest}" if self.digest else name


def parse(text: str) -> Reference:
    """Parse a reference. Raises ``UsageError`` with the rule that ``text`` breaks."""
    if not text:
        raise _invalid(text, "it is empty")
    if any(character.isspace() or not character.isprintable() for character in text):
        raise _invalid(text, "it holds white space or control characters")
    if "://" in text:
        raise _invalid(text, "a reference has no scheme", f"write {text.partition('://')[2]!r}")
    name, at, digest = text.partition("@")
    if at:
        try:
            check_digest(digest)
        except ArchiveError as error:
            raise _invalid(text, f"{digest[:100]!r} is not a digest: {error.problem.why}") from error
    tag = ""
    slash = name.rfind("/")
    colon = name.rfind(":")
    if colon > slash:
        name, tag = name[:colon], name[colon + 1 :]
        if slash < 0 and _is_port(tag) and name == "localhost":
            raise _invalid(text, "it names a registry but no repository", f"write {name}:{tag}/NAME")
        _check_tag(tag, text)
    registry, repository = _split_registry(name)
    _check_host(registry, text)
    _check_repository(repository, text)
    if len(name) == 64 and _HEX.issuperset(name):
        raise _invalid(text, "64 hex digits are an image id, not a name")
    if registry in _HUB_ALIASES:
        registry = DOCKER_HUB
        if "/" not in repository:
            repository = _OFFICIAL + repository
    return Reference(registry, repository, tag, digest)


def api_host(registry: str) -> str:
    """Return the host, with the port if any, of the API of ``registry``."""
    return _HUB_API if registry == DOCKER_HUB else registry


def registry_of(host: str) -> str:
    """Return the registry whose API is at ``host``: the inverse of ``api_host``."""
    return DOCKER_HUB if host == _HUB_API else host


def canonical_registry(text: str) -> str:
    """Return the registry that ``text`` names. Raises ``UsageError`` if it is not a host."""
    host = text.strip().rstrip("/")
    _check_host(host, text)
    return DOCKER_HUB if host in _HUB_ALIASES or host == _HUB_API else host


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or any(mark in first for mark in ".:[") or first != first.lower()):
        return first, rest
    return DOCKER_HUB, name


def _check_host(registry: str, text: str) -> None:
    host, port = split_port(registry)
    if host.startswith("["):
        if not host.endswith("]") or not host[1:-1] or not set(host[1:-1]) <= set("0123456789abcdefABCDEF:."):
            raise _invalid(text, f"{registry!r} is not an IPv6 address in brackets")
    else:
        for label in host.split("."):
            plain = label.replace("-", "a")
            if not plain or label[0] == "-" or label[-1] == "-" or not (plain.isascii() and plain.isalnum()):
                raise _invalid(text, f"{registry!r} is not a host name")
    if registry != host and not _is_port(port):
        raise _invalid(text, f"{port!r} is not a port number")


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65535


def _check_repository(repository: str, text: str) -> None:
    if not repository:
        raise _invalid(text, "it names no repository")
    if len(repository) > REPOSITORY_LIMIT:
        raise _invalid(text, f"the repository's name has {len(repository)} characters; {REPOSITORY_LIMIT} are allowed")
    if repository != repository.lower():
        raise _invalid(
            text, "a repository's name is lower case", f"write {text.replace(repository, repository.lower())!r}"
        )
    for component in repository.split("/"):
        _check_component(component, text)


def _check_component(component: str, text: str) -> None:
    """Check for letters and digits, joined by one dot, one or two underscores, or any number of dashes."""
    if not component:
        raise _invalid(text, "two slashes meet, or one stands at an end")
    if component[0] not in _LOWER or component[-1] not in _LOWER:
        raise _invalid(text, f"{component!r} does not begin and end with a lower-case letter or a digit")
    separator = ""
    for character in component:
        if character in "._-":
            separator += character
        elif character not in _LOWER:
            raise _invalid(text, f"{character!r} cannot be part of a name")
        else:
            if separator and separator not in _SEPARATORS and set(separator) != {"-"}:
                raise _invalid(text, f"{separator!r} cannot join the parts of {component!r}")
            separator = ""


def _check_tag(tag: str, text: str) -> None:
    if not tag:
        raise _invalid(text, "the tag after ':' is empty")
    if len(tag) > TAG_LIMIT:
        raise _invalid(text, f"the tag has {len(tag)} characters; {TAG_LIMIT} are allowed")
    if tag[0] not in _WORD or any(character not in _WORD and character not in ".-" for character in tag):
        raise _invalid(text, f"{tag!r} is not a tag: letters, digits, '_', '.' and '-', the last two not in front")


def _invalid(text: str, why: str, remedy: str = "") -> UsageError:
    return UsageError(
        f"invalid image reference {text[:200]!r}",
        why=why,
        remedy=remedy or "write [REGISTRY/]NAME[:TAG][@DIGEST], such as debian:bookworm or ghcr.io/org/app:1.2",
    )

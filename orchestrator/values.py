"""Parsers of the values of flags: each function takes the text and the flag, whose name begins its ``UsageError``.

Imports are in the functions, so that flags can be declared, and their help printed, without loading the parsers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Literal

from platforms.errors import UsageError

if TYPE_CHECKING:
    from executor.protocol import CompressionKind, Pin, SnapshotterKind
    from executor.registry.reference import Reference
    from executor.step_options import ResourceLimits
    from orchestrator.caches import Cache
    from orchestrator.request import Allowed, Annotation, Report, SecretSource
    from platforms.platform import Platform

_LEVELS: Final = ("manifest", "index", "manifest-descriptor", "index-descriptor")
_ULIMITS: Final = (
    "core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime",
    "sigpending", "stack",
)  # fmt: skip


# -- of many flags ---------------------------------------------------------------------------------------------------


def split(texts: Iterable[str], _flag: str) -> tuple[str, ...]:
    """Return the items of comma-separated lists, joined."""
    return tuple(each for text in texts for each in text.split(",") if each)


def pair(text: str, flag: str) -> tuple[str, str]:
    """Parse ``NAME[=VALUE]``."""
    name, _, value = text.partition("=")
    if not name:
        raise UsageError(f"{flag} {text!r} is not NAME=VALUE")
    return name, value


def size(text: str, flag: str) -> int:
    """Return the bytes of ``10g``, ``512MB`` or a plain number; 0 for ""."""
    from orchestrator import fields

    return fields.size(text, flag) if text else 0


def age(text: str, flag: str) -> int | None:
    """Return the seconds of ``24h``, ``90m`` or ``7d``; None for ""."""
    from orchestrator import fields

    return fields.age(text, flag) if text else None


def writable(path: str, flag: str) -> str:
    """Return ``path``. Raises ``UsageError`` if it cannot be written: that would fail only after publishing."""
    from platforms.replacing import is_stream

    if not path:
        return path
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.path.isdir(folder):
        raise UsageError(
            f"{flag} {path}: " + ("it is a directory" if os.path.isdir(path) else f"no directory {folder}")
        )
    if not os.access(path if is_stream(path) else folder, os.W_OK):  # a file is replaced, not written to
        raise UsageError(f"{flag} {path}: this user may not write it")
    return path


def pins(path: str, _flag: str) -> tuple[Pin, ...] | None:
    """Return the pins in the file ``path``; None for ""."""
    if not path:
        return None
    from orchestrator import pin_lock

    return pin_lock.read(path)


# -- of single flags -------------------------------------------------------------------------------------------------


def tag(text: str, flag: str) -> Reference:
    """Parse the name of an image to be built, with the default registry and tag."""
    from executor.registry import reference

    parsed = reference.parse(text)
    if parsed.digest:
        raise UsageError(f"{flag} {text}: a tag cannot name a digest", why="the digest is what the build comes to")
    return parsed.completed()


def platforms(texts: Iterable[str], _flag: str) -> tuple[Platform, ...]:
    """Return the platforms of comma-separated lists, each once; () without a list."""
    from platforms.parsing import parse_list

    return parse_list(texts)


def platforms_with_nodes(texts: Iterable[str], flag: str) -> tuple[tuple[Platform, str], ...]:
    """Parse comma-separated lists of ``PLATFORM[=NODE]``: the platforms, each once, with a node's name or ""."""
    found: dict[Platform, str] = {}
    for text in texts:
        for word in text.split(","):
            name, equals, node = word.partition("=")
            for each in platforms((name,), flag):
                if equals and not node:
                    raise UsageError(f"{flag} {word.strip()}: no node is named", remedy=f"write {name}=NODE")
                if equals and found.get(each, node) not in ("", node):
                    raise UsageError(f"{flag}: {each} is to be built on two nodes, {found[each]} and {node}")
                found[each] = node or found.get(each, "")
    return tuple(found.items())


def build_args(texts: Iterable[str], flag: str) -> tuple[tuple[str, str], ...]:
    """Parse ``NAME[=VALUE]``; without a value, the environment variable's, if it is set."""
    from orchestrator import epoch

    # SOURCE_DATE_EPOCH of the environment is a build argument, as in buildx.
    found = {epoch.NAME: os.environ[epoch.NAME]} if os.environ.get(epoch.NAME) else {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise UsageError(f"{flag} {text!r} has no name")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return tuple(found.items())


def build_contexts(texts: Iterable[str], flag: str) -> tuple[tuple[str, str], ...]:
    """Parse ``NAME=PLACE``; NAME becomes canonical."""
    from orchestrator.contexts import named_canonically

    found = []
    for text in texts:
        name, _, place = text.partition("=")
        if not name or not place:
            raise UsageError(f"{flag} {text!r} is not NAME=VALUE")
        found.append((name, place))
    return named_canonically(found)


def parse_annotations(texts: Iterable[str], flag: str, default: str = "manifest") -> tuple[Annotation, ...]:
    """Parse ``[LEVEL[,LEVEL…]:]KEY=VALUE``; without a level, ``default`` is used."""
    from orchestrator.request import Annotation

    found: list[Annotation] = []
    for text in texts:
        head, equals, value = text.partition("=")
        levels, colon, key = head.partition(":")
        key = key if colon else levels
        if not equals or not key:
            raise UsageError(f"{flag} {text!r} is not [LEVEL:]KEY=VALUE")
        for level in _levels(levels) if colon else (default,):
            name, platform = _level(level, text, flag)
            found.append(Annotation(name, platform, key, value))
    return tuple(found)


def _levels(text: str) -> list[str]:
    return [each for each in re.split(r",(?![^\[]*\])", text) if each]


def _level(text: str, whole: str, flag: str) -> tuple[str, str]:
    from executor.dockerfile.suggestions import hint
    from platforms.parsing import parse

    match = re.fullmatch(r"([a-z\-]+)(?:\[([^\]]+)\])?", text)
    if match is None or match[1] not in _LEVELS:
        raise UsageError(
            f"{flag} {whole!r}: unknown level {text!r}{hint(text.partition('[')[0], _LEVELS)}",
            remedy=f"use {', '.join(_LEVELS)}, those of manifests also with [PLATFORM]",
        )
    return match[1], str(parse(match[2])) if match[2] else ""


def output_annotation(head: str, value: str, flag: str) -> Annotation:
    """Parse ``annotation[-LEVEL][[PLATFORM]].KEY=VALUE`` of an output, BuildKit's syntax."""
    from orchestrator.request import Annotation
    from platforms.parsing import parse

    match = re.fullmatch(rf"annotation(?:-({'|'.join(_LEVELS)}))?(?:\[([^\]]+)\])?\.(.+)", head)
    if match is None:
        raise UsageError(
            f"{flag}: {head!r} is not annotation.KEY or annotation-LEVEL.KEY", remedy=f"levels are {', '.join(_LEVELS)}"
        )
    return Annotation(match[1] or "manifest", str(parse(match[2])) if match[2] else "", match[3], value)


def cache_source(text: str, flag: str) -> Cache:
    """Parse ``type=registry,ref=REF`` or ``type=local,src=DIR``."""
    from orchestrator import caches

    return caches.source(text, flag)


def cache_target(text: str, flag: str) -> Cache:
    """Parse ``type=registry,ref=REF``, ``type=local,dest=DIR`` or ``type=inline``, with optional ``mode=max``."""
    from orchestrator import caches

    return caches.target(text, flag)


def cache_repository(text: str, flag: str) -> tuple[Cache, ...]:
    """Return the registry cache at a reference, for import and export; none for ""."""
    from orchestrator import caches

    return caches.repository(text, flag)


def secret(text: str, flag: str) -> SecretSource:
    """Parse ``id=NAME[,src=FILE|,env=VAR]``; without either, the variable NAME if it is set, else the file NAME."""
    from orchestrator import fields
    from orchestrator.request import SecretSource

    values = fields.parse(text, flag, ("id", "src", "source", "env", "type"))
    kind, name = values.get("type", ""), values.get("id", "")
    if kind not in ("", "file", "env"):
        raise UsageError(f"{flag}: type={kind!r} is neither file nor env")
    file = values.get("src", values.get("source", ""))
    variable = values.get("env", "")
    if kind == "env" and not variable:
        variable, file = file or name, ""
    if not name:
        raise UsageError(f"{flag} {text!r} has no id")
    if file and variable:
        raise UsageError(f"{flag} {name}: both a file and a variable are given")
    if not file and not variable:  # as buildx
        variable, file = (name, "") if name in os.environ else ("", name)
    if file and not os.path.isfile(os.path.expanduser(file)):
        raise UsageError(f"{flag} {name}: no file {file}")
    return SecretSource(name, os.path.abspath(os.path.expanduser(file)) if file else "", variable)


def agent(text: str, _flag: str) -> tuple[str, str]:
    """Parse ``ID[=PLACE]`` of an SSH agent."""
    name, _, place = text.partition("=")
    return name, place


def host(text: str, flag: str) -> tuple[str, str]:
    """Parse ``NAME:ADDRESS`` or ``NAME=ADDRESS``."""
    import ipaddress

    name, equals, address = text.partition("=")
    if not equals:
        name, _, address = text.partition(":")
    try:
        ipaddress.ip_address(address.strip("[]"))
    except ValueError as error:
        raise UsageError(f"{flag} {text!r} is not NAME:ADDRESS", why=f"{address!r} is no IP address") from error
    if not name:
        raise UsageError(f"{flag} {text!r} has no name")
    return name, address.strip("[]")


def network(text: str, _flag: str) -> Literal["", "host", "none"]:
    """Return the network of steps without ``--network``; "" for the default."""
    match text:
        case "host" | "none":
            return text
        case _:
            return ""


def default_network(text: str) -> Literal["isolated", "host"]:
    """Return the default network of steps, from ``$KANIFOLD_NETWORK``."""
    match text:
        case "" | "isolated":
            return "isolated"
        case "host":
            return "host"
        case _:
            raise UsageError(f"KANIFOLD_NETWORK={text!r} is neither isolated nor host")


def compression(text: str, _flag: str) -> CompressionKind | None:
    """Return the kind of compression; None for ""."""
    from executor.protocol import CompressionKind

    return CompressionKind(text) if text else None


def snapshotter(text: str, _flag: str) -> SnapshotterKind:
    """Return the kind of snapshotter; for "", that of ``$KANIFOLD_SNAPSHOTTER``, or the default."""
    match text or os.environ.get("KANIFOLD_SNAPSHOTTER", ""):
        case "" | "auto":
            return "auto"
        case "overlay":
            return "overlay"
        case "plain":
            return "plain"
        case other:
            raise UsageError(f"KANIFOLD_SNAPSHOTTER={other!r} is neither auto, overlay nor plain")


ISOLATION: Final = ("auto", "namespaces", "mapped", "single", "chroot", "answered")
"""``auto``, and the isolation modes (``executor.sandbox.isolation``, which is not loaded for this)."""


def isolation(text: str, _flag: str) -> str:
    """Return the name of the isolation mode; for "", that of ``$KANIFOLD_ISOLATION``. "" for the first that works."""
    name = text or os.environ.get("KANIFOLD_ISOLATION", "")
    if name and name not in ISOLATION:
        raise UsageError(f"KANIFOLD_ISOLATION={name!r} is no isolation mode", remedy=f"use {', '.join(ISOLATION)}")
    return "" if name == "auto" else name


def permissions(texts: Iterable[str], flag: str) -> tuple[str, ...]:
    """Return the permissions of comma-separated lists. Those for devices have no effect: steps get none."""
    from executor.dockerfile.suggestions import hint
    from orchestrator.outputs import DELETE

    known = ("security.insecure", "network.host", DELETE, "device")
    found = split(texts, flag)
    for each in found:
        name = each.partition("=")[0]
        if name not in known or name not in (each, "device"):
            raise UsageError(f"{flag} {each}: unknown{hint(name, known)}", remedy=f"use {', '.join(known)}")
    return found


def ulimits(texts: Iterable[str], flag: str) -> tuple[tuple[str, int, int], ...]:
    """Parse ``NAME=SOFT:HARD`` or ``NAME=BOTH``, Docker's syntax; the last of one name is used."""
    found = {}
    for text in texts:
        match = re.fullmatch(r"(\w+)=(-1|\d+)(?::(-1|\d+))?", text)
        if match is None or match[1] not in _ULIMITS:
            raise UsageError(
                f"{flag} {text!r} is not NAME=SOFT[:HARD]",
                remedy=f"numbers, -1 for none, and one of: {', '.join(_ULIMITS)}",
            )
        soft, hard = int(match[2]), int(match[3] or match[2])
        if hard != -1 and not 0 <= soft <= hard:
            raise UsageError(f"{flag} {text!r}: the soft limit is above the hard one")
        found[match[1]] = match[1], soft, hard
    return tuple(found.values())


def limits(texts: Iterable[str], _flag: str) -> ResourceLimits:
    """Parse resource limits of steps, ``NAME=VALUE``."""
    from orchestrator import resource_limits

    return resource_limits.limits(texts)


def control_group(text: str, flag: str) -> str:
    """Return the path of a control group from the root of the hierarchy, without slashes at its ends; "" for "".

    Written as a path, or as the name of a slice, which systemd nests by its dashes: ``a-b.slice`` is in ``a.slice``.
    """
    if not text:
        return ""
    path = text.strip("/")
    if not path or any(part in ("", ".", "..") for part in path.split("/")):
        raise UsageError(f"{flag} {text!r} is no path of a control group")
    if "/" in path or not path.endswith(".slice"):
        return path
    parts = path.removesuffix(".slice").split("-")
    if "" in parts:
        raise UsageError(f"{flag} {text!r} is no name of a slice")
    return "/".join("-".join(parts[:count]) + ".slice" for count in range(1, len(parts) + 1))


def builder(text: str, flag: str) -> None:
    """Raise ``UsageError`` for a builder other than ``default``, the only one."""
    if text not in ("", "default"):
        raise UsageError(
            f"{flag} {text}: there are no builders to choose from",
            why="the command builds by itself, on this machine and on nodes",
            remedy="leave it out; --node says which nodes to use",
        )


def report(text: str, flag: str) -> Report:
    """Parse ``TYPE=FILE``, or ``FILE.html``."""
    from executor.dockerfile.suggestions import hint
    from orchestrator.request import Report

    kind, equals, path = text.partition("=")
    if not equals and text.lower().endswith((".html", ".htm")):
        kind, path = "html", text
    known = ("html", "junit", "dotenv", "codequality", "markdown")
    if not path:
        raise UsageError(f"{flag} {text!r} is not TYPE=FILE", remedy=f"types are {', '.join(known)}")
    match kind:
        case "html" | "junit" | "dotenv" | "codequality" | "markdown":
            return Report(kind, writable(path, flag))
        case _:
            raise UsageError(
                f"{flag} {text!r}: unknown type {kind!r}{hint(kind, known)}", remedy=f"types are {', '.join(known)}"
            )


def allowed(text: str, _flag: str) -> Allowed:
    """Parse ``[PLATFORM:]PATTERN`` of files that the audit ignores."""
    from orchestrator.request import Allowed
    from platforms.parsing import parse

    head, colon, pattern = text.partition(":")
    if colon and "/" in head and not head.startswith("/"):
        return Allowed(pattern, str(parse(head)))
    return Allowed(text)


def emulator_image(text: str, flag: str) -> str:
    """Return the name of an image of emulators, which must have a digest; "" for none."""
    if not text:
        flag, text = "KANIFOLD_EMULATOR_IMAGE", os.environ.get("KANIFOLD_EMULATOR_IMAGE", "")
    if not text:
        return ""
    from orchestrator.index import names

    name = names.parse(text)
    if not (name.reference.digest if isinstance(name, names.RegistryName) else name.digest):
        raise UsageError(
            f"{flag}: {text[:200]} has no digest",
            why="steps run in the emulator, and a tag can move",
            remedy=f"name it as REF@sha256:… (kanifold index inspect {text[:200]} prints its digest)",
        )
    return str(name)


def method(text: str, flag: str) -> str:
    """Parse ``METHOD[,format=json]``, a request in place of a build; "" for a build."""
    name, comma, how = text.partition(",")
    if name not in ("", "build", "check", "lint", "targets", "outline") or (comma and how != "format=json"):
        raise UsageError(
            f"Invalid value for {flag!r}: {text!r} is not check, targets or outline, with or without ,format=json",
            remedy="see kanifold build --help",
        )
    return text

"""From the command line's words to a ``Request``: every value is checked here, and every refusal names its flag."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from msgspec.structs import replace

from executor.dockerfile.suggestions import hint
from executor.protocol import BuildOptions, Compression
from executor.registry import config, reference
from executor.step_options import StepOptions, parent_path
from orchestrator import caches, epoch, fields, outputs, resource_limits
from orchestrator.contexts import named_canonically
from orchestrator.request import Allowed, Annotation, Request, Secret
from platforms import host
from platforms.errors import UsageError
from platforms.parsing import parse as parse_platform
from platforms.parsing import parse_list
from platforms.platform import Platform
from platforms.replacing import is_stream

_ULIMITS: Final = (
    "core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime",
    "sigpending", "stack",
)  # fmt: skip
_LOAD: Final = "KANIFOLD_LOAD"
"""The environment's word for which program ``--load`` means."""


def request(flags: Mapping[str, Any]) -> Request:
    """The request that the flags of ``kanifold build`` make. Raises ``UsageError``."""
    tags = tuple(_tag(each) for each in flags["tags"])
    wanted = _destinations(flags, tags)
    contexts = named_canonically(_pair(each, "--build-context", needs_value=True) for each in flags["build_contexts"])
    if flags["context"] == flags["dockerfile"] == "-":
        raise UsageError("stdin cannot be both the build context and the Dockerfile")
    outside, compression = caches.parse(flags), _compression(flags, wanted)
    insecure = (*flags["insecure"], *_insecure(wanted, tags), *(each.insecure for each in outside if each.insecure))
    caches.check(outside, compression)
    if flags["builder"] not in ("", "default"):
        raise UsageError(
            f"--builder {flags['builder']}: there are no builders to choose from",
            why="the command builds by itself, on this machine; names will be those of nodes, once there are any",
            remedy="leave it out",
        )
    platforms = parse_list(flags["platforms"]) or (host.default_platform(),)
    annotations = (*parse_annotations(flags["annotations"]), *_output_annotations(wanted))
    _check_annotations(annotations, platforms, wanted)
    return Request(
        context=flags["context"],
        dockerfile=flags["dockerfile"],
        platforms=platforms,
        tags=tags,
        outputs=wanted,
        build_args=_build_args(flags["build_args"]),
        build_contexts=contexts,
        annotations=annotations,
        secrets=tuple(_secret(each) for each in flags["secrets"]),
        ssh=tuple(each.partition("=")[::2] for each in flags["ssh"]),
        load_to=flags["load_to"] or os.environ.get(_LOAD, ""),
        progress="quiet" if flags["quiet"] else flags["progress"],
        metadata_file=_writable(flags["metadata_file"], "--metadata-file"),
        iid_file=_writable(flags["iid_file"], "--iidfile"),
        trace=flags["trace"],
        jobs=flags["jobs"],
        keep_going=flags["keep_going"],
        audit=flags["audit"],
        audit_allow=tuple(_allowed(each) for each in flags["audit_allow"]),
        options=BuildOptions(
            target=flags["target"],
            labels=tuple(_pair(each, "--label") for each in flags["labels"]),
            compression=compression,
            rewrite_timestamps=_rewrites_timestamps(wanted),
            no_cache=flags["no_cache"],
            no_cache_stages=_split(flags["no_cache_filters"]),
            cache_from=caches.sources(outside),
            cache_to=caches.exports(outside),
            cache_ttl=fields.age(flags["cache_ttl"], "--cache-ttl") if flags["cache_ttl"] else None,
            registries=config.with_flags(config.load_settings(), insecure, flags["mirrors"], flags["timeouts"]),
            root=flags["root"],
            implicit_platform=not flags["platforms"],
            steps=StepOptions(
                hosts=tuple(_host(each) for each in flags["hosts"]),
                network="" if flags["network"] == "default" else flags["network"],
                default_network=default_network(os.environ.get("KANIFOLD_NETWORK", "")),
                shm_size=fields.size(flags["shm_size"], "--shm-size") if flags["shm_size"] else 0,
                ulimits=tuple({each[0]: each for each in map(_ulimit, flags["ulimits"])}.values()),
                limits=resource_limits.limits(flags["resources"]),
                cgroup_parent=parent_path(flags["cgroup_parent"]) if flags["cgroup_parent"] else "",
                allow=tuple(each for each in _permissions(flags["allow"]) if each != outputs.DELETE),
            ),
        ),
    )


def _tag(text: str) -> reference.Reference:
    parsed = reference.parse(text)
    if parsed.digest:
        raise UsageError(f"--tag {text}: a tag cannot name a digest", why="the digest is what the build comes to")
    return parsed.completed()


def _destinations(flags: Mapping[str, Any], tags: Sequence[reference.Reference]) -> tuple[outputs.Output, ...]:
    wanted = outputs.gather(
        flags["outputs"],
        push=flags["push"] or flags["push_by_digest"],
        tags=[str(each) for each in tags],
        load=flags["load"] or bool(flags["load_to"]),
        may_delete=outputs.DELETE in _split(flags["allow"]),
    )
    if flags["push_by_digest"]:
        wanted = tuple(replace(each, by_digest=True) if isinstance(each, outputs.Push) else each for each in wanted)
    for each in wanted:
        for name in outputs.image_options(each).names:
            reference.parse(name)
        if (
            isinstance(each, outputs.Push)
            and each.dangling
            and (parsed := reference.parse(each.dangling)) != parsed.repository_only()
        ):
            raise UsageError(f"--output: dangling-name-prefix={each.dangling} is not the name of a repository")
    return wanted


def _rewrites_timestamps(wanted: Iterable[outputs.Output]) -> bool:
    """Whether files' times are bounded; the outputs of one build share its layers."""
    said = {outputs.image_options(each).rewrite_timestamp for each in wanted} - {None}
    if len(said) > 1:
        raise UsageError("--output: one build has one rewrite-timestamp", why="its outputs ask for both")
    return said != {False}


def _insecure(wanted: Iterable[outputs.Output], tags: Iterable[reference.Reference]) -> tuple[str, ...]:
    """The registries that an output wants without verified TLS."""
    return tuple(
        repository.registry
        for each in wanted
        if isinstance(each, outputs.Push) and each.insecure
        for repository in (*tags, *map(reference.parse, filter(None, (*each.image.names, each.dangling))))
    )


def _writable(path: str, flag: str) -> str:
    """``path``, unless it is clear already that it could not be written when all is published."""
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


def _build_args(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    # What reproducible builds agree on is a build arg by itself, as with buildx.
    found = {epoch.NAME: os.environ[epoch.NAME]} if os.environ.get(epoch.NAME) else {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise UsageError(f"--build-arg {text!r} has no name")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return tuple(found.items())


def _pair(text: str, flag: str, *, needs_value: bool = False) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or (needs_value and not (equals and value)):
        raise UsageError(f"{flag} {text!r} is not NAME=VALUE")
    return name, value


def _split(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(each for text in texts for each in text.split(",") if each)


_PERMISSIONS: Final = ("security.insecure", "network.host", outputs.DELETE, "device")
"""What ``--allow`` takes; no step is given a device, so that to permit one comes to nothing."""


def _permissions(texts: Iterable[str]) -> tuple[str, ...]:
    found = _split(texts)
    for each in found:
        name = each.partition("=")[0]
        if name not in _PERMISSIONS or name not in (each, "device"):
            raise UsageError(
                f"--allow {each}: unknown{hint(name, _PERMISSIONS)}", remedy=f"use {', '.join(_PERMISSIONS)}"
            )
    return found


_LEVELS: Final = ("manifest", "index", "manifest-descriptor", "index-descriptor")


def parse_annotations(texts: Iterable[str], default: str = "manifest") -> Iterable[Annotation]:
    """Each ``[LEVEL[,LEVEL…]:]KEY=VALUE``; without a level it is for the ``default`` one. Raises ``UsageError``."""
    for text in texts:
        head, equals, value = text.partition("=")
        levels, colon, key = head.partition(":")
        key = key if colon else levels
        if not equals or not key:
            raise UsageError(f"--annotation {text!r} is not [LEVEL:]KEY=VALUE")
        for level in _levels(levels) if colon else (default,):
            name, platform = _level(level, text)
            yield Annotation(name, platform, key, value)


def _levels(text: str) -> list[str]:
    return [each for each in re.split(r",(?![^\[]*\])", text) if each]


def _level(text: str, whole: str) -> tuple[str, str]:
    match = re.fullmatch(r"([a-z\-]+)(?:\[([^\]]+)\])?", text)
    if match is None or match[1] not in _LEVELS:
        raise UsageError(
            f"--annotation {whole!r}: unknown level {text!r}{hint(text.partition('[')[0], _LEVELS)}",
            remedy=f"use {', '.join(_LEVELS)}, those of manifests also with [PLATFORM]",
        )
    return match[1], str(parse_platform(match[2])) if match[2] else ""


def _output_annotations(wanted: Iterable[outputs.Output]) -> Iterable[Annotation]:
    """``annotation[-LEVEL][[PLATFORM]].KEY=VALUE`` of an output, as BuildKit spells it."""
    for output in wanted:
        for head, value in outputs.image_options(output).annotations:
            match = re.fullmatch(rf"annotation(?:-({'|'.join(_LEVELS)}))?(?:\[([^\]]+)\])?\.(.+)", head)
            if match is None:
                raise UsageError(
                    f"--output: {head!r} is not annotation.KEY or annotation-LEVEL.KEY",
                    remedy=f"levels are {', '.join(_LEVELS)}",
                )
            yield Annotation(match[1] or "manifest", str(parse_platform(match[2])) if match[2] else "", match[3], value)


def _check_annotations(
    annotations: Iterable[Annotation], platforms: Sequence[Platform], wanted: Iterable[outputs.Output]
) -> None:
    """Refuse what nothing of the build would bear, as BuildKit does."""
    built = [str(each) for each in platforms]
    docker = not all(outputs.image_options(each).oci_media_types for each in wanted)
    for each in annotations:
        if each.platform and each.platform not in built:
            raise UsageError(
                f"the annotation {each.key!r} is for {each.platform}, which is not built",
                why=f"this build is for {', '.join(built)}",
            )
        if docker and each.level != "manifest":
            raise UsageError(
                f"the annotation {each.key!r} of {each.level} needs OCI media types",
                why="an output asks for Docker's (oci-mediatypes=false), which have no place for it",
            )


def _compression(flags: Mapping[str, Any], wanted: Sequence[outputs.Output]) -> Compression:
    """``--compression``, or what an output asks for; the whole build has one."""
    said = [outputs.image_options(each) for each in wanted]
    kinds = {each.compression for each in said if each.compression} | (
        {flags["compression"]} if flags["compression"] else set()
    )
    levels = {each.compression_level for each in said if each.compression_level is not None}
    if flags["compression_level"] is not None:
        levels.add(flags["compression_level"])
    if len(kinds) > 1 or len(levels) > 1:
        raise UsageError("one build has one compression", why="its outputs ask for several")
    kind = next(iter(kinds), "gzip")
    level = next(iter(levels), None)
    lowest, highest = {"gzip": (0, 9), "zstd": (1, 22), "uncompressed": (0, 0)}[kind]
    if level is not None and not lowest <= level <= highest:
        raise UsageError(
            f"--compression-level {level} is not one of {kind}'s", why=f"they go from {lowest} to {highest}"
        )
    if kind == "zstd" and not all(each.oci_media_types for each in said):
        raise UsageError("zstd layers need OCI media types", why="Docker's own have no name for them")
    force = any(each.force_compression for each in said)
    return Compression(kind, level if kind != "uncompressed" else None, force)


def _secret(text: str) -> Secret:
    values = fields.parse(text, "--secret", ("id", "src", "source", "env", "type"))
    kind, name = values.get("type", ""), values.get("id", "")
    if kind not in ("", "file", "env"):
        raise UsageError(f"--secret: type={kind!r} is neither file nor env")
    file = values.get("src", values.get("source", ""))
    variable = values.get("env", "")
    if kind == "env" and not variable:
        variable, file = file or name, ""
    if not name:
        raise UsageError(f"--secret {text!r} has no id")
    if file and variable:
        raise UsageError(f"--secret {name}: both a file and a variable are given")
    if not file and not variable:
        # As buildx: a variable of the name when there is one, else a file of the name.
        variable, file = (name, "") if name in os.environ else ("", name)
    if file and not os.path.isfile(os.path.expanduser(file)):
        raise UsageError(f"--secret {name}: no file {file}")
    return Secret(name, os.path.abspath(os.path.expanduser(file)) if file else "", variable)


def _host(text: str) -> tuple[str, str]:
    import ipaddress

    name, equals, address = text.partition("=")
    if not equals:
        name, _, address = text.partition(":")
    try:
        ipaddress.ip_address(address.strip("[]"))
    except ValueError as error:
        raise UsageError(f"--add-host {text!r} is not NAME:ADDRESS", why=f"{address!r} is no IP address") from error
    if not name:
        raise UsageError(f"--add-host {text!r} has no name")
    return name, address.strip("[]")


def default_network(text: str) -> Literal["isolated", "host"]:
    """What ``$KANIFOLD_NETWORK`` makes the network of steps that ask for none."""
    match text:
        case "" | "isolated":
            return "isolated"
        case "host":
            return "host"
        case _:
            raise UsageError(f"KANIFOLD_NETWORK={text!r} is neither isolated nor host")


def _ulimit(text: str) -> tuple[str, int, int]:
    """``name=soft:hard`` or ``name=both``, as docker has it."""
    match = re.fullmatch(r"(\w+)=(-1|\d+)(?::(-1|\d+))?", text)
    if match is None or match[1] not in _ULIMITS:
        raise UsageError(
            f"--ulimit {text!r} is not NAME=SOFT[:HARD]",
            remedy=f"numbers, -1 for none, and one of: {', '.join(_ULIMITS)}",
        )
    soft, hard = int(match[2]), int(match[3] or match[2])
    if hard != -1 and not 0 <= soft <= hard:
        raise UsageError(f"--ulimit {text!r}: the soft limit is above the hard one")
    return match[1], soft, hard


def _allowed(text: str) -> Allowed:
    head, colon, pattern = text.partition(":")
    if colon and "/" in head and not head.startswith("/"):
        return Allowed(pattern, str(parse_platform(head)))
    return Allowed(text)

"""Image configurations: OCI image-spec config.md, with Docker's additional fields.

``ImageConfig`` is frozen; a Dockerfile step returns a changed copy. Fields are written in the order of Docker's and
BuildKit's images, and omitted as in those, so that configs can be compared.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from platforms import decoding
from platforms.errors import ArchiveError
from platforms.platform import Platform

CONFIG_LIMIT: Final = 8 << 20
"""Maximum size of a config in bytes."""

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The PATH of an image that sets none (BuildKit, util/system)."""


class HealthConfig(msgspec.Struct, frozen=True):
    """Docker's health check. ``test`` is ``("NONE",)``, ``("CMD", …)`` or ``("CMD-SHELL", text)``; times in
    nanoseconds."""

    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class History(msgspec.Struct, frozen=True):
    """A step in the history of an image. ``created`` is in RFC 3339 format, "" if unknown."""

    created: str = ""
    created_by: str = ""
    comment: str = ""
    author: str = ""
    empty_layer: bool = False


class ImageConfig(msgspec.Struct, frozen=True):
    """The configuration of an image."""

    platform: Platform
    created: str = ""
    author: str = ""
    user: str = ""
    exposed_ports: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    volumes: tuple[str, ...] = ()
    working_dir: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    stop_signal: str = ""
    args_escaped: bool = False
    healthcheck: HealthConfig | None = None
    onbuild: tuple[str, ...] = ()
    shell: tuple[str, ...] = ()
    history: tuple[History, ...] = ()
    diff_ids: tuple[str, ...] = ()


def empty(platform: Platform) -> ImageConfig:
    """Return the config of ``FROM scratch``. Windows sets PATH itself."""
    if platform.os == "windows":
        return ImageConfig(platform, working_dir="/")
    return ImageConfig(platform, env=(("PATH", DEFAULT_PATH),), working_dir="/")


def parse(data: bytes) -> ImageConfig:
    """Parse a config. It is untrusted: every field is validated. Raises ``ArchiveError`` when it is malformed."""
    if len(data) > CONFIG_LIMIT:
        raise ArchiveError("image config too large", why=f"{len(data)} bytes; the limit is {CONFIG_LIMIT}")
    try:
        raw = decoding.decode(_DECODER, data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ArchiveError("malformed image config", why=str(error)) from error
    _refuse_nul(raw.config)
    if raw.rootfs is not None and raw.rootfs.type not in ("", "layers"):
        raise ArchiveError("unsupported image config", why=f"rootfs.type is {raw.rootfs.type!r}")
    config = raw.config or _Config()
    health = config.Healthcheck
    return ImageConfig(
        platform=Platform(raw.os, raw.architecture, raw.variant, raw.os_version, raw.os_features or ()),
        created=raw.created or "",
        author=raw.author or "",
        user=config.User,
        exposed_ports=tuple(sorted(config.ExposedPorts or {})),
        env=tuple(_pair(each) for each in config.Env or ()),
        entrypoint=config.Entrypoint,
        cmd=config.Cmd,
        volumes=tuple(sorted(config.Volumes or {})),
        working_dir=config.WorkingDir,
        labels=tuple(sorted((config.Labels or {}).items())),
        stop_signal=config.StopSignal,
        args_escaped=config.ArgsEscaped,
        healthcheck=None
        if health is None
        else HealthConfig(
            health.Test or (), health.Interval, health.Timeout, health.StartPeriod, health.StartInterval, health.Retries
        ),
        onbuild=config.OnBuild or (),
        shell=config.Shell or (),
        history=tuple(
            History(each.created or "", each.created_by, each.comment, each.author, each.empty_layer)
            for each in raw.history or ()
        ),
        diff_ids=(raw.rootfs.diff_ids or ()) if raw.rootfs else (),
    )


def _refuse_nul(config: _Config | None) -> None:
    """Reject NUL bytes in paths, variables and arguments: the kernel would end the text there."""
    if config is None:
        return
    words = (
        ("User", (config.User,)), ("WorkingDir", (config.WorkingDir,)), ("Env", config.Env), ("Shell", config.Shell),
        ("Entrypoint", config.Entrypoint), ("Cmd", config.Cmd), ("Volumes", config.Volumes),
    )  # fmt: skip
    for name, values in words:
        if any("\0" in each for each in values or ()):
            raise ArchiveError("malformed image config", why=f"{name} has a NUL byte")


def encode(config: ImageConfig) -> bytes:
    """Return ``config`` as JSON with sorted keys, as BuildKit writes it."""
    platform = config.platform
    inner = _drop_empty(
        {
            "ArgsEscaped": config.args_escaped,
            "Cmd": _listed(config.cmd),
            "Entrypoint": _listed(config.entrypoint),
            "Env": [f"{key}={value}" for key, value in config.env],
            "ExposedPorts": {port: {} for port in sorted(config.exposed_ports)},
            "Healthcheck": _plain_healthcheck(config.healthcheck),
            "Labels": dict(sorted(config.labels)),
            "OnBuild": list(config.onbuild),
            "Shell": list(config.shell),
            "StopSignal": config.stop_signal,
            "User": config.user,
            "Volumes": {path: {} for path in sorted(config.volumes)},
            "WorkingDir": config.working_dir,
        }
    )
    document = {
        "architecture": platform.architecture,
        "author": config.author or None,
        "config": inner,
        "created": config.created or None,
        "history": [
            _drop_empty(
                {
                    "created": each.created,
                    "created_by": each.created_by,
                    "author": each.author,
                    "comment": each.comment,
                    "empty_layer": each.empty_layer,
                }
            )
            for each in config.history
        ],
        "os": platform.os,
        "os.features": list(platform.os_features) or None,
        "os.version": platform.os_version or None,
        "rootfs": {"type": "layers", "diff_ids": list(config.diff_ids)},
        "variant": platform.variant or None,
    }
    return msgspec.json.encode({key: value for key, value in document.items() if value is not None})


def _listed(words: tuple[str, ...] | None) -> list[str] | None:
    return None if words is None else list(words)


def _plain_healthcheck(check: HealthConfig | None) -> dict[str, Any] | None:
    if check is None:
        return None
    return _drop_empty(
        {
            "Test": list(check.test),
            "Interval": check.interval,
            "Timeout": check.timeout,
            "StartPeriod": check.start_period,
            "StartInterval": check.start_interval,
            "Retries": check.retries,
        }
    )


def _drop_empty(fields: dict[str, Any]) -> dict[str, Any]:
    """Remove the fields that Go's ``omitempty`` leaves out: an empty command (``CMD []``), but not an empty struct."""
    return {key: value for key, value in fields.items() if value or (key == "Healthcheck" and value is not None)}


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


class _Healthcheck(msgspec.Struct):
    Test: tuple[str, ...] | None = None
    Interval: int = 0
    Timeout: int = 0
    StartPeriod: int = 0
    StartInterval: int = 0
    Retries: int = 0


class _Config(msgspec.Struct):
    User: str = ""
    ExposedPorts: dict[str, Any] | None = None
    Env: tuple[str, ...] | None = None
    Entrypoint: tuple[str, ...] | None = None
    Cmd: tuple[str, ...] | None = None
    Volumes: dict[str, Any] | None = None
    WorkingDir: str = ""
    Labels: dict[str, str] | None = None
    StopSignal: str = ""
    ArgsEscaped: bool = False
    Healthcheck: _Healthcheck | None = None
    OnBuild: tuple[str, ...] | None = None
    Shell: tuple[str, ...] | None = None


class _History(msgspec.Struct):
    created: str | None = None
    created_by: str = ""
    comment: str = ""
    author: str = ""
    empty_layer: bool = False


class _RootFS(msgspec.Struct):
    type: str = ""
    diff_ids: tuple[str, ...] | None = None


class _Image(msgspec.Struct):
    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(name="os.version", default="")
    os_features: tuple[str, ...] | None = msgspec.field(name="os.features", default=None)
    created: str | None = None
    author: str | None = None
    config: _Config | None = None
    history: tuple[_History, ...] | None = None
    rootfs: _RootFS | None = None


# Created at import: two threads that create a decoder of the same type at once crash msgspec.
_DECODER: Final[msgspec.json.Decoder[_Image]] = msgspec.json.Decoder(_Image)

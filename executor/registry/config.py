"""What the user says about registries: which are insecure, mirrored, certified by a private authority.

The file is YAML, ``$KANIFOLD_REGISTRIES``, else ``$XDG_CONFIG_HOME/kanifold/registries.yaml``; its keys are registries:

    docker.io:
      mirrors: [mirror.example.com, "http://cache.example.com:5000/hub"]
    registry.example.com:5000:
      ca: /etc/ssl/example-ca.pem       # authorities trusted for this host, beside the system's
      cert: client.pem                  # with key: the certificate we show
      key: client.key
      token-services: [login.example.net]
    build.example.com:
      insecure: true                    # TLS is not verified; plain HTTP when there is no TLS
      timeout: 20s                      # given up after so long without getting further, tries included

Docker's ``certs.d`` directories (``/etc/docker``, ``/etc/containers``, ``~/.config/containers``) are read as well.

Registries on this machine (localhost, 127.0.0.0/8, ::1) are spoken to in plain HTTP unless ``tls``, ``insecure`` or a
certificate is set for them: Docker tries HTTPS first and falls back, which spends a failed handshake on what is nearly
always a registry without TLS. An insecure one, here or elsewhere, is tried with TLS first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from executor.registry.reference import canonical_registry, registry_of
from platforms.durations import seconds
from platforms.errors import UsageError
from platforms.hosts import is_loopback
from platforms.paths import below, named_by_user

_CERTS_D: Final = ("/etc/docker/certs.d", "/etc/containers/certs.d", "~/.config/containers/certs.d")
_KEYS: Final = ("ca", "cert", "insecure", "key", "mirrors", "timeout", "tls", "token-services")
_FILE_LIMIT: Final = 1 << 20
_LONGEST: Final = 3600.0


class Certificates(msgspec.Struct, frozen=True):
    """TLS material for one registry. ``ca`` is PEM text, so that it travels; the client's own pair stays in files."""

    registry: str
    ca: str = ""
    cert: str = ""
    key: str = ""


class RegistrySettings(msgspec.Struct, frozen=True):
    """Everything above, as data: it crosses to executors on other nodes."""

    insecure: frozenset[str] = frozenset()
    """Registries whose TLS is not verified, and which may have none."""
    mirrors: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """A registry, and where to look first: ``[http://]HOST[:PORT][/PREFIX]``, in order."""
    certificates: tuple[Certificates, ...] = ()
    token_services: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """A registry, and hosts on other sites that may be given its credential (see ``token.py``)."""
    tls: frozenset[str] = frozenset()
    """Registries on this machine that speak TLS."""
    without_tls: frozenset[str] = frozenset()
    """Insecure registries that have been found to have no TLS."""
    failing: frozenset[str] = frozenset()
    """Mirrors that have failed in this build: they are not asked again."""
    timeouts: tuple[tuple[str, float], ...] = ()
    """A registry, or "" for all others, and the seconds after which it is given up."""

    def is_insecure(self, registry: str) -> bool:
        """Whether plain HTTP and unverified TLS are allowed for ``registry``."""
        return registry_of(registry) in self.insecure

    def is_plain(self, registry: str) -> bool:
        """Whether ``registry`` is spoken to in plain HTTP without trying TLS."""
        if registry in self.without_tls:
            return True
        told = self.tls | self.insecure
        return is_loopback(registry) and registry not in told and self.certificates_for(registry) is None

    def mirrors_of(self, registry: str) -> tuple[str, ...]:
        """Where to look before ``registry``, in order."""
        return dict(self.mirrors).get(registry, ())

    def timeout_of(self, registry: str) -> float:
        """The seconds after which ``registry`` is given up if nothing comes of it; 0 when the user did not say."""
        timeouts = dict(self.timeouts)
        return timeouts.get(registry, timeouts.get("", 0.0))

    def certificates_for(self, registry: str) -> Certificates | None:
        """The TLS material for ``registry``, if any is set."""
        name = registry_of(registry)
        return next((each for each in self.certificates if each.registry == name), None)

    def trusts_token_service(self, registry: str, host: str) -> bool:
        """Whether the user has named ``host`` (``HOST`` or ``HOST:PORT``) as a token service of ``registry``."""
        return host in dict(self.token_services).get(registry, ())


def load_settings(path: str = "") -> RegistrySettings:
    """The settings in ``path`` or, when "", in the file that this module's text names; certs.d included.

    Raises ``UsageError`` that names the file and the key; a missing default file is no error.
    """
    explicit = path or os.environ.get("KANIFOLD_REGISTRIES", "")
    config_home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    file = explicit or os.path.join(config_home, "kanifold", "registries.yaml")
    settings = RegistrySettings()
    try:
        with open(file, "rb") as stream:
            data = stream.read(_FILE_LIMIT)
    except (FileNotFoundError, NotADirectoryError) as error:
        if explicit:
            raise _invalid(file, "there is no such file") from error
    except OSError as error:
        raise _invalid(file, error.strerror or "it cannot be read") from error
    else:
        settings = _parse(data, file)
    return _with_certs_d(settings)


def with_flags(
    settings: RegistrySettings,
    insecure: Iterable[str] = (),
    mirrors: Iterable[str] = (),
    timeouts: Iterable[str] = (),
) -> RegistrySettings:
    """``settings`` with what ``--insecure-registry HOST``, ``--registry-mirror [REGISTRY=]HOST`` and
    ``--registry-timeout [REGISTRY=]TIME`` add.

    Mirrors named by flag come before those of the file, timeouts in their place: one for all registries is for those
    in the file too.
    """
    names = {canonical_registry(each) for each in insecure}
    merged = dict(settings.mirrors)
    named: dict[str, tuple[str, ...]] = {}
    for text in mirrors:
        left, equals, right = text.partition("=")
        registry, mirror = (canonical_registry(left), right) if equals else ("docker.io", left)
        named[registry] = (*named.get(registry, ()), _mirror(mirror))
    for registry, hosts in named.items():
        merged[registry] = hosts + merged.get(registry, ())
    limits = dict(settings.timeouts)
    for text in timeouts:
        left, equals, right = text.rpartition("=")
        if not equals:
            limits.clear()
        limits[canonical_registry(left) if equals else ""] = _seconds(right, f"--registry-timeout {text}")
    return replace(
        settings,
        insecure=settings.insecure | names,
        mirrors=tuple(merged.items()),
        timeouts=tuple(limits.items()),
    )


def _seconds(text: str, what: str) -> float:
    found = seconds(text)
    if not found or found > _LONGEST:
        raise UsageError(f"{what}: {text!r} is not a time", remedy="write 10s, 90s or 2m: up to an hour")
    return found


def _parse(data: bytes, file: str) -> RegistrySettings:
    import yaml

    try:
        document = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _invalid(file, f"it is not YAML: {error}") from error
    if document is None:
        return RegistrySettings()
    if not isinstance(document, dict):
        raise _invalid(file, "it is not a mapping of registries")
    settings = RegistrySettings()
    for name, entry in document.items():
        if not isinstance(name, str):
            raise _invalid(file, f"{name!r} is not a registry")
        settings = _merge_entry(settings, canonical_registry(name), {} if entry is None else entry, file)
    return settings


def _merge_entry(settings: RegistrySettings, registry: str, entry: Any, file: str) -> RegistrySettings:
    if not isinstance(entry, dict):
        raise _invalid(file, f"{registry}: not a mapping")
    for key in entry:
        if key not in _KEYS:
            import difflib

            close = difflib.get_close_matches(str(key), _KEYS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(_KEYS)}"
            raise _invalid(file, f"{registry}: unknown key {key!r}{hint}")
    for key in ("insecure", "tls"):
        if not isinstance(entry.get(key, False), bool):
            raise _invalid(file, f"{registry}: {key!r} is not true or false")
    mirrors = tuple(_mirror(each) for each in _texts(entry, "mirrors", registry, file))
    services = _texts(entry, "token-services", registry, file)
    certificates = _certificates(entry, registry, file)
    timeout = entry.get("timeout")
    limits = () if timeout is None else ((registry, _seconds(str(timeout), f"{file}: {registry}: timeout")),)
    return replace(
        settings,
        timeouts=settings.timeouts + limits,
        insecure=settings.insecure | ({registry} if entry.get("insecure") else set()),
        tls=settings.tls | ({registry} if entry.get("tls") else set()),
        mirrors=settings.mirrors + (((registry, mirrors),) if mirrors else ()),
        token_services=settings.token_services + (((registry, services),) if services else ()),
        certificates=settings.certificates + ((certificates,) if certificates else ()),
    )


def _texts(entry: dict[str, Any], key: str, registry: str, file: str) -> tuple[str, ...]:
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise _invalid(file, f"{registry}: {key!r} is not a list of hosts")
    return tuple(value)


def _certificates(entry: dict[str, Any], registry: str, file: str) -> Certificates | None:
    base = os.path.dirname(os.path.abspath(file))
    paths = {}
    for key in ("ca", "cert", "key"):
        value = entry.get(key, "")
        if not isinstance(value, str):
            raise _invalid(file, f"{registry}: {key!r} is not a path")
        paths[key] = named_by_user(base, value) if value else ""
    if not any(paths.values()):
        return None
    if paths["key"] and not paths["cert"]:
        raise _invalid(file, f"{registry}: 'key' is set without 'cert'")
    return Certificates(registry, _pem(paths["ca"]) if paths["ca"] else "", paths["cert"], paths["key"])


def _mirror(text: str) -> str:
    """``text`` as it is kept when it is a mirror's address; https is understood and left out."""
    address = text.strip().removeprefix("https://").rstrip("/")
    host = address.removeprefix("http://").partition("/")[0]
    if "://" in address.removeprefix("http://"):
        raise UsageError(
            f"invalid registry mirror {text!r}",
            why="a mirror speaks HTTP or HTTPS",
            remedy="write [REGISTRY=]HOST[:PORT][/PREFIX]",
        )
    canonical_registry(host)
    return address


def _with_certs_d(settings: RegistrySettings) -> RegistrySettings:
    known = {each.registry for each in settings.certificates}
    found: list[Certificates] = []
    for directory in map(os.path.expanduser, _CERTS_D):
        try:
            hosts = sorted(os.listdir(directory))
        except OSError:
            continue
        for host in hosts:
            certificates = _certs_of(below(directory, host), host)
            if certificates is not None and certificates.registry not in known:
                known.add(certificates.registry)
                found.append(certificates)
    return replace(settings, certificates=settings.certificates + tuple(found)) if found else settings


def _certs_of(directory: str, host: str) -> Certificates | None:
    """One host's directory, as Docker reads it: ``*.crt`` are authorities, ``*.cert`` with ``*.key`` ours."""
    try:
        registry = canonical_registry(host)
        names = sorted(os.listdir(directory))
    except (UsageError, OSError):
        return None
    ca = "".join(_pem(below(directory, name)) for name in names if name.endswith(".crt"))
    cert = next((below(directory, name) for name in names if name.endswith(".cert")), "")
    key = cert.removesuffix(".cert") + ".key" if cert else ""
    return Certificates(registry, ca, cert, key) if ca or cert else None


def _pem(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(_FILE_LIMIT)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is not PEM text"
        raise _invalid(path, why) from error


def _invalid(file: str, why: str) -> UsageError:
    return UsageError(
        f"cannot use the registry settings in {file}",
        why=why,
        remedy="repair the file; docs/registries.md shows its form",
    )

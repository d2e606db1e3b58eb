"""The user's settings of registries: insecure ones, mirrors, certificates, token services, timeouts.

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

Registries on this machine (localhost, 127.0.0.0/8, ::1) are accessed by plain HTTP unless ``tls``, ``insecure`` or a
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
from platforms.paths import below, named_by_user, settings_file

_CERTS_D: Final = ("/etc/docker/certs.d", "/etc/containers/certs.d", "~/.config/containers/certs.d")
_KEYS: Final = ("ca", "cert", "insecure", "key", "mirrors", "timeout", "tls", "token-services")
_FILE_LIMIT: Final = 1 << 20
_LONGEST: Final = 3600.0


class RegistryCertificates(msgspec.Struct, frozen=True):
    """TLS material for one registry. ``ca`` is PEM text, so that it can be sent to other nodes; ``cert`` and ``key``
    are paths."""

    registry: str
    ca: str = ""
    cert: str = ""
    key: str = ""


class RegistrySettings(msgspec.Struct, frozen=True):
    """The settings of all registries, as data that is sent to executors."""

    insecure: frozenset[str] = frozenset()
    """Registries whose TLS certificates are not verified, and which may speak plain HTTP."""
    mirrors: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """The mirrors of a registry, ``[http://]HOST[:PORT][/PREFIX]``, in the order in which they are tried."""
    certificates: tuple[RegistryCertificates, ...] = ()
    token_services: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Hosts outside a registry's own site to which its credential may be sent (see ``token.py``)."""
    tls: frozenset[str] = frozenset()
    """Registries on this machine that speak TLS."""
    without_tls: frozenset[str] = frozenset()
    """Insecure registries that turned out to speak plain HTTP."""
    failing: frozenset[str] = frozenset()
    """Mirrors that have failed in this build; they are not tried again."""
    timeouts: tuple[tuple[str, float], ...] = ()
    """Seconds without progress after which a registry is given up; the key "" is for all others."""

    def is_insecure(self, registry: str) -> bool:
        """Whether plain HTTP and unverified TLS are allowed for ``registry``, or the host of its API."""
        return registry_of(registry) in self.insecure

    def is_plain(self, registry: str) -> bool:
        """Whether plain HTTP is used for ``registry`` without trying TLS."""
        if registry in self.without_tls:
            return True
        told = self.tls | self.insecure
        return is_loopback(registry) and registry not in told and self.certificates_for(registry) is None

    def mirrors_of(self, registry: str) -> tuple[str, ...]:
        """Return the mirrors of ``registry``, in order."""
        return dict(self.mirrors).get(registry, ())

    def timeout_of(self, registry: str) -> float:
        """Return the seconds without progress after which ``registry`` is given up; 0 if there is no limit."""
        timeouts = dict(self.timeouts)
        return timeouts.get(registry, timeouts.get("", 0.0))

    def certificates_for(self, registry: str) -> RegistryCertificates | None:
        """Return the TLS material for ``registry``, or the host of its API, if any is set."""
        name = registry_of(registry)
        return next((each for each in self.certificates if each.registry == name), None)

    def trusts_token_service(self, registry: str, host: str) -> bool:
        """Whether the user lists ``host`` (``HOST`` or ``HOST:PORT``) as a token service of ``registry``."""
        return host in dict(self.token_services).get(registry, ())


def load_settings(path: str = "") -> RegistrySettings:
    """Return the settings in the file ``path``, by default the one that the module's docstring names, and those in
    certs.d.

    Raises ``UsageError``, which names the file and the key. A missing default file is no error.
    """
    explicit = path or os.environ.get("KANIFOLD_REGISTRIES", "")
    file = explicit or settings_file("registries.yaml")
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
    """Return ``settings`` with the flags ``--insecure-registry HOST``, ``--registry-mirror [REGISTRY=]HOST`` and
    ``--registry-timeout [REGISTRY=]TIME`` added.

    Mirrors from flags are tried before those of the file. A timeout replaces that of the file; one without a registry
    replaces all of them.
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


def _certificates(entry: dict[str, Any], registry: str, file: str) -> RegistryCertificates | None:
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
    return RegistryCertificates(registry, _pem(paths["ca"]) if paths["ca"] else "", paths["cert"], paths["key"])


def _mirror(text: str) -> str:
    """Return the address of a mirror in its stored form: without ``https://``."""
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
    found: list[RegistryCertificates] = []
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


def _certs_of(directory: str, host: str) -> RegistryCertificates | None:
    """Return the certificates in one host's directory, by Docker's rules: ``*.crt`` are authorities, ``*.cert`` with
    ``*.key`` the client's."""
    try:
        registry = canonical_registry(host)
        names = sorted(os.listdir(directory))
    except (UsageError, OSError):
        return None
    ca = "".join(_pem(below(directory, name)) for name in names if name.endswith(".crt"))
    cert = next((below(directory, name) for name in names if name.endswith(".cert")), "")
    key = cert.removesuffix(".cert") + ".key" if cert else ""
    return RegistryCertificates(registry, ca, cert, key) if ca or cert else None


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

"""The ``build`` sections of Compose files, as the targets that bake makes of them.

Sources: https://github.com/compose-spec/compose-spec/blob/main/build.md, for what the targets are called and for
``x-bake`` https://docs.docker.com/build/bake/compose-file/. Services of all profiles count. What a file has besides
``services.*.build``, ``image``, ``environment``, ``extends`` and ``secrets`` is not looked at.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from executor.dockerfile.suggestions import hint
from orchestrator.release.bake import bake_target
from orchestrator.release.bake.bake_definitions import NAME, NO_ENVIRONMENT, Declared
from orchestrator.release.bake.bake_target import BakeTarget
from orchestrator.release.compose_values import ComposeValue, merged, parse
from orchestrator.release.hcl.hcl_syntax import FilePlace
from orchestrator.release.hcl.hcl_values import ValueRefused
from orchestrator.release.model import DEFAULT_GROUP, Fields, Group
from platforms import regular
from platforms.errors import UsageError, printable
from platforms.sizes import number_of_bytes

BUILD_KEYS: Final = (
    "context", "dockerfile", "dockerfile_inline", "entitlements", "args", "ssh", "labels", "cache_from", "cache_to",
    "no_cache", "no_cache_filter", "additional_contexts", "network", "provenance", "sbom", "pull", "target", "shm_size",
    "extra_hosts", "isolation", "privileged", "secrets", "tags", "ulimits", "platforms",
)  # fmt: skip
"""The keys of a ``build`` section."""
X_BAKE_KEYS: Final = (
    "tags", "cache-from", "cache-to", "secret", "ssh", "platforms", "output", "pull", "no-cache", "no-cache-filter",
    "contexts",
)  # fmt: skip
"""The keys of ``x-bake`` in a ``build`` section."""
_DOTENV: Final = ".env"
_DEPTH_LIMIT: Final = 32
"""Through how many others a service may extend, and how deeply defaults of variables are nested."""
_LINE: Final = re.compile(r"\s*(?:export\s+)?([A-Za-z_][\w.-]*)\s*(?:[=:]\s*(.*))?", re.ASCII)
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def declared(files: Sequence[tuple[str, bytes]], variables: Mapping[str, str]) -> Declared:
    """Return the targets that the services of ``files`` are, and the default group of all. Raises ``UsageError``."""
    environment = _environment(variables)
    document = functools.reduce(merged, (_with_extended(parse(data, path)) for path, data in files))
    if (included := document.get("include")) is not None and not included.is_null:
        raise included.place.refusal(
            "include is not supported", remedy="docker compose config writes what it includes into one file"
        )
    services = document.get("services")
    if services is None:
        raise document.place.refusal("the file has no services", remedy="it is neither a Compose file nor a bake file")
    reader = _Services(document, environment)
    targets: list[BakeTarget] = []
    places: dict[str, FilePlace] = {}
    for name, service in services.mapping().items():
        build = service.get("build")
        if build is None or build.is_null:
            continue
        target = reader.target(name, service, build)
        targets.append(target)
        places[target.name] = build.place
    return Declared(tuple(targets), (Group(DEFAULT_GROUP, tuple(each.name for each in targets)),), places)


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment, with what ``.env`` in the working directory adds, and with ``variables``."""
    try:
        hidden = bake_target.truth(os.environ.get(NO_ENVIRONMENT, "false"))
    except ValueRefused:
        hidden = False
    found = {} if hidden else {key: each.encode(errors="replace").decode() for key, each in os.environ.items()}
    _check_inside(_DOTENV)
    for key, value in dotenv(_DOTENV, found).items():
        found.setdefault(key, value)
    return {**found, **variables}


def _check_inside(path: str) -> None:
    """Raise ``UsageError`` if ``path`` is a link out of the working directory: values would come from elsewhere."""
    here = os.path.realpath(os.curdir).rstrip("/")
    if not os.path.realpath(path).startswith(f"{here}/"):
        raise UsageError(
            f"{path} is a link to a file outside of the release",
            remedy="copy the file, or name its variables in the environment",
        )


def dotenv(path: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a file of ``NAME=VALUE`` lines; {} if there is none. Raises ``UsageError``.

    Texts in single quotes are literal; others have variables, of ``environment`` or of earlier lines.
    """
    try:
        with regular.open_file(path) as file:
            text = file.read(1 << 20).decode()
    except (FileNotFoundError, IsADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}", why=str(error)) from error
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise UsageError(f"{path}:{number}: it is not NAME=VALUE")
        value = (match[2] or "").strip()
        if match[2] is None and "=" not in line:  # a name without a value is inherited
            if match[1] in environment:
                found[match[1]] = environment[match[1]]
            continue
        quote = value[:1] if value[:1] in ("'", '"') else ""
        end = value.find(quote, 1) if quote else -1
        if quote and end > 0:
            value = value[1:end]
        else:
            quote, value = "", re.split(r"\s+#", value)[0].strip()
        if quote == '"':
            value = value.replace("\\n", "\n").replace('\\"', '"')
        where = f"{path}:{number}"
        found[match[1]] = value if quote == "'" else interpolated(value, {**environment, **found}, where)
    return found


def interpolated(text: str, environment: Mapping[str, str], where: str) -> str:
    """Return ``text`` with its variables replaced: ``$NAME``, ``${NAME:-default}`` and the like. ``$$`` is ``$``.

    Raises ``UsageError`` for a form that does not exist, and for a variable that ``${NAME:?message}`` requires.
    """
    return _Interpolation(text, environment, where).until("", 0)


class _Interpolation:
    """Replaces the variables of one text."""

    def __init__(self, text: str, environment: Mapping[str, str], where: str) -> None:
        self._text = text
        self._environment = environment
        self._where = where
        self._at = 0

    def until(self, end: str, depth: int) -> str:
        """Return what is up to ``end``, which is passed over."""
        if depth > _DEPTH_LIMIT:
            raise self._refusal("it is nested too deeply")
        parts: list[str] = []
        while self._at < len(self._text):
            rest = self._text[self._at]
            if rest == end:
                self._at += 1
                return "".join(parts)
            if rest != "$":
                parts.append(rest)
                self._at += 1
            else:
                parts.append(self._variable(depth))
        if end:
            raise self._refusal("a brace is not closed")
        return "".join(parts)

    def _variable(self, depth: int) -> str:
        if self._text.startswith("$$", self._at):
            self._at += 2
            return "$"
        match = re.compile(r"\$(\{)?([A-Za-z_]\w*)", re.ASCII).match(self._text, self._at)
        if match is None:
            raise self._refusal("a $ begins no variable", "write $$ for a $")
        self._at = match.end()
        value = self._environment.get(match[2])
        if not match[1]:
            return value or ""
        operator = re.compile(r":?[-?+]|\}").match(self._text, self._at)
        if operator is None:
            raise self._refusal("a variable has a form that does not exist")
        self._at = operator.end()
        if operator[0] == "}":
            return value or ""
        other = self.until("}", depth + 1)
        given = bool(value) if operator[0][0] == ":" else value is not None
        if operator[0][-1] == "+":
            return other if given else ""
        if operator[0][-1] == "?" and not given:
            raise self._refusal(f"the variable {match[2]} is required", printable(other))
        return (value or "") if given else other

    def _refusal(self, what: str, remedy: str = "") -> UsageError:
        return UsageError(f"{self._where}: {what} in {printable(self._text, 80)}", remedy=remedy)


def _with_extended(document: ComposeValue) -> ComposeValue:
    """Return the document of one file, in which each service has what it extends."""
    services = document.get("services")
    if services is None or not services.is_mapping:
        return document
    known = services.mapping()
    found = {name: _extended(name, each, known, 0) for name, each in known.items()}
    return ComposeValue(document.place, {**document.mapping(), "services": ComposeValue(services.place, found)})


def _extended(name: str, service: ComposeValue, services: Mapping[str, ComposeValue], depth: int) -> ComposeValue:
    extends = service.get("extends")
    if extends is None:
        return service
    if depth > _DEPTH_LIMIT:
        raise extends.place.refusal(f"the service {printable(name)} extends itself, or through too many others")
    file = None if extends.is_scalar else extends.get("file")
    if file is not None:
        raise file.place.refusal("a service of another file cannot be extended", remedy="name that file with -f, too")
    other = extends if extends.is_scalar else extends.get("service")
    base = other.text() if other is not None else ""
    if base not in services:
        raise extends.place.refusal(f"there is no service {printable(base)}{hint(base, services)}")
    return merged(_extended(base, services[base], services, depth + 1), service)


class _Services:
    """Makes targets of services."""

    def __init__(self, document: ComposeValue, environment: Mapping[str, str]) -> None:
        self._environment = environment
        secrets = document.get("secrets")
        self._secrets = secrets.mapping() if secrets is not None else {}

    def target(self, name: str, service: ComposeValue, build: ComposeValue) -> BakeTarget:
        """Return the target for a service that is built."""
        called = name.replace(".", "_")
        if not NAME.fullmatch(called):
            raise build.place.refusal(f"{printable(name, 60)!r} is not a name of a service that bake takes")
        build = self._interpolated(build)
        if build.is_scalar:
            return BakeTarget(called, context=build.text(), tags=self._image(service), labels={}, extra_hosts={})
        for key, value in build.mapping().items():
            if key not in BUILD_KEYS and not key.startswith("x-"):
                raise value.place.refusal(f"unknown key {printable(key)}{hint(key, BUILD_KEYS)} of a build")
        reader = _Build(build, self._secrets_of(build), self._service_environment(service))
        target = reader.target(called)
        extension = build.get("x-bake")
        if not target.tags:
            target = msgspec.structs.replace(target, tags=self._image(service))
        return _with_extension(target, extension) if extension is not None else target

    def _image(self, service: ComposeValue) -> tuple[str, ...] | None:
        image = service.get("image")
        return (self._interpolated(image).text(),) if image is not None and not image.is_null else None

    def _interpolated(self, value: ComposeValue) -> ComposeValue:
        return value.map_texts(lambda text, place: interpolated(text, self._environment, place))

    def _service_environment(self, service: ComposeValue) -> Mapping[str, str]:
        """Return what arguments without a value are taken from."""
        own = service.get("environment")
        said = _pairs(self._interpolated(own)) if own is not None else {}
        return {**self._environment, **{key: each for key, each in said.items() if each is not None}}

    def _secrets_of(self, build: ComposeValue) -> tuple[Fields, ...]:
        found: list[Fields] = []
        secrets = build.get("secrets")
        for each in secrets.items() if secrets is not None else ():
            source = each if each.is_scalar else each.get("source")
            name = source.text() if source is not None else ""
            fields = {"id": name}
            if name in self._secrets:
                defined = self._interpolated(self._secrets[name])
                if defined.get("external") is not None:
                    raise defined.place.refusal(f"the secret {printable(name)} is external, which a build cannot have")
                for key, word in (("file", "src"), ("environment", "env")):
                    value = defined.get(key)
                    if value is not None:
                        fields[word] = _local(value.text()) if key == "file" else value.text()
            found.append(tuple(fields.items()))
        return tuple(found)


class _Build:
    """Reads one ``build`` section."""

    def __init__(self, build: ComposeValue, secrets: tuple[Fields, ...], environment: Mapping[str, str]) -> None:
        self._build = build
        self._secrets = secrets
        self._environment = environment

    def target(self, name: str) -> BakeTarget:
        """Return the target that the section is."""
        args = {key: self._environment.get(key) if each is None else each for key, each in self._pairs("args").items()}
        contexts = self._pairs("additional_contexts")
        return BakeTarget(
            name,
            context=self._text("context"),
            contexts={key: _local(_context(each or "")) for key, each in contexts.items()} or None,
            dockerfile=self._text("dockerfile"),
            dockerfile_inline=self._text("dockerfile_inline"),
            args={key: each for key, each in args.items() if each is not None},
            labels={key: each or "" for key, each in self._pairs("labels").items()},
            tags=self._texts("tags"),
            cache_from=self._caches("cache_from"),
            cache_to=self._caches("cache_to"),
            target=self._text("target"),
            secret=self._secrets or None,
            ssh=self._ssh(),
            platforms=self._texts("platforms"),
            pull=self._switch("pull"),
            no_cache=self._switch("no_cache"),
            network=self._text("network"),
            shm_size=self._size(),
            ulimits=self._ulimits(),
            extra_hosts=self._hosts(),
            attest=self._attests(),
        )

    def _get(self, key: str) -> ComposeValue | None:
        found = self._build.get(key)
        return None if found is None or found.is_null else found

    def _text(self, key: str) -> str | None:
        found = self._get(key)
        return (found.text() or None) if found is not None else None

    def _texts(self, key: str) -> tuple[str, ...] | None:
        found = self._get(key)
        return tuple(each.text() for each in found.items()) if found is not None else None

    def _switch(self, key: str) -> bool | None:
        found = self._get(key)
        return (_refused(found, bake_target.truth, found.text()) or None) if found is not None else None

    def _pairs(self, key: str) -> dict[str, str | None]:
        found = self._get(key)
        return _pairs(found) if found is not None else {}

    def _caches(self, key: str) -> tuple[Fields, ...] | None:
        found = self._get(key)
        if found is None:
            return None
        return tuple(fields for each in found.items() for fields in _refused(each, bake_target.caches, each.text()))

    def _ssh(self) -> tuple[Fields, ...] | None:
        found = self._get("ssh")
        if found is None:
            return None
        if found.is_scalar:
            return (bake_target.agent(found.text()),)
        texts = (f"{key}={each}" if each else key for key, each in _pairs(found).items())
        return tuple(sorted(map(bake_target.agent, texts)))

    def _size(self) -> str | None:
        found = self._get("shm_size")
        if found is None:
            return None
        size = number_of_bytes(found.text())
        if size is None:
            raise found.place.refusal("it is not a size", remedy="write bytes, or 512k, 64m, 10g")
        return _byte_size(size) if size else None

    def _ulimits(self) -> tuple[str, ...] | None:
        found = self._get("ulimits")
        if found is None:
            return None
        texts: list[str] = []
        for name, each in found.mapping().items():
            soft, hard = (each, each) if each.is_scalar else (each.get("soft"), each.get("hard"))
            if soft is None or hard is None:
                raise each.place.refusal("a limit is a number, or has soft and hard")
            texts.append(f"{name}={soft.text()}:{hard.text()}")
        return tuple(texts)

    def _hosts(self) -> dict[str, str | None]:
        found = self._get("extra_hosts")
        if found is None:
            return {}
        if found.is_mapping:
            pairs = found.mapping().items()
            return {
                key: each.text() if each.is_scalar else ",".join(one.text() for one in each.items())
                for key, each in pairs
            }
        hosts: dict[str, list[str]] = {}
        for each in found.items():
            name, separator, address = each.text().partition("=" if "=" in each.text() else ":")
            if not separator:
                raise each.place.refusal("it is not HOST=ADDRESS")
            hosts.setdefault(name, []).append(address.strip("[]"))
        return {key: ",".join(each) for key, each in hosts.items()}

    def _attests(self) -> tuple[Fields, ...] | None:
        found: list[Fields] = []
        for kind in ("sbom", "provenance"):
            value = self._get(kind)
            if value is None:
                continue
            text = value.text()
            try:
                text = f"type={kind},disabled={str(not bake_target.truth(text)).lower()}"
            except ValueRefused:
                text = f"type={kind},{text}"
            found.append(_refused(value, bake_target.attest, text))
        return tuple(found) or None


def _refused(value: ComposeValue, read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except ValueRefused as error:
        raise value.place.refusal(f"{printable(text)} is wrong", why=str(error)) from error


def _pairs(value: ComposeValue) -> dict[str, str | None]:
    """Return a mapping, or a list of ``KEY=VALUE``; None for a key without a value."""
    if value.is_mapping:
        return {key: None if each.is_null else each.text() for key, each in value.mapping().items()}
    found: dict[str, str | None] = {}
    for each in value.items():
        key, equals, text = each.text().partition("=")
        found[key] = text if equals else None
    return found


def _context(text: str) -> str:
    kind, colon, name = text.partition(":")
    return f"target:{name.replace('.', '_')}" if colon and kind in ("service", "target") else text


def _local(text: str) -> str:
    """Return a path relative to the working directory in its shortest form; what is not a path as it is."""
    if not text or ":" in text or os.path.isabs(text):
        return text
    return os.path.normpath(os.path.expanduser(text))


def _byte_size(size: int) -> str:
    """Return ``size`` as docker writes one: ``64MiB``, with four digits."""
    number, unit = float(size), 0
    while number >= 1024 and unit < len(_UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.4g}{_UNITS[unit]}"


def _with_extension(target: BakeTarget, extension: ComposeValue) -> BakeTarget:
    """Return ``target`` with what ``x-bake`` adds."""
    changes: dict[str, Any] = {}
    readers: dict[str, Callable[[str], Any]] = {
        "secret": lambda text: (bake_target.secret(text),),
        "ssh": lambda text: (bake_target.agent(text),),
        "output": lambda text: (bake_target.output(text),),
        "cache-from": bake_target.caches,
        "cache-to": bake_target.caches,
    }
    for key, value in extension.mapping().items():
        name = bake_target.field(key)
        if key in ("pull", "no-cache"):
            changes[name] = _refused(value, bake_target.truth, value.text())
        elif key == "contexts":
            said = {name: _context(each or "") for name, each in _pairs(value).items()}
            changes[name] = {**said, **(target.contexts or {})}
        elif key in ("tags", "platforms", "no-cache-filter"):
            changes[name] = tuple(dict.fromkeys((*(getattr(target, name) or ()), *_words(value))))
        elif key in readers:
            found = [fields for text in _words(value) if text for fields in _refused(value, readers[key], text)]
            entries = bake_target.unique(name, (*(getattr(target, name) or ()), *found))
            changes[name] = tuple(sorted(entries)) if key == "ssh" else entries
    return msgspec.structs.replace(target, **changes)


def _words(value: ComposeValue) -> list[str]:
    return value.text().split() if value.is_scalar else [each.text() for each in value.items()]

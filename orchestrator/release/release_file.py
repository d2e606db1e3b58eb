"""Reading a release out of ``kanifold.yaml``.

    variables: {REGISTRY: registry.example.com/team}
    templates:
      common: {platforms: [linux/amd64, linux/arm64]}
    images:
      base: {inherits: common, context: base, tags: "${REGISTRY}/base:${git.version}"}
      web:
        inherits: common
        matrix: {python: ["3.12", "3.13"]}
        depends-on: base
        args: {PYTHON: "${python}"}
        tags: ["${REGISTRY}/web:${git.version}-python${python}"]
        test: python3 -m web --check
    groups:
      default: [base, web]

``docs/releases.md`` has the reference, ``kanifold.schema.json`` the JSON Schema. (1) ``inherits`` is resolved: mappings
are merged by key, and of everything else the image's own value counts, then that of the last name. (2) A matrix makes
several images of one. (3) Variables are replaced in all texts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec.structs import replace

from executor.dockerfile.suggestions import hint
from orchestrator import project_file, yaml_settings
from orchestrator.nodes import inventory
from orchestrator.release.combinations import combinations
from orchestrator.release.model import IMAGE_CONTEXT, MOST, Fields, Group, ImageTest, Pairs, Release, ReleaseImage
from orchestrator.release.variables import Variables
from orchestrator.yaml_settings import Setting
from platforms import durations
from platforms.errors import UsageError

NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What names of images, templates and groups are."""
IMAGE_KEYS: Final = (
    "description", "inherits", "matrix", "name", "context", "dockerfile", "dockerfile-inline", "target", "platforms",
    "args", "contexts", "depends-on", "tags", "labels", "annotations", "secrets", "ssh", "cache-from", "cache-to",
    "outputs", "nodes", "test", "no-cache", "no-cache-filter", "pull", "network", "shm-size", "ulimits", "extra-hosts",
)  # fmt: skip
"""The keys of an image."""
TEST_KEYS: Final = ("name", "run", "command", "script", "network", "timeout", "platforms")
"""The keys of a test."""
_CHAIN: Final = 64
"""Maximum number of images and templates that inherit from each other in a row."""
_SWITCH: Final = {"true": True, "false": False}
_EPOCH: Final = "SOURCE_DATE_EPOCH"
_UNFIT: Final = re.compile(r"[^A-Za-z0-9_-]+")


def read(path: str, given: Mapping[str, str], environ: Mapping[str, str]) -> Release:
    """Return the release of the file ``path``. ``given`` are the variables of ``--var``.

    Raises ``UsageError``, which names file, line and column; ``FileNotFoundError`` if there is no file.
    """
    return parsed(yaml_settings.read(path), given, environ)


def parsed(document: Setting, given: Mapping[str, str], environ: Mapping[str, str]) -> Release:
    """Return the release of ``document``, as ``read``."""
    entries = document.mapping(*project_file.KEYS)
    path = document.source.file
    directory = os.path.dirname(path) or os.curdir
    declared = entries["variables"].mapping() if "variables" in entries else {}
    images = _named(entries.get("images"), "an image")
    if not images:
        raise document.refusal("it declares no image", remedy="name images in `images`")
    file = _File(
        Variables(declared, given, environ, directory),
        images,
        _named(entries.get("templates"), "a template"),
        tuple(str(each) for each in project_file.read_platforms(entries["platforms"]))
        if "platforms" in entries
        else (),
        environ.get(_EPOCH, ""),
    )
    for name, template in file.templates.items():
        if name in images:
            raise template.refusal("an image has this name, too")
    found: list[ReleaseImage] = []
    groups: list[Group] = []
    for name, setting in images.items():
        made = file.images_of(name, setting)
        if [each.name for each in made] != [name]:
            groups.append(Group(name, tuple(each.name for each in made)))
        if len(found) + len(made) > MOST:
            raise setting.refusal(f"the release has more than {MOST} images")
        for each in made:
            if any(other.name == each.name for other in found):
                raise setting.refusal(f"two images are called {each.name}", remedy="give each a `name` of its own")
            found.append(each)
    groups += _groups(entries.get("groups"), found, groups)
    return Release(path, directory, tuple(found), tuple(groups))


def _fitted(name: str) -> str:
    """Return ``name`` with dashes for what names of images do not have, such as the dots of a version."""
    return _UNFIT.sub("-", name)


def _named(setting: Setting | None, what: str) -> dict[str, Setting]:
    found = {} if setting is None else setting.mapping()
    for name, each in found.items():
        if not NAME.fullmatch(name):
            raise each.refusal(
                f"{what} cannot have this name", remedy="names have letters, digits, dashes, underscores"
            )
    return found


def _groups(setting: Setting | None, images: list[ReleaseImage], matrices: list[Group]) -> list[Group]:
    found = _named(setting, "a group")
    names = [each.name for each in images]
    known = (*names, *(each.name for each in matrices), *found)
    groups = []
    for name, each in found.items():
        if name in known[: len(known) - len(found)]:
            raise each.refusal("an image has this name, too")
        members = each.texts()
        for member in members:
            if member not in known:
                raise each.refusal(
                    f"there is neither an image nor a group {member}{hint(member, known)}",
                    remedy=f"there are {', '.join(known)}",
                )
        groups.append(Group(name, members))
    return groups


class _File(msgspec.Struct, frozen=True):
    """A release file while its images are read."""

    variables: Variables
    images: Mapping[str, Setting]
    templates: Mapping[str, Setting]
    platforms: tuple[str, ...]
    """Those of images that name none."""
    epoch: str
    """SOURCE_DATE_EPOCH of the environment."""
    inherited: dict[str, dict[str, Setting]] = msgspec.field(default_factory=dict)
    """The entries of what others inherit from, by name."""

    def images_of(self, name: str, setting: Setting) -> tuple[ReleaseImage, ...]:
        """Return the images that ``setting`` declares: one, or those of its matrix."""
        entries = self._inherited(setting, ())
        if "matrix" not in entries:
            if "name" in entries:
                raise entries["name"].refusal("only an image with a matrix has a name of its own")
            return (self._image(name, setting, entries, ()),)
        found = []
        for values in combinations(entries["matrix"], self.variables):
            if "name" in entries:
                own = _fitted(self.variables.text(entries["name"], dict(values)))
                if not NAME.fullmatch(own):
                    raise entries["name"].refusal(f"an image cannot be called {own!r}")
            else:
                own = _fitted("-".join((name, *(value for _, value in values))))
            found.append(self._image(own, setting, entries, values))
        return tuple(found)

    def _inherited(self, setting: Setting, below: tuple[str, ...]) -> dict[str, Setting]:
        """Return the entries of an image or template, with those that it inherits."""
        own = setting.mapping(*IMAGE_KEYS)
        entries: dict[str, Setting] = {}
        for name in own["inherits"].texts() if "inherits" in own else ():
            known = {**self.templates, **self.images}
            if name not in known:
                raise own["inherits"].refusal(
                    f"there is neither an image nor a template {name}{hint(name, tuple(known))}"
                )
            if len(below) >= _CHAIN:
                raise own["inherits"].refusal(f"more than {_CHAIN} images and templates inherit in a row")
            if name in below:
                raise own["inherits"].refusal(f"it inherits from itself: {' -> '.join((*below, name))}")
            if name not in self.inherited:
                self.inherited[name] = self._inherited(known[name], (*below, name))
            entries = _merged(entries, self.inherited[name])
        return _merged(entries, {key: each for key, each in own.items() if key != "inherits"})

    def _image(self, name: str, setting: Setting, entries: Mapping[str, Setting], values: Pairs) -> ReleaseImage:
        each = _ImageReader(self.variables, entries, dict(values))
        return ReleaseImage(
            name=name,
            description=each.text("description"),
            context=each.text("context") or ".",
            dockerfile=each.text("dockerfile"),
            dockerfile_inline=each.text("dockerfile-inline") if "dockerfile-inline" in entries else None,
            target=each.text("target") or None,
            platforms=each.texts("platforms") or self.platforms,
            args=self._args(each),
            contexts=(*each.pairs("contexts"), *each.dependencies()),
            tags=each.texts("tags"),
            labels=each.pairs("labels"),
            annotations=each.annotations(),
            secrets=each.fields("secrets"),
            ssh=each.fields("ssh"),
            cache_from=each.fields("cache-from"),
            cache_to=each.fields("cache-to"),
            outputs=each.fields("outputs"),
            no_cache=each.switch("no-cache"),
            no_cache_filter=each.texts("no-cache-filter"),
            pull=each.switch("pull"),
            network=each.text("network") or None,
            shm_size=each.text("shm-size") or None,
            ulimits=each.texts("ulimits"),
            extra_hosts=each.pairs("extra-hosts"),
            nodes=each.nodes("nodes") if "nodes" in entries else None,
            tests=each.tests(),
            matrix=values,
            where=setting.source.location(setting.line),
        )

    def _args(self, image: _ImageReader) -> tuple[tuple[str, str | None], ...]:
        """Return the build args; the time of the commit is SOURCE_DATE_EPOCH if nothing else says it."""
        found = image.pairs("args")
        if self.epoch or _EPOCH in dict(found) or self.variables.checkout is None:
            return found
        return (*found, (_EPOCH, str(self.variables.checkout.time)))


def _joined(old: Setting, new: Setting) -> Setting:
    """Return ``new`` with the entries of ``old`` that it lacks, both mappings."""
    return replace(new, value={**old.mapping(), **new.mapping()})


def _merged(entries: dict[str, Setting], own: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return ``entries`` with ``own`` ones over them; mappings are merged by key."""
    found = dict(entries)
    for key, each in own.items():
        old = found.get(key)
        both = old is not None and isinstance(old.value, dict) and isinstance(each.value, dict)
        found[key] = _joined(old, each) if both and old is not None and key != "matrix" else each
    return found


class _ImageReader(msgspec.Struct, frozen=True):
    """Reads the entries of an image, each with the values of its variables."""

    variables: Variables
    entries: Mapping[str, Setting]
    values: Mapping[str, str]

    def text(self, key: str) -> str:
        """Return the text of ``key``; "" if there is none."""
        return self._text(self.entries[key]) if key in self.entries else ""

    def _text(self, setting: Setting) -> str:
        return self.variables.text(setting, self.values)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the texts of a list, or of a single one; empty ones are left out, so that a variable can decide."""
        return self._texts(self.entries[key]) if key in self.entries else ()

    def _texts(self, setting: Setting) -> tuple[str, ...]:
        items = (setting,) if isinstance(setting.value, str) else setting.sequence()
        return tuple(filter(None, map(self._text, items)))

    def nodes(self, key: str) -> tuple[str, ...]:
        """Return names of nodes: what a node is and where is for the user's inventory to say."""
        found = self.texts(key)
        for each in found:
            try:
                inventory.check_name(each)
            except UsageError as error:
                raise inventory.refused(self.entries[key], error) from error
        return found

    def pairs(self, key: str) -> Pairs:
        """Return a mapping of texts."""
        entries = self.entries[key].mapping() if key in self.entries else {}
        return tuple((name, self._text(each)) for name, each in entries.items())

    def switch(self, key: str) -> bool | None:
        """Return true or false; None if there is neither."""
        return self._switch(self.entries[key]) if key in self.entries else None

    def _switch(self, setting: Setting) -> bool:
        word = self._text(setting).lower()
        if word not in _SWITCH:
            raise setting.refusal("true or false is expected")
        return _SWITCH[word]

    def dependencies(self) -> Pairs:
        """Return ``depends-on`` as named contexts: a list of images, or a mapping of names in the Dockerfile."""
        setting = self.entries.get("depends-on")
        if setting is None:
            return ()
        if isinstance(setting.value, dict):
            return tuple((name, IMAGE_CONTEXT + _fitted(self._text(each))) for name, each in setting.mapping().items())
        return tuple((name, IMAGE_CONTEXT + name) for name in map(_fitted, self._texts(setting)))

    def annotations(self) -> tuple[str, ...]:
        """Return annotations: a list of ``[LEVEL:]KEY=VALUE``, or a mapping."""
        setting = self.entries.get("annotations")
        if setting is not None and isinstance(setting.value, dict):
            return tuple(f"{key}={value}" for key, value in self.pairs("annotations"))
        return self.texts("annotations")

    def fields(self, key: str) -> tuple[Fields, ...]:
        """Return a list of mappings, or of what a flag takes."""
        setting = self.entries.get(key)
        if setting is None:
            return ()
        items = setting.sequence() if isinstance(setting.value, tuple) else (setting,)
        return tuple(found for each in items if (found := self._fields(each, key)))

    def _fields(self, setting: Setting, key: str) -> Fields:
        if isinstance(setting.value, dict):
            return tuple((name, self._text(each)) for name, each in setting.mapping().items())
        try:
            return flag_fields(key, self._text(setting))
        except UsageError as error:
            raise setting.refusal(error.problem.what) from error

    def tests(self) -> tuple[ImageTest, ...]:
        """Return the tests: a list of commands and mappings, or a single one."""
        setting = self.entries.get("test")
        if setting is None or setting.value == "":
            return ()
        items = setting.sequence() if isinstance(setting.value, tuple) else (setting,)
        found: list[ImageTest] = []
        for number, each in enumerate(items, 1):
            test = self._test(each, f"test-{number}" if len(items) > 1 else "test")
            if any(test.name == other.name for other in found):
                raise each.refusal(f"two tests are called {test.name}")
            found.append(test)
        return tuple(found)

    def _test(self, setting: Setting, name: str) -> ImageTest:
        where = setting.source.location(setting.line)
        if isinstance(setting.value, str):
            return ImageTest(name, run=self._text(setting), where=where)
        entries = setting.mapping(*TEST_KEYS)
        kinds = [key for key in ("run", "command", "script") if key in entries]
        if len(kinds) != 1:
            raise setting.refusal("a test has one of run, command and script")
        reader = _ImageReader(self.variables, entries, self.values)
        given = reader.texts(kinds[0])
        if not given:
            raise entries[kinds[0]].refusal("a command is expected")
        if kinds[0] == "run" and len(given) > 1:
            raise entries["run"].refusal("a text is expected", remedy="a program with its arguments is a `command`")
        if kinds[0] == "script" and "network" in entries:
            raise entries["network"].refusal("a script runs on this machine, with its network")
        return ImageTest(
            reader.text("name") or name,
            run=given[0] if kinds[0] == "run" else "",
            command=given if kinds[0] == "command" else (),
            script=given if kinds[0] == "script" else (),
            network=bool(reader.switch("network")),
            timeout=_seconds(entries["timeout"], reader.text("timeout"))
            if "timeout" in entries
            else ImageTest("").timeout,
            platforms=reader.texts("platforms"),
            where=where,
        )


def _seconds(setting: Setting, text: str) -> float:
    found = durations.seconds(text)
    if not found:
        raise setting.refusal(f"{text!r} is no duration", remedy="write 90s, 10m or 1h")
    return found


def flag_fields(key: str, text: str) -> Fields:
    """Return the fields of the flag ``text`` (CSV): an output, a cache, a secret or an SSH agent. Raises
    ``UsageError``."""
    import csv

    try:
        words = next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise UsageError(f"{text!r} is not a comma-separated list") from error
    match key:
        case "ssh":
            name, _, paths = text.partition("=")
            return (("id", name), ("paths", paths)) if paths else (("id", name),)
        case "outputs" if len(words) == 1 and "=" not in text:
            return (("type", "tar"), ("dest", "-")) if text == "-" else (("type", "local"), ("dest", text))
        case "cache-from" | "cache-to" if len(words) == 1 and "=" not in text:
            return (("type", "registry"), ("ref", text))
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"{word!r} is not key=value")
        found.append((name.strip(), value))
    return tuple(found)

"""Taint analysis of RUN commands: does the output of a command such as ``uname -m`` reach the target's image?

In a stage of ``$BUILDPLATFORM``, ``uname -m`` describes the build machine. Using that to fetch a compiler for the stage
itself is right; using it to fetch a file that is copied into the image is a mistake. The analysis works on the text:
commands are split at ``&&``, ``;`` and the like, and the output of a query is followed through variables and files
until a stage of the target copies it. Executing a program that was fetched this way passes nothing on. Nothing is run.
A flow that cannot be followed is not reported.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final

import msgspec

from executor.dockerfile import instructions as kinds
from executor.dockerfile.stages import Dockerfile, Stage, find_source
from platforms.errors import DockerfileError, Location

_KEPT: Final = 64
"""Maximum number of paths that are tracked for a stage."""
_CUT: Final = re.compile(r"(&&|\|\||;|\n)")
_PARTS: Final = re.compile(r"\||\$\(|`|\(")
_OPENS: Final = frozenset(("if", "case", "for", "while", "until"))
_CLOSES: Final = frozenset(("fi", "esac", "done"))
_BEFORE_COMMAND: Final = frozenset((*_OPENS, "then", "else", "elif", "do", "!", "{", "exec", "sudo", "env", "time"))
_TESTS: Final = frozenset(("[", "[[", "test", "grep"))
_SETS_UP: Final = frozenset(
    ("set", "cd", "mkdir", "export", "true", "chmod", "rm", "echo", "in", "{", "}", "then", "else")
)
_PACKAGES: Final = frozenset(
    ("apt", "apt-get", "apk", "dnf", "microdnf", "yum", "zypper", "pacman", "dpkg", "rpm", "pip")
)
_NO_FILES: Final = _SETS_UP | _TESTS | _OPENS | _CLOSES | _PACKAGES
"""Commands that write no file to their working directory."""
_URL: Final = re.compile(r"(?:https?|ftp)://(?:\$\([^)]*\)|`[^`]*`|[^\s\"'`<>|;()])+")
_SUBSTITUTED: Final = re.compile(r"\$\(([^)]*)\)")
_OWN_NAME: Final = re.compile(r"\bcurl\b.*\s-[A-Za-z]*O\b|\bwget\b(?!.*\s-O)|--remote-name\b")
"""Downloads that are saved under the last component of the URL."""
_OUTPUT: Final = frozenset(("-o", "-O", "-C", "-d", "-D", "-P", "--output", "--directory", ">", ">>"))
_ASSIGNED: Final = re.compile(r"(?:^|[\s;(])([A-Za-z_][A-Za-z0-9_]*)=")
_USED: Final = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)")
_NOWHERE: Final = ("/dev", "/proc", "/sys")


class Query(msgspec.Struct, frozen=True):
    """The predicates that tell which RUNs to follow."""

    asks: Callable[[str], bool]
    knows: Callable[[str], bool]
    """Whether the text names the target platform, so that it is assumed to handle it."""


class _Word(msgspec.Struct, frozen=True):
    """A word of a command that is or may be a path."""

    path: str
    """Absolute; cut before the component with the first variable or wildcard."""
    whole: bool
    """Whether nothing was cut."""
    run: bool = False
    """Whether it is the program of the command."""
    written: bool = False
    """Whether it names an output."""


class _StageTaint(msgspec.Struct):
    """The tainted files of one stage. An origin is the number of the RUN that made the query."""

    origins: dict[str, int] = msgspec.field(default_factory=dict)
    """Origin by path."""
    below: dict[str, set[int]] = msgspec.field(default_factory=dict)
    """Origins by directory: those of all paths in it, and its own."""
    inside: dict[str, int] = msgspec.field(default_factory=dict)
    """Origin by directory in which a file of unknown name was written."""
    clean: set[str] = msgspec.field(default_factory=set)
    """Paths that untainted commands name, and their parent directories."""
    asking: set[int] = msgspec.field(default_factory=set)
    works: bool = False
    """Whether the stage has an untainted command, which may have written any file."""
    cwd: str = "/"

    def copy(self) -> _StageTaint:
        """Return a copy, for a stage that is based on this one."""
        below = {path: set(each) for path, each in self.below.items()}
        return _StageTaint(
            dict(self.origins), below, dict(self.inside), set(self.clean), set(self.asking), self.works, self.cwd
        )

    def taint(self, path: str, origin: int) -> None:
        """Mark the file or directory ``path`` as derived from the query of the RUN ``origin``."""
        if len(self.origins) < _KEPT and not path.startswith(_NOWHERE):
            self.origins[path] = origin
            for each in _upwards(path):
                self.below.setdefault(each, set()).add(origin)

    def of(self, word: _Word) -> int | None:
        """Return the origin of the path in ``word``, or of a path that it may be a prefix of; None if untainted."""
        if not word.whole:
            named = next((o for path, o in self.origins.items() if path.startswith(word.path)), None)
            if named is not None:
                return named
        return next((self.origins[each] for each in _upwards(word.path) if each in self.origins), None)

    def copied(self, path: str) -> Iterator[int]:
        """Yield the origins of everything that a copy of ``path`` takes along."""
        yield from self.below.get(path, ())
        yield from (origin for each, origin in self.inside.items() if path in _upwards(each))
        if path not in self.clean:
            yield from (self.origins[each] for each in _upwards(path) if each in self.origins)
            if not self.works:
                yield from self.asking


def _join(directory: str, path: str) -> str:
    """Return ``path``, relative to ``directory``, as a normalised absolute path."""
    whole = path if path.startswith("/") else f"{directory}/{path}"
    return "/" + posixpath.normpath(whole).lstrip("/")


def _upwards(path: str) -> Iterator[str]:
    """Yield ``path`` and each of its parent directories."""
    while path := path.rstrip("/"):
        yield path
        path = path.rpartition("/")[0]
    yield "/"


def queries_that_reach_target(
    dockerfile: Dockerfile,
    stages: Collection[int],
    parents: Mapping[int, int],
    on_builder: Collection[int],
    how: Query,
) -> frozenset[Location]:
    """Return the location of each RUN in a stage of ``on_builder`` that makes a query whose output reaches the target.

    ``stages`` are the numbers of the stages to analyse; those of them that no other stage uses are the target's.
    ``parents`` maps a stage to the stage that it is based on.
    """
    walk = _Analysis(how)
    used: set[int] = set()
    for stage in dockerfile.stages:
        if stage.index not in stages:
            continue
        parent = parents.get(stage.index)
        here = walk.places[parent].copy() if parent in walk.places else _StageTaint()
        if parent is not None:
            used.add(parent)
        if stage.index in on_builder:
            walk.places[stage.index] = here
        for instruction in stage.instructions:
            for source, paths in _sources(dockerfile, instruction):
                used.add(source.index)
                walk.take(source, paths, instruction, here if stage.index in on_builder else None)
            if stage.index in on_builder:
                walk.step(here, instruction)
    for index, places in walk.places.items():
        if index not in used:
            walk.reached |= places.asking
    return frozenset(walk.runs[each].location for each in walk.reached)


def _sources(dockerfile: Dockerfile, instruction: kinds.Instruction) -> Iterator[tuple[Stage, tuple[str, ...]]]:
    """Yield the stages that ``instruction`` copies or mounts files from, with the paths."""
    asked: list[tuple[str, tuple[str, ...]]] = []
    if isinstance(instruction, kinds.Copy) and instruction.from_:
        asked.append((instruction.from_, instruction.sources))
    elif isinstance(instruction, kinds.Run):
        asked += [(each.from_, (each.source or "/",)) for each in instruction.mounts if each.from_]
    for name, paths in asked:
        try:
            found = find_source(dockerfile, name)
        except DockerfileError:
            found = None  # reported elsewhere
        if found is not None:
            yield found, tuple(_join("/", _fixed(path)) for path in paths)


def _fixed(path: str) -> str:
    """Return ``path`` up to the component with its first variable or wildcard."""
    found = re.search(r"[$*?\[]", path)
    return path if found is None else path[: found.start()].rpartition("/")[0]


class _Analysis(msgspec.Struct):
    how: Query
    runs: list[kinds.Run] = msgspec.field(default_factory=list)
    places: dict[int, _StageTaint] = msgspec.field(default_factory=dict)
    """By number of a stage of the build platform."""
    reached: set[int] = msgspec.field(default_factory=set)

    def take(self, source: Stage, paths: Iterable[str], by: kinds.Instruction, into: _StageTaint | None) -> None:
        """Follow ``paths`` of ``source`` ``into`` a stage of the build platform, or into one of the target (None)."""
        places = self.places.get(source.index)
        if places is None:
            return
        found = {origin for path in paths for origin in places.copied(path)}
        if into is None:
            self.reached |= found
        elif isinstance(by, kinds.Copy):
            for origin in found:
                into.taint(_join(into.cwd, _fixed(by.destination)), origin)

    def step(self, here: _StageTaint, instruction: kinds.Instruction) -> None:
        """Apply ``instruction``, of a stage of the build platform, to its state ``here``."""
        match instruction:
            case kinds.Workdir():
                here.cwd = _join(here.cwd, _fixed(instruction.path))
            case kinds.Copy() | kinds.Add():
                here.clean |= {*_upwards(_join(here.cwd, _fixed(instruction.destination)))}
            case kinds.Run():
                text = "\n".join((*instruction.command, *(each.content for each in instruction.heredocs)))
                if not instruction.shell:
                    text = " ".join(instruction.command)
                self.run(here, instruction, text.replace("\\\n", " "))

    def run(self, here: _StageTaint, instruction: kinds.Run, text: str) -> None:
        """Follow the commands of a RUN."""
        asks = self.how.asks(text) and not self.how.knows(text)
        number = len(self.runs)
        if asks:
            self.runs.append(instruction)
            here.asking.add(number)
        variables: dict[str, int] = {}
        cwd, depth = here.cwd, 0
        controlled: int | None = None
        next_one: int | None = None
        for command in _CUT.split(text):
            if command in ("&&", "||"):
                continue
            if command in (";", "\n") or not command.strip():
                next_one = None
                continue
            first = next(iter(command.split()), "")
            origin = number if asks and self.how.asks(command) else next_one
            origin = origin if origin is not None or not depth else controlled
            if origin is None:
                names = _USED.findall(command)
                origin = next((variables[name] for name in names if name in variables), None)
            words = list(_words(command, cwd))
            if origin is None:
                origin = next(
                    (o for o in (here.of(word) for word in words if not (word.run or word.written)) if o is not None),
                    None,
                )
            if first in _OPENS and (depth or origin is not None):
                controlled = origin
                depth += 1
            elif first in _CLOSES and depth:
                depth -= 1
            next_one = origin if first in _TESTS or "| grep" in command else None
            if first == "cd":
                cwd = next((word.path for word in words if not word.run), cwd)
            elif origin is None:
                here.works = here.works or first not in _SETS_UP
                if len(here.clean) < _KEPT and first not in _SETS_UP:
                    for word in words:
                        here.clean |= {*_upwards(word.path)}
            else:
                variables |= dict.fromkeys(_ASSIGNED.findall(command), origin)
                outputs = [word for word in words if not word.run]
                for word in outputs:
                    here.taint(word.path, origin)
                if not outputs and first not in _NO_FILES and not _ASSIGNED.match(command) and len(here.inside) < _KEPT:
                    here.inside[cwd] = origin


def _words(command: str, cwd: str) -> Iterator[_Word]:
    """Yield the words of ``command`` that may be paths."""
    urls = _URL.findall(command)
    if urls and _OWN_NAME.search(command):
        name = re.split(r"[$`?]", urls[-1].rpartition("/")[2], maxsplit=1)[0]
        if name:
            yield _Word(_join(cwd, name), urls[-1].endswith(name), written=True)
        elif not re.search(r"[)}]/|/[^/]*\$", urls[-1]):
            return
    command = _URL.sub(lambda url: " ".join(_SUBSTITUTED.findall(url[0])), command)
    for part in _PARTS.split(command):
        run, output = True, False
        for word in re.findall(r">>?|[^\s\"'()<>,;=]+", part):
            if word in _BEFORE_COMMAND or (run and "=" in word):
                continue
            path = word[2:] if re.match(r"-[A-Za-z]/", word) else word
            fixed = re.split(r"[$*?\[{`]", path, maxsplit=1)[0]
            looks = path.startswith("/") or output or run or "/" in path or "." in path
            if fixed and looks and "://" not in path and not path.startswith("-") and word not in (">", ">>"):
                yield _Word(_join(cwd, fixed), fixed == path, run, output)
            run, output = False, word in _OUTPUT

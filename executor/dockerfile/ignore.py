"""Path patterns: ``.dockerignore``, ``COPY --exclude`` and the wildcards of COPY's sources.

    *      any run of characters but ``/``          ?      any one character but ``/``
    **     any number of directories, also none     [a-z]  one character of a set, [^a-z] one that is not
    \\c     the character c itself                   !p     takes back what an earlier pattern matched

Patterns are cleaned like paths (``a//b/./c/`` is ``a/b/c``), a leading ``/`` means nothing, lines that start with ``#``
are comments. The last pattern that matches a path or a directory above it decides. Unlike in .gitignore, ``*.md``
matches at the top only, and a file in an excluded directory can be taken back.

Matching is linear in the path: patterns with few wildcards become regular expressions, others a set of states that
advances with each character, for backtracking over many stars would be exponential.

Source: Docker's documentation, "Build context: .dockerignore files"; github.com/moby/patternmatcher decides what it
leaves open, and the way BuildKit walks a context with it. Go's path/filepath.Match defines a single pattern.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import msgspec

from executor.dockerfile.split import strip
from platforms.errors import DockerfileError, Location

LINE_LIMIT: Final = 65535
"""Bytes of one line of an ignore file."""

_WILD: Final = frozenset("*?[]\\")
_PRUNABLE: Final = frozenset("*[]?^\\")
_FEW: Final = 2
"""Wildcards of open length up to which a regular expression may backtrack: quadratic in a path is still nothing."""

_KEPT: Final = 4096
"""Directories whose verdict is kept."""

_STAR: Final = "*"
_DIRECTORIES: Final = "**/"
_REST: Final = "**"


class PatternError(ValueError):
    """A pattern that cannot be one."""


class _Set(msgspec.Struct, frozen=True):
    """One character: any of ``ranges``, or none of them when ``negated``."""

    ranges: tuple[tuple[str, str], ...]
    negated: bool

    def matches(self, letter: str) -> bool:
        return any(low <= letter <= high for low, high in self.ranges) != self.negated

    def regex(self) -> str:
        inner = "".join(f"{re.escape(low)}-{re.escape(high)}" for low, high in self.ranges if low <= high)
        if not inner:
            return r"[\s\S]" if self.negated else r"[^\s\S]"
        return f"[{'^' if self.negated else ''}{inner}]"


_ANY: Final = _Set((("/", "/"),), negated=True)
_Token = str | _Set
"""A single character is itself; ``*``, ``**/`` and ``**`` are wildcards (an ordinary ``*`` is a set of one)."""


def _character(letter: str) -> _Token:
    return _Set(((letter, letter),), negated=False) if letter == _STAR else letter


def _set(pattern: str, at: int) -> tuple[_Set, int]:
    """The set whose ``[`` stands before ``at``, and where it ends."""
    negated = pattern.startswith("^", at)
    at += negated
    ranges: list[tuple[str, str]] = []
    while not (pattern.startswith("]", at) and ranges):
        low, at = _member(pattern, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _member(pattern, at + 1)
        ranges.append((low, high))
    return _Set(tuple(ranges), negated), at + 1


def _member(pattern: str, at: int) -> tuple[str, int]:
    letter = pattern[at : at + 1]
    if letter == "\\":
        at += 1
        letter = pattern[at : at + 1]
    elif letter in ("-", "]"):
        letter = ""
    if not letter or at + 1 == len(pattern):
        raise PatternError("syntax error in pattern")
    return letter, at + 1


def _tokens(pattern: str, *, double_stars: bool) -> list[_Token]:
    """The pattern's parts. Without ``double_stars`` a ``**`` is two stars, which is one."""
    found: list[_Token] = []
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        at += 1
        token: _Token = letter
        if letter == "*" and double_stars and pattern.startswith("*", at):
            at += 1
            at += pattern.startswith("/", at)
            token = _DIRECTORIES if at < len(pattern) else _REST
        elif letter == "?":
            token = _ANY
        elif letter == "[":
            token, at = _set(pattern, at)
        elif letter == "\\":
            if at == len(pattern):
                raise PatternError("syntax error in pattern")
            token = _character(pattern[at])
            at += 1
        if not (found and token == found[-1] and token in (_STAR, _DIRECTORIES)):
            found.append(token)
    return found


class _States:
    """A pattern as a machine: bit n of its state says that the first n tokens may have matched so far."""

    __slots__ = ("_any", "_final", "_loops", "_masks", "_skips", "_stars", "_tokens")

    def __init__(self, tokens: list[_Token]) -> None:
        spread: list[_Token | None] = []
        for token in tokens:
            spread += [token, None] if token == _DIRECTORIES else [token]  # a second bit: inside of the directories
        self._tokens = spread
        self._final = 1 << len(spread)
        self._stars = self._bits(_STAR)
        self._any = self._bits(_REST)
        self._loops = self._bits(_DIRECTORIES)
        self._skips = self._stars | self._any
        self._masks: dict[str, int] = {}

    def _bits(self, token: _Token) -> int:
        return sum(1 << at for at, other in enumerate(self._tokens) if other == token)

    def _mask(self, letter: str) -> int:
        """The tokens that match just ``letter``."""
        mask = 0
        for at, token in enumerate(self._tokens):
            if token == letter != _STAR or (isinstance(token, _Set) and token.matches(letter)):
                mask |= 1 << at
        return mask

    def _settled(self, state: int) -> int:
        """``state`` and all that it may become without another character."""
        while True:
            wider = state | (state & self._skips) << 1 | (state & self._loops) << 2
            if wider == state:
                return state
            state = wider

    def matches(self, path: str) -> bool:
        state = self._settled(1)
        inside = self._loops << 1
        for letter in path:
            if letter not in self._masks:
                self._masks[letter] = self._mask(letter)
            after = (state & self._masks[letter]) << 1
            if letter != "/":
                after |= state & self._stars
            if letter != "\n":
                after |= state & self._any | (state & self._loops) << 1 | state & inside
            if letter == "/":
                after |= (state & self._loops) << 2 | (state & inside) << 1
            state = self._settled(after)
            if not state:
                return False
        return bool(state & self._final)


def _machine(tokens: list[_Token]) -> re.Pattern[str] | _States:
    if sum(token in (_STAR, _DIRECTORIES, _REST) for token in tokens) > _FEW:
        return _States(tokens)
    wild = {_STAR: "[^/]*", _DIRECTORIES: "(?:.*/)?", _REST: ".*"}
    return re.compile(
        "".join(
            token.regex() if isinstance(token, _Set) else wild[token] if token in wild else re.escape(token)
            for token in tokens
        )
    )


def _fits(machine: re.Pattern[str] | _States, path: str) -> bool:
    return machine.matches(path) if isinstance(machine, _States) else machine.fullmatch(path) is not None


def match(pattern: str, path: str) -> bool:
    """Whether ``path`` is what ``pattern`` describes, ``**`` meaning no more than ``*``: the wildcards of COPY.

    A pattern that cannot be one matches nothing.
    """
    if _WILD.isdisjoint(pattern):
        return pattern == path
    machine = _name_machine(pattern)
    return machine is not None and _fits(machine, path)


def is_pattern(text: str) -> bool:
    """Whether ``text`` can be a pattern: a class ``[`` that is never closed, say, cannot."""
    return _WILD.isdisjoint(text) or _name_machine(text) is not None


@lru_cache(maxsize=256)
def _name_machine(pattern: str) -> re.Pattern[str] | _States | None:
    try:
        return _machine(_tokens(pattern, double_stars=False))
    except PatternError:
        return None


def has_wildcards(path: str) -> bool:
    """Whether a source of COPY is a pattern rather than a name."""
    letters = iter(path)
    for letter in letters:
        if letter in "*?[":
            return True
        if letter == "\\":
            next(letters, "")
    return False


class Rule(msgspec.Struct, frozen=True):
    """One pattern, ready to be matched."""

    pattern: str
    """Cleaned, without ``!``."""
    exception: bool
    """Whether it began with ``!``."""
    prefix: str | None
    """Matches whatever starts with this …"""
    suffix: str | None
    """… or ends with this …"""
    machine: re.Pattern[str] | _States | None
    """… or what this accepts; without any of the three the pattern is a plain name."""

    def matches(self, path: str) -> bool:
        if self.prefix is not None:
            return path.startswith(self.prefix)
        if self.suffix is not None:
            return path.endswith(self.suffix) or (self.suffix[:1] == "/" and path == self.suffix[1:])
        if self.machine is not None:
            return _fits(self.machine, path)
        return path == self.pattern


def _rule(pattern: str, exception: bool) -> Rule:
    tokens = _tokens(pattern, double_stars=True)
    plain = pattern.removeprefix("**").removesuffix("**")
    if not _WILD.isdisjoint(plain):
        return Rule(pattern, exception, None, None, _machine(tokens))
    if plain == pattern:
        return Rule(pattern, exception, None, None, None)
    if not pattern.startswith("**"):
        return Rule(pattern, exception, plain, None, None)
    if len(pattern) > 2 and pattern.endswith("**"):
        return Rule(pattern, exception, None, None, _machine(tokens))
    return Rule(pattern, exception, None, pattern[2:], None)


class Verdict(msgspec.Struct, frozen=True):
    """What the patterns say about a path; a directory's verdict is needed to judge what is in it."""

    path: str
    excluded: bool
    matched: tuple[bool, ...] = ()
    """For each rule, whether it matched this path or a directory above."""


class Patterns(msgspec.Struct, frozen=True):
    """An ordered list of patterns, false when empty. Paths are relative to the context, with ``/``, and clean."""

    rules: tuple[Rule, ...]
    _directories: dict[str, Verdict] = msgspec.field(default_factory=dict)
    """Verdicts on directories, kept for what is in them."""

    def __bool__(self) -> bool:
        return bool(self.rules)

    def judge(self, path: str, parent: Verdict | None = None) -> Verdict:
        """The verdict on ``path``; ``parent`` is that on its directory, None for a path at the top.

        Walks should use this: it costs one match a rule, whatever the depth.
        """
        above = parent.matched if parent is not None and parent.matched else (False,) * len(self.rules)
        excluded = False
        matched: list[bool] = []
        for rule, before in zip(self.rules, above, strict=True):
            fits = before or (rule.exception == excluded and rule.matches(path))
            matched.append(fits)
            if fits:
                excluded = not rule.exception
        return Verdict(path, excluded, tuple(matched))

    def excludes(self, path: str, directory: bool = False) -> bool:
        """Whether ``path`` is excluded. The answer on a ``directory`` is kept, to be quick about what is in it."""
        verdict: Verdict | None = None
        end = path.rfind("/")
        if end >= 0 and (verdict := self._directories.get(path[:end])) is None:
            above = -1
            while above < end:
                above = path.find("/", above + 1)
                verdict = self.judge(path[:above], verdict)
        verdict = self.judge(path, verdict)
        if directory:
            if len(self._directories) >= _KEPT:
                self._directories.clear()
            self._directories[path] = verdict
        return verdict.excluded

    @property
    def has_exceptions(self) -> bool:
        """Whether any pattern begins with ``!``."""
        return any(rule.exception for rule in self.rules)

    def may_contain_included(self, directory: str) -> bool:
        """Whether an exception may bring back something below the excluded ``directory``: if not, skip it."""
        for rule in self.rules:
            if rule.exception:
                fixed = rule.pattern.removesuffix("/**").removesuffix("/*")
                if not _PRUNABLE.isdisjoint(fixed) or f"{fixed}/".startswith(f"{directory}/"):
                    return True
        return False


NOTHING: Final = Patterns(())
"""Excludes nothing."""


def compile_patterns(patterns: Iterable[str]) -> Patterns:
    """The patterns of ``--exclude`` and the like. Raises PatternError for one that cannot be a pattern."""
    rules: list[Rule] = []
    for written in patterns:
        if pattern := strip(written):
            pattern = _clean(pattern)
            if pattern == "!":
                raise PatternError('illegal exclusion pattern: "!"')
            try:
                rules.append(_rule(pattern.removeprefix("!"), pattern.startswith("!")))
            except PatternError as wrong:
                raise PatternError(f'{wrong}: "{written}"') from wrong
    return Patterns(tuple(rules))


def parse(data: bytes | str, name: str = ".dockerignore") -> Patterns:
    """The patterns of an ignore file. Raises DockerfileError with the line of one that cannot be a pattern."""
    text = data if isinstance(data, str) else data.decode("utf-8", "surrogateescape")
    lines = text.removeprefix("\ufeff").split("\n")
    rules: list[Rule] = []
    for number, line in enumerate(lines, 1):
        try:
            if len(line) > LINE_LIMIT:
                raise PatternError(f"the line is longer than {LINE_LIMIT} bytes")
            if not line.startswith("#"):
                rules += compile_patterns((_relative(strip(line)),)).rules
        except PatternError as wrong:
            raise DockerfileError(
                f"{name}: {wrong}",
                remedy="A set needs its ], and a backslash something to protect; write \\[ for the character itself.",
                where=Location(name, number, number, (line[:200],), number),
            ) from wrong
    return Patterns(tuple(rules))


def _relative(line: str) -> str:
    """A line's pattern: cleaned, relative to the context."""
    mark = line[:1] if line.startswith("!") else ""
    pattern = strip(line[len(mark) :])
    if not pattern:
        return mark
    pattern = _clean(pattern)
    return mark + (pattern[1:] if len(pattern) > 1 and pattern.startswith("/") else pattern)


def _clean(path: str) -> str:
    """The shortest path that means the same."""
    clean = posixpath.normpath(path)
    return clean[1:] if clean.startswith("//") else clean

"""Path patterns: ``.dockerignore``, ``COPY --exclude`` and the wildcards of COPY's sources.

    *      any run of characters but ``/``          ?      any one character but ``/``
    **     any number of directories, also none     [a-z]  one character of a set, [^a-z] one that is not
    \\c     the character c itself                   !p     takes back what an earlier pattern matched

Patterns are cleaned like paths (``a//b/./c/`` is ``a/b/c``), a leading ``/`` has no effect, and lines that start with
``#`` are comments. The last pattern that matches a path, or a directory above it, decides. Unlike in .gitignore,
``*.md`` matches at the top only, and a file in an excluded directory can be included again.

Matching is linear in the length of the path: patterns with few wildcards become regular expressions, others a
nondeterministic automaton, as backtracking over many stars would be exponential.

Source: Docker's documentation, "Build context: .dockerignore files"; what it leaves open is as in
github.com/moby/patternmatcher and in BuildKit's walk of a context. A single pattern is as in Go's path/filepath.Match.
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
"""Maximum length of a line of an ignore file, in bytes."""

_WILD: Final = frozenset("*?[]\\")
_PRUNABLE: Final = frozenset("*[]?^\\")
_REGEX_WILDCARDS: Final = 2
"""Maximum number of variable-length wildcards in a regular expression: two cost at most quadratic time in a path."""

_CACHED_DIRECTORIES: Final = 4096
"""Maximum number of directories whose result is cached."""

_STAR: Final = "*"
_DIRECTORIES: Final = "**/"
_REST: Final = "**"


class PatternError(ValueError):
    """An invalid pattern."""


class _Set(msgspec.Struct, frozen=True):
    """A set of characters: any of ``ranges``, or any but those when ``negated``."""

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
"""A character, a set, or a wildcard: ``*``, ``**/`` or ``**`` (an ordinary ``*`` is a set)."""


def _character(letter: str) -> _Token:
    return _Set(((letter, letter),), negated=False) if letter == _STAR else letter


def _set(pattern: str, at: int) -> tuple[_Set, int]:
    """Return the set whose ``[`` precedes ``at``, and the index after it."""
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
    """Return the tokens of ``pattern``. Without ``double_stars``, ``**`` means ``*``."""
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


class _Automaton:
    """A pattern as a nondeterministic automaton: bit n of its state is set if the first n tokens can have matched."""

    __slots__ = ("_any", "_final", "_loops", "_masks", "_skips", "_stars", "_tokens")

    def __init__(self, tokens: list[_Token]) -> None:
        spread: list[_Token | None] = []
        for token in tokens:
            spread += [token, None] if token == _DIRECTORIES else [token]  # the second bit: within the directories
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
        """Return the tokens that match exactly ``letter``."""
        mask = 0
        for at, token in enumerate(self._tokens):
            if token == letter != _STAR or (isinstance(token, _Set) and token.matches(letter)):
                mask |= 1 << at
        return mask

    def _settled(self, state: int) -> int:
        """Return ``state`` with all states that are reachable without another character."""
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


def _matcher(tokens: list[_Token]) -> re.Pattern[str] | _Automaton:
    if sum(token in (_STAR, _DIRECTORIES, _REST) for token in tokens) > _REGEX_WILDCARDS:
        return _Automaton(tokens)
    wild = {_STAR: "[^/]*", _DIRECTORIES: "(?:.*/)?", _REST: ".*"}
    return re.compile(
        "".join(
            token.regex() if isinstance(token, _Set) else wild[token] if token in wild else re.escape(token)
            for token in tokens
        )
    )


def _accepts(machine: re.Pattern[str] | _Automaton, path: str) -> bool:
    return machine.matches(path) if isinstance(machine, _Automaton) else machine.fullmatch(path) is not None


def match(pattern: str, path: str) -> bool:
    """Whether ``path`` matches ``pattern``, as a wildcard of COPY: ``**`` means ``*``.

    An invalid pattern matches nothing.
    """
    if _WILD.isdisjoint(pattern):
        return pattern == path
    machine = _name_matcher(pattern)
    return machine is not None and _accepts(machine, path)


def is_pattern(text: str) -> bool:
    """Whether ``text`` is a valid pattern; one with an unclosed ``[`` is not."""
    return _WILD.isdisjoint(text) or _name_matcher(text) is not None


@lru_cache(maxsize=256)
def _name_matcher(pattern: str) -> re.Pattern[str] | _Automaton | None:
    try:
        return _matcher(_tokens(pattern, double_stars=False))
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


class Pattern(msgspec.Struct, frozen=True):
    """One compiled pattern. At most one of ``prefix``, ``suffix`` and ``matcher`` is set; without any, it is a literal
    name."""

    pattern: str
    """Cleaned, without ``!``."""
    exception: bool
    """Whether it began with ``!``."""
    prefix: str | None
    """Matches every path that starts with this."""
    suffix: str | None
    """Matches every path that ends with this."""
    matcher: re.Pattern[str] | _Automaton | None
    """Matches every path that this accepts."""

    def matches(self, path: str) -> bool:
        if self.prefix is not None:
            return path.startswith(self.prefix)
        if self.suffix is not None:
            return path.endswith(self.suffix) or (self.suffix[:1] == "/" and path == self.suffix[1:])
        if self.matcher is not None:
            return _accepts(self.matcher, path)
        return path == self.pattern


def _compile(pattern: str, exception: bool) -> Pattern:
    tokens = _tokens(pattern, double_stars=True)
    plain = pattern.removeprefix("**").removesuffix("**")
    if not _WILD.isdisjoint(plain):
        return Pattern(pattern, exception, None, None, _matcher(tokens))
    if plain == pattern:
        return Pattern(pattern, exception, None, None, None)
    if not pattern.startswith("**"):
        return Pattern(pattern, exception, plain, None, None)
    if len(pattern) > 2 and pattern.endswith("**"):
        return Pattern(pattern, exception, None, None, _matcher(tokens))
    return Pattern(pattern, exception, None, pattern[2:], None)


class MatchInfo(msgspec.Struct, frozen=True):
    """The result for a path. That of a directory is needed to compute those of its entries."""

    path: str
    excluded: bool
    matched: tuple[bool, ...] = ()
    """For each rule, whether it matched this path or a directory above it."""


class Patterns(msgspec.Struct, frozen=True):
    """An ordered list of patterns, false when empty. Paths are relative to the context, with ``/``, and clean."""

    rules: tuple[Pattern, ...]
    _directories: dict[str, MatchInfo] = msgspec.field(default_factory=dict)
    """Cached results of directories."""

    def __bool__(self) -> bool:
        return bool(self.rules)

    def match(self, path: str, parent: MatchInfo | None = None) -> MatchInfo:
        """Return the result for ``path``; ``parent`` is that of its directory, None at the top.

        For walks of a tree: costs one match per rule, whatever the depth.
        """
        above = parent.matched if parent is not None and parent.matched else (False,) * len(self.rules)
        excluded = False
        matched: list[bool] = []
        for rule, before in zip(self.rules, above, strict=True):
            fits = before or (rule.exception == excluded and rule.matches(path))
            matched.append(fits)
            if fits:
                excluded = not rule.exception
        return MatchInfo(path, excluded, tuple(matched))

    def excludes(self, path: str, directory: bool = False) -> bool:
        """Whether ``path`` is excluded. The result for a ``directory`` is cached."""
        info: MatchInfo | None = None
        end = path.rfind("/")
        if end >= 0 and (info := self._directories.get(path[:end])) is None:
            above = -1
            while above < end:
                above = path.find("/", above + 1)
                info = self.match(path[:above], info)
        info = self.match(path, info)
        if directory:
            if len(self._directories) >= _CACHED_DIRECTORIES:
                self._directories.clear()
            self._directories[path] = info
        return info.excluded

    @property
    def has_exceptions(self) -> bool:
        """Whether any pattern begins with ``!``."""
        return any(rule.exception for rule in self.rules)

    def may_contain_included(self, directory: str) -> bool:
        """Whether an exception may include something below the excluded ``directory``; if not, a walk can skip it."""
        for rule in self.rules:
            if rule.exception:
                fixed = rule.pattern.removesuffix("/**").removesuffix("/*")
                if not _PRUNABLE.isdisjoint(fixed) or f"{fixed}/".startswith(f"{directory}/"):
                    return True
        return False


NOTHING: Final = Patterns(())
"""Patterns that exclude nothing."""


def compile_patterns(patterns: Iterable[str]) -> Patterns:
    """Return the patterns of ``--exclude`` and the like. Raises PatternError."""
    rules: list[Pattern] = []
    for written in patterns:
        if pattern := strip(written):
            pattern = _clean(pattern)
            if pattern == "!":
                raise PatternError('illegal exclusion pattern: "!"')
            try:
                rules.append(_compile(pattern.removeprefix("!"), pattern.startswith("!")))
            except PatternError as wrong:
                raise PatternError(f'{wrong}: "{written}"') from wrong
    return Patterns(tuple(rules))


def parse(data: bytes | str, name: str = ".dockerignore") -> Patterns:
    """Return the patterns of an ignore file. Raises DockerfileError, with the line, for an invalid pattern."""
    text = data if isinstance(data, str) else data.decode("utf-8", "surrogateescape")
    lines = text.removeprefix("\ufeff").split("\n")
    rules: list[Pattern] = []
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
    """Return the pattern of a line: cleaned, relative to the context."""
    mark = line[:1] if line.startswith("!") else ""
    pattern = strip(line[len(mark) :])
    if not pattern:
        return mark
    pattern = _clean(pattern)
    return mark + (pattern[1:] if len(pattern) > 1 and pattern.startswith("/") else pattern)


def _clean(path: str) -> str:
    """Return the shortest equivalent path (Go's path.Clean)."""
    clean = posixpath.normpath(path)
    return clean[1:] if clean.startswith("//") else clean

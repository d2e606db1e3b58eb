"""Expanding words: quotes, escapes and variables of a Dockerfile.

    $name ${name}                          the value, "" when unset
    ${name:-w} ${name-w}                   w when unset (with the colon: or empty)
    ${name:+w} ${name+w}                   w when set (and not empty)
    ${name:?w} ${name?w}                   an error saying w when unset (or empty)
    ${name#p} ${name##p} ${name%p} ${name%%p}   without the shortest or longest prefix or suffix that p matches
    ${name/p/r} ${name//p/r}               first or every match of p replaced by r

Single quotes keep everything, double quotes everything but ``$`` and escapes. The escape character is a backslash
unless the ``escape`` directive sets another. Names are looked up with ``env.get`` only, so a mapping that records
look-ups (``RecordingMapping``) tells which variables a text uses.

Source: Dockerfile reference, "Environment replacement"; what it leaves open is as in BuildKit's shell lexer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from executor.dockerfile import shellpattern
from executor.dockerfile.split import SPACE, quoted
from platforms.errors import DockerfileError

SIZE_LIMIT: Final = 16 << 20
"""Maximum size of the expansion of one text in characters: ``ENV A=$A$A`` doubles with every line."""
TOTAL_LIMIT: Final = 64 << 20
"""Maximum size of all expansions of a Dockerfile in characters."""
DEPTH_LIMIT: Final = 100
"""Maximum nesting of substitutions."""

# Compiled when used; a build has a single escape character.
_ORDINARY: Final = {escape: rf"[^$<'\"}}/{re.escape(escape)}{SPACE}]+" for escape in "\\`"}
_BLANK: Final = f"[{SPACE}]"
_SPECIAL_NAMES: Final = "@*#?-$!0"


class Style(msgspec.Struct, frozen=True):
    """What an expansion leaves in place. Instructions use the defaults."""

    escape: str = "\\"
    keep_quotes: bool = False
    """Quotes group, but stay in the result."""
    keep_escapes: bool = False
    """Escapes protect, but stay in the result."""
    keep_unset: bool = False
    """``$name`` is left unchanged when ``name`` is not set."""
    quotes_are_text: bool = False
    """Quotes are literal: the body of a here-document."""


BODY: Final = Style(quotes_are_text=True)
"""For the body of an unquoted here-document. The escape directive does not apply to it."""


class RecordingMapping(Mapping[str, str]):
    """A mapping that records which names were looked up: ``used`` and ``missing``, in order of first use."""

    __slots__ = ("_env", "missing", "used")

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.used: dict[str, None] = {}
        self.missing: dict[str, None] = {}

    def __getitem__(self, name: str) -> str:
        try:
            value = self._env[name]
        except KeyError:
            self.missing[name] = None
            raise
        self.used[name] = None
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._env)

    def __len__(self) -> int:
        return len(self._env)


class ExpansionBudget:
    """Counts the characters that all expansions of a Dockerfile give, and limits them."""

    __slots__ = ("_spent",)

    def __init__(self) -> None:
        self._spent = 0

    def over(self, env: Mapping[str, str]) -> Mapping[str, str]:
        """Return ``env`` with each look-up counted. Beyond the limit it raises ``DockerfileError`` without a
        location."""
        return _BudgetedMapping(env, self)

    def consume(self, size: int) -> None:
        """Count ``size`` characters."""
        self._spent += size
        if self._spent > TOTAL_LIMIT:
            raise DockerfileError(
                f"the variables of this Dockerfile expand to more than {TOTAL_LIMIT >> 20} MiB in all",
                remedy="a value that is long, or is put together of itself again and again, belongs in a file",
            )


class _BudgetedMapping(Mapping[str, str]):
    __slots__ = ("_env", "_meter")

    def __init__(self, env: Mapping[str, str], meter: ExpansionBudget) -> None:
        self._env = env
        self._meter = meter

    def __getitem__(self, name: str) -> str:
        value = self._env[name]
        self._meter.consume(len(value))
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._env

    def __iter__(self) -> Iterator[str]:
        return iter(self._env)

    def __len__(self) -> int:
        return len(self._env)


def expand(text: str, env: Mapping[str, str], *, escape: str = "\\", style: Style | None = None) -> str:
    """Return ``text`` with quotes removed and variables replaced. Raises DockerfileError without a location."""
    style = style or Style(escape)
    if style.escape not in text and not any(letter in text for letter in "$'\""):
        return text
    return _read(text, env, style)[0]


def expand_words(
    text: str, env: Mapping[str, str], *, escape: str = "\\", style: Style | None = None
) -> tuple[str, ...]:
    """As ``expand``, then split at white space that was not quoted. Empty words are dropped, quoted ones too."""
    return tuple(_read(text, env, style or Style(escape))[1])


def _read(text: str, env: Mapping[str, str], style: Style) -> tuple[str, list[str]]:
    try:
        return _Reader(text, env, style).until("", style.keep_escapes)
    except _WordError as failure:
        raise DockerfileError(
            f"failed to process {quoted(text)}: {failure}",
            remedy="Check the quotes and the ${…} of this line; an escape or single quotes keep a $ as it is.",
        ) from failure


class _WordError(ValueError):
    """What is wrong with a text; the caller adds the text."""


class _Words:
    """The result so far, as one text and as words."""

    __slots__ = ("done", "text", "word")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.done: list[str] = []
        self.word: list[str] = []

    def literal(self, part: str) -> None:
        """Append text that is not split."""
        self.text.append(part)
        self.word.append(part)

    def blank(self, space: str) -> None:
        self.text.append(space)
        self.end()

    def value(self, part: str) -> None:
        """Append the value of a variable, which is split at white space."""
        *before, last = re.split(_BLANK, part)
        for piece in before:
            self.word.append(piece)
            self.end()
        self.word.append(last)
        self.text.append(part)

    def end(self) -> None:
        if word := "".join(self.word):
            self.done.append(word)
        self.word.clear()


class _Reader:
    """One pass over a text. ``at`` is the index of the next character; methods advance it beyond what they read."""

    __slots__ = ("at", "depth", "doubling", "env", "keep_escapes", "ordinary", "size", "spent", "style", "text")

    def __init__(self, text: str, env: Mapping[str, str], style: Style) -> None:
        self.text = text
        self.size = len(text)
        self.env = env
        self.style = style
        self.keep_escapes = style.keep_escapes
        self.doubling = False
        self.ordinary = re.compile(_ORDINARY[style.escape])
        self.at = 0
        self.depth = 0
        self.spent = 0

    def peek(self) -> str:
        """Return the next character, "" at the end."""
        return self.text[self.at : self.at + 1]

    def take(self) -> str:
        letter = self.text[self.at : self.at + 1]
        self.at += 1 if letter else 0
        return letter

    def until(self, stop: str, keep_escapes: bool, *, pattern: bool = False) -> tuple[str, list[str]]:
        """Read up to and including the character ``stop``; to the end if ``stop`` is "".

        In a ``pattern``, quoted text is literal: its escapes are doubled, as it is parsed once more.
        """
        outer = self.keep_escapes, self.doubling
        self.keep_escapes, self.doubling = keep_escapes, pattern
        found = _Words()
        while self.at < self.size:
            letter = self.text[self.at]
            if letter == stop:
                self.at += 1
                break
            self._one(letter, found)
        else:
            if stop:
                raise _WordError(f"unexpected end of statement while looking for matching {stop}")
        self.keep_escapes, self.doubling = outer
        found.end()
        return "".join(found.text), found.done

    def _one(self, letter: str, found: _Words) -> None:
        quotes = not self.style.quotes_are_text
        if letter == "$":
            found.value(self.dollar())
        elif letter == "'" and quotes:
            found.literal(self.single_quoted())
        elif letter == '"' and quotes:
            found.literal(self.double_quoted())
        elif letter == "<":
            found.literal(self.heredoc_mark())
        elif letter == self.style.escape:
            self.at += 1
            escaped = self.take()
            found.literal(letter + escaped if self.keep_escapes else escaped)
        elif letter in SPACE:
            self.at += 1
            found.blank(letter)
        else:
            run = self.ordinary.match(self.text, self.at)
            part = run.group() if run is not None else letter
            self.at += len(part)
            found.literal(part)

    def heredoc_mark(self) -> str:
        """Read ``<``, or ``<<`` with the blanks after it, so that ``<< EOF`` is one word."""
        start = self.at
        self.at += 1
        if self.peek() == "<":
            self.at += 1
            while self.at < self.size and self.text[self.at] in "\t\r ":
                self.at += 1
        return self.text[start : self.at]

    def single_quoted(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            self.at = self.size
            raise _WordError("unexpected end of statement while looking for matching single-quote")
        body = self.text[self.at + 1 : end]
        self.at = end + 1
        if self.doubling:
            body = body.replace(self.style.escape, self.style.escape * 2)
        return f"'{body}'" if self.style.keep_quotes else body

    def double_quoted(self) -> str:
        escape = self.style.escape
        parts: list[str] = []
        self.at += 1
        while self.at < self.size:
            letter = self.text[self.at]
            if letter == "$":
                parts.append(self.dollar())
                continue
            self.at += 1
            if letter == '"':
                body = "".join(parts)
                return f'"{body}"' if self.style.keep_quotes else body
            if letter != escape:
                parts.append(letter)
                continue
            following = self.peek()
            if following in ('"', "$", escape):
                parts += (letter if self.keep_escapes else "", self.take())
            elif following:
                both = self.keep_escapes and (self.doubling or not self.style.keep_quotes)
                parts.append(letter * 2 if both else letter)
        raise _WordError("unexpected end of statement while looking for matching double-quote")

    def dollar(self) -> str:
        """Return the value of the variable or substitution that starts here."""
        self.at += 1
        if self.peek() == "{":
            self.depth += 1
            if self.depth > DEPTH_LIMIT:
                raise _WordError("substitutions stand too deep inside each other")
            value = self.substitution()
            self.depth -= 1
        else:
            name = self.name()
            if not name:
                return "$"
            found = self.env.get(name)
            value = found if found is not None else f"${name}" if self.style.keep_unset else ""
        self.spent += len(value)
        if self.spent > SIZE_LIMIT:
            raise _WordError(f"variables expand to more than {SIZE_LIMIT >> 20} MiB")
        return value

    def name(self) -> str:
        """Read letters, digits and ``_``; or digits alone; or one special character; or ""."""
        first = self.peek()
        start = self.at
        if first in _SPECIAL_NAMES and first not in ("", "0"):
            self.at += 1
        elif first.isdecimal():
            while self.peek().isdecimal():
                self.at += 1
        else:
            while self.peek().isalpha() or self.peek().isdecimal() or self.peek() == "_":
                self.at += 1
        return self.text[start : self.at]

    def substitution(self) -> str:
        start = self.at - 1
        self.at += 1
        first = self.peek()
        if not first:
            raise _WordError("syntax error: missing '}'")
        if first in "{}:":
            raise _WordError("syntax error: bad substitution")
        name = self.name()
        operator = self.take()
        if operator == "}":
            value = self.env.get(name)
            if value is None:
                return self.text[start : self.at] if self.style.keep_unset else ""
            return value
        if operator == "/":
            return self.replacement(name)
        colon = operator == ":"
        if colon:
            operator = self.take()
        modifier = ":" + operator if colon else operator
        if not operator:
            raise _WordError("syntax error: missing '}'")
        if (not colon and operator not in "+-?#%") or (colon and operator in "#%"):
            raise _WordError(f"unsupported modifier ({modifier}) in substitution")
        word = self.operand("}", keep_escapes=operator in "#%", pattern=operator in "#%")
        value = self.env.get(name)
        if value is None and self.style.keep_unset:
            return f"${{{name}{modifier}{word}}}"
        return _modified(name, value, operator, word, colon)

    def operand(self, stop: str, *, keep_escapes: bool, pattern: bool) -> str:
        """Read the word of a substitution, up to ``stop``. A failure at the end of the text is an unclosed
        substitution."""
        try:
            return self.until(stop, keep_escapes, pattern=pattern)[0]
        except _WordError:
            if self.at >= self.size:
                missing = "missing '/' in ${}" if stop == "/" else "missing '}'"
                raise _WordError(f"syntax error: {missing}") from None
            raise

    def replacement(self, name: str) -> str:
        everywhere = self.peek() == "/"
        if everywhere:
            self.at += 1
        pattern = self.operand("/", keep_escapes=True, pattern=True)
        text = self.operand("}", keep_escapes=True, pattern=False)
        value = self.env.get(name)
        if value is None and self.style.keep_unset:
            return f"${{{name}/{pattern}/{text}}}"
        try:
            if everywhere:
                return shellpattern.replaced_all(pattern, value or "", text, SIZE_LIMIT)
            return shellpattern.replaced(pattern, value or "", text)
        except shellpattern.BadPatternError as wrong:
            raise _WordError(f"invalid pattern ({pattern}) in substitution: {wrong}") from wrong


def _modified(name: str, value: str | None, operator: str, word: str, colon: bool) -> str:
    absent = value is None or (colon and value == "")
    if operator == "-":
        return word if absent or value is None else value
    if operator == "+":
        return "" if absent else word
    if operator == "?":
        if value is None or absent:
            state = "unset" if value is None else "empty"
            raise _WordError(f"{name}: {word or f'is not allowed to be {state}'}")
        return value
    if operator not in "#%":
        raise _WordError(f"unsupported modifier (:{operator}) in substitution")
    longest = word.startswith(operator)
    pattern = word[1:] if longest else word
    trim = shellpattern.without_prefix if operator == "#" else shellpattern.without_suffix
    try:
        return trim(pattern, value or "", longest=longest)
    except shellpattern.BadPatternError as wrong:
        raise _WordError(f"invalid pattern ({pattern}) in substitution: {wrong}") from wrong

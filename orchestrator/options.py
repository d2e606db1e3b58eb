"""What a command's flags are: how each is written, explained and completed, and how its value is read.

A command declares its flags once, as the attributes of a class of ``Flags`` (``orchestrator.flags.BuildFlags``). All
else comes from there: click's options and with them the help, completion and ``docs/cli.md``, and the values, checked.
Flags that several commands have are declared here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

import click

from platforms import debug

T = TypeVar("T")
Value = TypeVar("Value")
Function = TypeVar("Function", bound=Callable[..., Any])
Complete = Callable[[click.Context, click.Parameter, str], list[Any]]
"""Gives what completes the begun value of a parameter."""


class Flag(Generic[T]):
    """A flag or an argument of a command. Decorates the command's function; an attribute of ``Flags`` is its value.

    ``read`` makes the value of what click gives, and of the flag's name, with which each refusal begins. It raises
    ``UsageError``. What takes its time to load is imported by ``read``, not before.
    """

    def __init__(self, names: Sequence[str], read: Callable[[Any, str], T], field: str = "", **options: Any) -> None:
        self.names = names
        self.read = read
        self.field = field
        """The attribute that holds it, and what click calls it."""
        self._options = options

    def __set_name__(self, _owner: type, name: str) -> None:
        self.field = name

    def __call__(self, function: Function) -> Function:
        """Add it to a command, as a decorator."""
        if self.names:
            return click.option(*self.names, self.field, **self._options)(function)
        return click.argument(self.field, **self._options)(function)

    @overload
    def __get__(self, flags: None, owner: type) -> Flag[T]: ...
    @overload
    def __get__(self, flags: Flags, owner: type) -> T: ...
    def __get__(self, flags: Flags | None, owner: type) -> Flag[T] | T:
        if flags is None:
            return self
        return self.read(flags.given[self.field], max(self.names, key=len, default=self.field))


class Flags:
    """The values of a command's flags. A subclass has each flag as an attribute, in the order of the help."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        """What click has made of the command line, by field."""

    @classmethod
    def declare(cls, function: Function) -> Function:
        """Add all of them to a command, as a decorator."""
        for flag in reversed([each for each in vars(cls).values() if isinstance(each, Flag)]):
            function = flag(function)
        return function


# -- kinds of flags --------------------------------------------------------------------------------------------------


def as_given(value: Value, _flag: str) -> Value:
    """Reads a value that click gives as it is wanted."""
    return value


def switch(*names: str, help: str, default: bool = False) -> Flag[bool]:  # noqa: A002
    """A flag without a value: true when it is there. ``--x/--no-x`` are two, of which the last counts."""
    return Flag[bool](names, as_given, is_flag=True, default=default, help=help)


def ignored(*names: str, help: str) -> Flag[None]:  # noqa: A002
    """A flag without a value, and without effect."""
    return Flag[None](names, as_given, is_flag=True, expose_value=False, help=help)


@overload
def text(*names: str, metavar: str, help: str, field: str = "", complete: Complete | None = None) -> Flag[str]: ...
@overload
def text(
    *names: str, metavar: str, help: str, read: Callable[[str, str], T], complete: Complete | None = None
) -> Flag[T]: ...
def text(
    *names: str,
    metavar: str,
    help: str,  # noqa: A002
    read: Callable[[str, str], Any] = as_given,
    field: str = "",
    complete: Complete | None = None,
) -> Flag[Any]:
    """A flag with a value; it is read as "" when it is not there."""
    return Flag(names, read, field, metavar=metavar, default="", shell_complete=complete, help=help)


@overload
def texts(
    *names: str, metavar: str, help: str, field: str = "", complete: Complete | None = None
) -> Flag[tuple[str, ...]]: ...
@overload
def texts(
    *names: str, metavar: str, help: str, read: Callable[[tuple[str, ...], str], T], complete: Complete | None = None
) -> Flag[T]: ...
def texts(
    *names: str,
    metavar: str,
    help: str,  # noqa: A002
    read: Callable[[tuple[str, ...], str], Any] = as_given,
    field: str = "",
    complete: Complete | None = None,
) -> Flag[Any]:
    """A flag that may be there several times; all its values are read together."""
    return Flag(names, read, field, metavar=metavar, multiple=True, shell_complete=complete, help=help)


def each(read: Callable[[str, str], T]) -> Callable[[tuple[str, ...], str], tuple[T, ...]]:
    """Reads the values of ``texts`` one by one."""
    return lambda values, flag: tuple(read(value, flag) for value in values)


@overload
def choice(*names: str, among: Sequence[str], help: str, default: str | None = None) -> Flag[str]: ...
@overload
def choice(
    *names: str, among: Sequence[str], help: str, read: Callable[[str, str], T], default: str | None = None
) -> Flag[T]: ...
def choice(
    *names: str,
    among: Sequence[str],
    help: str,  # noqa: A002
    read: Callable[[str, str], Any] = as_given,
    default: str | None = None,
) -> Flag[Any]:
    """A flag whose value is one of a few; it is read as its ``default``, or "", when it is not there."""
    kind = click.Choice(among)
    return Flag(names, lambda value, flag: read(value or "", flag), type=kind, default=default, help=help)


def number(*names: str, help: str, least: int | None = None) -> Flag[int | None]:  # noqa: A002
    """A flag with a number, not below ``least``; None when it is not there."""
    return Flag[int | None](names, as_given, type=click.INT if least is None else click.IntRange(min=least), help=help)


def argument(*, default: str, complete: Complete) -> Flag[str]:
    """The command's argument."""
    return Flag[str]((), as_given, default=default, shell_complete=complete)


# -- completion ------------------------------------------------------------------------------------------------------


def complete_directories(_context: click.Context, _option: click.Parameter, begun: str) -> list[Any]:
    """Directories that begin with ``begun``."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(begun, type="dir")]


def complete_files(_context: click.Context, _option: click.Parameter, begun: str) -> list[Any]:
    """Files that begin with ``begun``."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(begun, type="file")]


def complete_times(_context: click.Context, _option: click.Parameter, begun: str) -> list[str]:
    """Times after the last ``=`` of ``[REGISTRY=]TIME``."""
    registry, equals, last = begun.rpartition("=")
    return [registry + equals + each for each in ("10s", "30s", "1m", "5m") if each.startswith(last)]


def complete_platforms(_context: click.Context, _option: click.Parameter, begun: str) -> list[str]:
    """The usual platforms after the last comma."""
    from platforms.emulation import USUAL

    before, comma, last = begun.rpartition(",")
    return [before + comma + str(each) for each in USUAL if str(each).startswith(last)]


def complete_nodes(_context: click.Context, _option: click.Parameter, begun: str) -> list[str]:
    """The names in the inventory after the last comma."""
    from orchestrator.nodes import inventory

    before, comma, last = begun.rpartition(",")
    known = (each.name for each in inventory.load(inventory.user_file()))
    return [before + comma + each for each in known if each.startswith(last)]


# -- flags of several commands ---------------------------------------------------------------------------------------


def _debug(_context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        debug.enable()


DEBUG = Flag[None](
    ("-D", "--debug"),
    as_given,
    "debug",
    is_flag=True,
    expose_value=False,
    callback=_debug,
    help="Write to stderr what each process does, and when (KANIFOLD_DEBUG=1).",
)
INSECURE = texts("--insecure-registry", field="insecure", metavar="HOST", help="Allow plain HTTP and unverified TLS.")
MIRRORS = texts(
    "--registry-mirror",
    field="mirrors",
    metavar="[REGISTRY=]HOST",
    help="Where to look first (default registry: docker.io).",
)
TIMEOUT = texts(
    "--registry-timeout",
    field="timeouts",
    metavar="[REGISTRY=]TIME",
    complete=complete_times,
    help="Give a registry up after so long without getting further, tries included: 20s, 2m, …",
)

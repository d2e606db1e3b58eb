"""Methods that are called in another process, spelled once: in the interface that both ends share.

An interface is a ``Protocol``. The caller's end makes an object of it with ``stub``; the other end calls the method of
the same name of an object of its own (``Channel.answer``). What a method takes and returns is what its annotations say,
as JSON. An error that a user can cause arrives as what it is, with why and remedy.

Both ends of a channel may call, and send messages that have no reply. The form of messages is that of
``platforms.framing``.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from types import SimpleNamespace
from typing import Any, Generic, TypeVar, get_type_hints

import msgspec

from platforms import decoding, framing
from platforms.errors import KanifoldError, Problem, ProtocolError, sayable

M = TypeVar("M")


class Call(msgspec.Struct, frozen=True, tag=True):
    """A method is called; a ``Reply`` with the same number follows."""

    number: int
    method: str
    arguments: msgspec.Raw
    """A JSON array."""


class Reply(msgspec.Struct, frozen=True, tag=True):
    """What the call with this number returned, or the error that it raised."""

    number: int
    value: msgspec.Raw = msgspec.Raw(b"null")
    problem: Problem | None = None


class Signature(msgspec.Struct, frozen=True):
    """A method as its interface declares it."""

    name: str
    parameters: tuple[str, ...]
    arguments: Any
    """The type of all arguments together, a tuple."""
    result: Any


class Method(msgspec.Struct, frozen=True):
    """A method that can be called. Decoders are made where modules are loaded: see ``platforms.decoding``."""

    name: str
    parameters: tuple[str, ...]
    arguments: decoding.Decoder[tuple[Any, ...]]
    result: decoding.Decoder[Any]


def signatures(interface: type) -> tuple[Signature, ...]:
    """The methods that ``interface`` itself declares."""
    found = []
    for name, function in vars(interface).items():
        if not name.startswith("_"):
            hints = get_type_hints(function)
            result = hints.pop("return")
            found.append(Signature(name, tuple(hints), tuple[tuple(hints.values())], result))  # type: ignore[misc]
    return tuple(found)


def stub(methods: Mapping[str, Method], call: Callable[..., Any], **own: object) -> Any:
    """An object of the interface that has these ``methods``: each is ``call(method, *arguments)``.

    ``own`` are methods that the interface has besides.
    """
    remote = {name: partial(_called, call, method) for name, method in methods.items()}
    return SimpleNamespace(**remote, **own)


def _called(call: Callable[..., Any], method: Method, *arguments: object, **named: object) -> Any:
    rest = method.parameters[len(arguments) :]
    return call(method, *arguments, *(named[each] for each in rest))


class Channel(Generic[M]):
    """One end of two pipes, with messages of type ``M``, ``Call`` and ``Reply`` among them.

    Any thread may send and call. One thread iterates over ``messages``, which also takes the replies to calls.
    """

    def __init__(self, incoming: int, outgoing: int, decoder: decoding.Decoder[M], sender: str) -> None:
        self._reader = framing.Reader(incoming, decoder, sender)
        self._writer = framing.Writer(outgoing)
        self._numbers = itertools.count()
        self._ending = threading.Lock()
        self._waiting: dict[int, Future[msgspec.Raw]] = {}
        self._why: KanifoldError | None = None

    def send(self, message: M | Call | Reply) -> None:
        """Send a message; nothing is sent when the other end is gone, or after ``end``."""
        self._writer.write(message)

    def call(self, method: Method, *arguments: object) -> Any:
        """Call ``method`` in the other process and return what it returns. Raises what it raises.

        Raises the error that was given to ``end`` if that comes first.
        """
        number, found = next(self._numbers), Future[msgspec.Raw]()
        self._waiting[number] = found
        self.send(Call(number, method.name, msgspec.Raw(framing.to_json(arguments))))
        if self._why is not None:
            raise self._why
        try:
            return decoding.decode(method.result, found.result())
        except msgspec.DecodeError as error:
            raise ProtocolError(f"the result of {method.name} is malformed", why=str(error)) from error

    def answer(self, methods: Mapping[str, Method], target: object, call: Call) -> None:
        """Call the method of ``target`` that ``call`` names, one of ``methods``, and send its result or error."""
        try:
            arguments = decoding.decode(methods[call.method].arguments, call.arguments)
            value = framing.to_json(getattr(target, call.method)(*arguments))
            reply = Reply(call.number, msgspec.Raw(value))
        except KanifoldError as error:
            reply = Reply(call.number, problem=sayable(error.problem))
        except BaseException as error:
            sys.excepthook(*sys.exc_info())
            problem = Problem("ProtocolError", f"cannot answer the call of {call.method}", type(error).__name__)
            reply = Reply(call.number, problem=sayable(problem))
        self.send(reply)

    def messages(self) -> Iterator[M]:
        """The messages that are no replies, until the other end closes or sends what is no message."""
        while True:
            try:
                message = self._reader.message()
            except ProtocolError:
                return
            if message is None:
                return
            if not isinstance(message, Reply):
                yield message
            elif (found := self._waiting.pop(message.number, None)) is None:
                continue  # the callers were told of the end
            elif message.problem is None:
                found.set_result(message.value)
            else:
                found.set_exception(KanifoldError.of(message.problem))

    def end(self, why: KanifoldError) -> None:
        """Send nothing more. Calls that wait, and later ones, raise ``why``, or what an earlier ``end`` was given."""
        with self._ending:
            if self._why is None:
                self._why = why
                self._writer.close()
        for number in list(self._waiting):
            if (found := self._waiting.pop(number, None)) is not None:
                found.set_exception(self._why)

    def close(self) -> None:
        """Read nothing more, after ``end``."""
        self._reader.close()

"""Images are resolved once in a session, whoever asks; what could not be resolved is asked again by who asks next."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from executor.image.manifest import Descriptor
from executor.image.mediatypes import OCI_INDEX
from executor.protocol import Pin
from executor.registry.reference import Reference
from orchestrator.session import Pins
from orchestrator.view import events
from platforms.errors import RegistryError

DIGEST = "sha256:" + "1" * 64


class Registry:
    """Answers with ``DIGEST``, after as many failures as it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.asked: list[str] = []
        self._failures = failures

    def resolve(self, reference: Reference) -> Descriptor:
        self.asked.append(str(reference))
        if len(self.asked) <= self._failures:
            raise RegistryError("the registry does not answer")
        return Descriptor(OCI_INDEX, DIGEST, 1)


def pins(registry: Any, seen: list[events.Event] | None = None) -> Pins:
    return Pins(registry, (seen if seen is not None else []).append)


def test_whoever_asks_at_once_or_later_has_the_same_pin() -> None:
    registry, seen = Registry(), list[events.Event]()

    async def ask() -> list[Pin]:
        found = pins(registry, seen)
        return [
            *await asyncio.gather(*(found.resolve("debian:12") for _ in range(3))),
            await found.resolve("debian:12"),
        ]

    assert asyncio.run(ask()) == [Pin("debian:12", DIGEST)] * 4
    assert registry.asked == ["docker.io/library/debian:12"]
    assert [type(each) for each in seen] == [events.Resolving, events.Resolved]


def test_a_digest_is_its_own_pin() -> None:
    registry, name = Registry(), f"debian@{DIGEST}"

    async def ask() -> Pin:
        return await pins(registry).resolve(name)

    assert asyncio.run(ask()) == Pin(name, DIGEST)
    assert registry.asked == []


def test_who_asks_after_a_failure_asks_the_registry() -> None:
    registry = Registry(failures=1)

    async def ask() -> Pin:
        found = pins(registry)
        with pytest.raises(RegistryError):
            await found.resolve("debian:12")
        return await found.resolve("debian:12")

    assert asyncio.run(ask()) == Pin("debian:12", DIGEST)
    assert len(registry.asked) == 2


def test_a_build_that_is_cancelled_does_not_take_the_answer_from_another() -> None:
    registry = Registry()

    async def ask() -> Pin:
        found = pins(registry)
        first = asyncio.create_task(found.resolve("debian:12"))
        second = asyncio.create_task(found.resolve("debian:12"))
        await asyncio.sleep(0)  # both ask
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await second

    assert asyncio.run(ask()) == Pin("debian:12", DIGEST)
    assert len(registry.asked) == 1

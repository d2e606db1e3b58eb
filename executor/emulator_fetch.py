"""Fetching the emulator that a job names into the store of an executor elsewhere.

An executor forks the process of its steps while it has a single thread, and has to know the emulator before. So the
image is read by a process of its own, which ends with the emulator in the store, or with an error. It has no
credentials: what the orchestrator lends, it lends to jobs that run.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from functools import partial
from typing import Final, NoReturn

import msgspec

from executor import emulator_image, protocol
from executor.image import mediatypes
from executor.image.manifest import Descriptor
from executor.registry import reference
from executor.registry.client import Client
from executor.registry.reference import Reference
from executor.store.store import open_store
from platforms import decoding, syscalls, threads
from platforms.errors import EnvironmentUnfit, KanifoldError, Problem

_SECONDS: Final = 0.75 * protocol.PATIENCE
"""After these the attempt ends: the orchestrator must not think that this executor has died."""
_DOCUMENTS: Final = mediatypes.INDEXES | mediatypes.MANIFESTS
_PROBLEM: Final[msgspec.json.Decoder[Problem]] = msgspec.json.Decoder(Problem)


def fetch(job: protocol.Job, architecture: str) -> None:
    """Have the emulator of ``architecture`` out of the job's image in its store. Requires a single thread.

    Raises ``EnvironmentUnfit``.
    """
    threads.check_single("fetch an emulator")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _work(job, architecture, write)
    os.close(write)
    try:
        told = _heard(read)
    except TimeoutError as error:
        os.kill(child, signal.SIGKILL)
        raise EnvironmentUnfit(
            f"cannot fetch {job.options.emulator_image}",
            why=f"it took longer than {_SECONDS:.0f} s",
            remedy=f"on that machine: kanifold emulators add --image {job.options.emulator_image} {architecture}",
        ) from error
    finally:
        os.close(read)
        _, status = os.waitpid(child, 0)
    if told:
        problem = decoding.decode(_PROBLEM, told)
        raise EnvironmentUnfit(problem.what, why=problem.why, remedy=problem.remedy)
    if status:
        raise EnvironmentUnfit(
            f"cannot fetch {job.options.emulator_image}", why=f"the process that does ended with {status}"
        )


def _heard(fd: int) -> bytes:
    """Return what is written to the pipe ``fd`` until its end. Raises ``TimeoutError``."""
    end = time.monotonic() + _SECONDS
    parts: list[bytes] = []
    while select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
        if not (part := os.read(fd, 1 << 16)):
            return b"".join(parts)
        parts.append(part)
    raise TimeoutError


def _work(job: protocol.Job, architecture: str, report: int) -> NoReturn:
    """Fetch it in this process, which ends."""
    status = 1
    try:
        syscalls.die_with_parent()
        syscalls.set_name("kanifold-fetch")
        try:
            _take(job, architecture)
        except KanifoldError as error:
            os.write(report, msgspec.json.encode(error.problem))
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def _take(job: protocol.Job, architecture: str) -> None:
    name = reference.parse(job.options.emulator_image)
    with Client(job.options.registries) as client, open_store(job.options.root or None) as store:
        root, _, descriptor = client.manifest(name)
        image = emulator_image.select(
            job.options.emulator_image,
            descriptor.digest,
            root,
            partial(_read, client, name),
            partial(_open, client, name),
        )
        emulator_image.take(store, image, architecture)


def _read(client: Client, name: Reference, descriptor: Descriptor) -> bytes:
    if descriptor.media_type in _DOCUMENTS:
        return client.manifest(name.repository_only().with_digest(descriptor.digest))[1]
    return client.read_blob(name, descriptor, emulator_image.CONFIG_LIMIT)


def _open(client: Client, name: Reference, descriptor: Descriptor) -> Iterator[bytes]:
    return client.open_stream(name, descriptor)

"""Attack 34: a manifest, a token, an error that never ends; memory must not follow."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_server import Asked, Said, digest_of, served

from executor.image import mediatypes

GROWTH = 64 << 10
"""KiB by which the peak of resident memory may grow."""
PROGRAM = """
import io, resource, sys
from executor.image.manifest import Descriptor
from executor.registry.auth import Credential
from executor.registry.client import Client
from executor.registry.reference import parse
from executor.registry.registry_session import TransferOptions
from executor.retry import RetryPolicy
from executor.transport import load_httpx
from platforms.errors import RegistryError

host, digest = sys.argv[1:]
load_httpx()
layer = Descriptor("application/octet-stream", digest, 5)
reference = parse(host + "/a/b:1")

class Null:
    def write(self, data): pass
    def reset(self): pass

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
failed = 0
options = TransferOptions(RetryPolicy(attempts=2, first_delay=0.001))
with Client(keychain=lambda _: Credential("u", "p"), options=options) as client:
    for attempt in (
        lambda: client.manifest(reference),
        lambda: client.resolve(reference),
        lambda: client.fetch(reference, layer, Null()),
        lambda: client.read_blob(reference, layer),
        lambda: client.push(reference, layer, lambda: io.BytesIO(b"hello")),
        lambda: client.put_manifest(reference, b"{}", "application/json"),
    ):
        try:
            attempt()
        except RegistryError:
            failed += 1
print(failed, peak() - before)
"""


def endless() -> Iterator[bytes]:
    return itertools.repeat(b"x" * 65536)


def everything(_asked: Asked) -> Said:
    return Said(200, {"Content-Type": mediatypes.OCI_MANIFEST}, stream=endless())


def created(_asked: Asked) -> Said:
    return Said(202, {"Location": "/v2/a/b/blobs/uploads/1", "Range": "0-0"}, stream=endless())


def errors(status: int) -> object:
    return lambda _asked: Said(status, stream=endless())


def token(asked: Asked) -> Said:
    if asked.path == "/token":
        return Said(200, {}, b'{"token": "', stream=endless())
    return Said(401, {"WWW-Authenticate": f'Bearer realm="http://{asked.headers["host"]}/token"'}, stream=endless())


def redirect(asked: Asked) -> Said:
    return Said(307, {"Location": asked.path + "x"}, stream=endless())


@pytest.mark.parametrize(
    "handler",
    [everything, created, errors(400), errors(404), errors(500), token, redirect],
    ids=["success", "accepted", "400", "404", "500", "token", "redirect"],
)
def test_no_endless_body_fills_the_memory(handler: object) -> None:
    with served(handler) as server:  # type: ignore[arg-type]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, server.host, digest_of(b"hello")],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    failed, growth = map(int, done.stdout.split())
    assert failed >= 4
    assert growth <= GROWTH


def test_no_endless_header_fills_the_memory() -> None:
    with served(lambda _: Said(200, {"X": "y" * (8 << 20)})) as server:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, server.host, digest_of(b"hello")],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    failed, growth = map(int, done.stdout.split())
    assert failed == 6
    assert growth <= GROWTH

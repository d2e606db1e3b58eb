"""The client against Debian's docker-registry and beside skopeo: open, with a password, a token service, with TLS."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace
from registry_server import (
    HTPASSWD,
    PASSWORD,
    USER,
    Asked,
    Said,
    Served,
    digest_of,
    docker_registry,
    self_signed,
    served,
)
from token_service import TokenService, token_registry

from executor.image import mediatypes
from executor.image.manifest import Descriptor, Index, Manifest, PlatformSpec, describe
from executor.registry.auth import Credential
from executor.registry.client import Client
from executor.registry.reference import Reference, parse
from executor.registry.registry_session import TransferOptions
from executor.registry.registry_settings import RegistryCertificates, RegistrySettings
from executor.registry.transfer import Direction
from executor.retry import RetryPolicy
from platforms.errors import RegistryError

pytestmark = pytest.mark.registry

QUICK = TransferOptions(RetryPolicy(first_delay=0.001, longest_delay=0.002))
SKOPEO = shutil.which("skopeo")
needs_skopeo = pytest.mark.skipif(SKOPEO is None, reason="skopeo is not installed (Debian package skopeo)")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


def content(*names: str) -> tuple[bytes, str]:
    """A gzipped layer with empty files of these names, and its diff id."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return gzip.compress(out.getvalue(), mtime=0), digest_of(out.getvalue())


def push_image(client: Client, reference: Reference, architecture: str, *names: str) -> Descriptor:
    """A small valid image for linux/``architecture``, pushed under the reference; its descriptor with the platform."""
    data, diff_id = content(*names)
    layer = Descriptor(mediatypes.OCI_LAYER_GZIP, digest_of(data), len(data))
    config = json.dumps(
        {"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}, "config": {}}
    ).encode()
    described = Descriptor(mediatypes.OCI_CONFIG, digest_of(config), len(config))
    client.push(reference, layer, lambda: io.BytesIO(data))
    client.push(reference, described, lambda: io.BytesIO(config))
    platform = PlatformSpec(architecture, "linux")
    descriptor, manifest = describe(Manifest(mediatypes.OCI_MANIFEST, described, (layer,)), platform)
    client.put_manifest(reference.repository_only(), manifest, descriptor.media_type)
    return descriptor


def skopeo(*arguments: str) -> bytes:
    done = subprocess.run([str(SKOPEO), *arguments], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_blobs_and_manifests_go_up_and_come_down(host: str) -> None:
    reference = parse(f"{host}/first/app:1")
    with Client(options=QUICK) as client:
        descriptor = push_image(client, reference, "amd64", "a", "b")
        assert client.has_manifest(reference) is None
        _, data, _ = client.manifest(reference.with_digest(descriptor.digest))
        client.put_manifest(reference, data, descriptor.media_type)
        document, again, resolved = client.manifest(reference)
        assert (again, resolved.digest) == (data, descriptor.digest)
        assert client.resolve(reference) == resolved
        assert isinstance(document, Manifest)
        assert client.read_blob(reference, document.layers[0]) == content("a", "b")[0]


def test_a_blob_moves_between_repositories_without_being_sent(host: str) -> None:
    data = os.urandom(10_000)
    descriptor = Descriptor(mediatypes.OCI_LAYER, digest_of(data), len(data))
    sent: list[int] = []

    class Counting(Client):
        def progress(self, action: Direction, name: str, done: int, total: int) -> None:
            sent.append(done)

    with Counting(options=QUICK) as client:
        assert client.push(parse(f"{host}/m/one"), descriptor, lambda: io.BytesIO(data)) == "uploaded"
        sent.clear()
        second = parse(f"{host}/m/two")
        assert client.push(second, descriptor, lambda: io.BytesIO(data), mount_from=["m/one"]) == "mounted"
        assert sent == []
        assert client.read_blob(second, descriptor) == data


def test_a_real_registry_takes_chunks(host: str) -> None:
    data = os.urandom((3 << 20) + 17)
    descriptor = Descriptor(mediatypes.OCI_LAYER, digest_of(data), len(data))
    reference = parse(f"{host}/chunks/app")
    with Client(options=replace(QUICK, whole=0, chunk=1 << 20)) as client:
        assert client.push(reference, descriptor, lambda: io.BytesIO(data)) == "uploaded"
        assert client.read_blob(reference, descriptor) == data


def test_a_real_registry_resumes_a_download(host: str) -> None:
    """A proxy that cuts each answer after a megabyte: what arrives is the blob, and nothing was sent twice."""
    data = os.urandom(5 << 20)
    descriptor = Descriptor(mediatypes.OCI_LAYER, digest_of(data), len(data))
    with Client(options=QUICK) as client:
        client.push(parse(f"{host}/resumed/app"), descriptor, lambda: io.BytesIO(data))

    def proxy(asked: Asked) -> Said:
        headers = {key: value for key, value in asked.headers.items() if key in ("range", "accept", "accept-encoding")}
        answer = httpx.request(asked.method, f"http://{host}{asked.path}", headers=headers, trust_env=False)
        span = {"Content-Range": answer.headers["content-range"]} if "content-range" in answer.headers else {}
        cut = (1 << 20) + 1 if len(answer.content) > 1 << 20 else None
        return Said(answer.status_code, span, answer.content, length=len(answer.content), cut=cut)

    with served(proxy) as near, Client(options=QUICK) as client:
        assert client.read_blob(parse(f"{near.host}/resumed/app"), descriptor) == data
        starts = [int(each.headers.get("range", "bytes=0-")[6:-1]) for each in near.seen("GET")]
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    assert len(starts) >= 5


def test_a_false_digest_is_refused_by_the_registry(host: str) -> None:
    data = b"not what it says"
    lie = Descriptor(mediatypes.OCI_LAYER, digest_of(b"something else"), len(data))
    with Client(options=QUICK) as client, pytest.raises(RegistryError, match="DIGEST_INVALID"):
        client.push(parse(f"{host}/lie/app"), lie, lambda: io.BytesIO(data))


@needs_skopeo
def test_skopeo_reads_the_index_that_we_push(host: str, tmp_path: Path) -> None:
    reference = parse(f"{host}/multi/app:1")
    with Client(options=QUICK) as client:
        images = tuple(push_image(client, reference, each, each) for each in ("amd64", "arm64"))
        descriptor, data = describe(Index(mediatypes.OCI_INDEX, images))
        client.put_manifest(reference, data, descriptor.media_type)
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{reference}")
    assert raw == data
    skopeo("copy", "--all", "--src-tls-verify=false", f"docker://{reference}", f"dir:{tmp_path / 'out'}")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == data
    about = json.loads(skopeo("--override-arch", "arm64", "inspect", "--tls-verify=false", f"docker://{reference}"))
    assert about["Architecture"] == "arm64"


@needs_skopeo
def test_we_read_the_docker_schema_2_image_that_skopeo_pushes(host: str) -> None:
    ours, theirs = parse(f"{host}/from/us:1"), parse(f"{host}/from/skopeo:1")
    with Client(options=QUICK) as client:
        descriptor = push_image(client, ours, "amd64", "x")
        plain = ours.with_digest(descriptor.digest)
        insecure = ("--src-tls-verify=false", "--dest-tls-verify=false")
        skopeo("copy", "--format", "v2s2", *insecure, f"docker://{host}/from/us@{plain.digest}", f"docker://{theirs}")
        document, _, found = client.manifest(theirs)
        assert found.media_type == mediatypes.DOCKER_MANIFEST
        assert isinstance(document, Manifest)
        assert document.config.media_type == mediatypes.DOCKER_CONFIG
        assert document.layers[0].media_type == mediatypes.DOCKER_LAYER_GZIP
        assert client.read_blob(theirs, document.layers[0]) == content("x")[0]


# -- who we are ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "htpasswd").write_text(HTPASSWD + "\n")
    with docker_registry(directory, auth=f"{{htpasswd: {{realm: crabs, path: {directory / 'htpasswd'}}}}}") as host:
        yield host


def test_a_password_opens_the_door(guarded: str) -> None:
    reference = parse(f"{guarded}/secret/app:1")
    asked: list[str] = []

    def keychain(name: str) -> Credential | None:
        asked.append(name)
        return Credential(USER, PASSWORD)

    with Client(keychain=keychain, options=QUICK) as client:
        descriptor = push_image(client, reference, "amd64", "x")
        assert client.resolve(reference.with_digest(descriptor.digest)).digest == descriptor.digest
    assert asked == [f"{guarded}/secret/app"]


def test_without_a_credential_the_error_says_how_to_sign_in(guarded: str) -> None:
    with Client(options=QUICK) as client, pytest.raises(RegistryError) as caught:
        client.resolve(parse(f"{guarded}/secret/app:1"))
    assert "401" in caught.value.problem.why
    assert f"docker login {guarded}" in caught.value.problem.remedy
    assert "no credential" in caught.value.problem.remedy


def test_a_wrong_password_is_called_that(guarded: str) -> None:
    with (
        Client(keychain=lambda _: Credential(USER, "wr0ng"), options=QUICK) as client,
        pytest.raises(RegistryError) as caught,
    ):
        client.resolve(parse(f"{guarded}/secret/app:1"))
    assert "current" in caught.value.problem.remedy
    assert "wr0ng" not in str(caught.value.problem)


@pytest.fixture(scope="module")
def tokened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Served, TokenService]]:
    """A docker-registry that wants tokens, and the service that makes them, on another port."""
    with token_registry(tmp_path_factory.mktemp("tokened")) as found:
        yield found


@pytest.mark.parametrize("credential", [Credential(USER, PASSWORD), Credential(identity_token="refresh-me")])
def test_tokens_are_asked_for_once_for_each_scope(
    tokened: tuple[str, Served, TokenService], credential: Credential
) -> None:
    host, tokens, service = tokened
    settings = RegistrySettings(token_services=((host, (tokens.host,)),))
    reference = parse(f"{host}/team/app-{len(service.uses)}:1")
    before = len(service.uses)
    with Client(settings, lambda _: credential, options=QUICK) as client:
        descriptor = push_image(client, reference, "amd64", "x")
        assert len(service.uses) == before + 1
        client.resolve(reference.with_digest(descriptor.digest))
        client.manifest(reference.with_digest(descriptor.digest))
        assert len(service.uses) == before + 2
        other = parse(f"{host}/team/other-{before}")
        document = client.manifest(reference.with_digest(descriptor.digest))[0]
        assert isinstance(document, Manifest)
        sources = [reference.repository]
        assert client.push(other, document.layers[0], io.BytesIO, mount_from=sources) == "mounted"
        assert len(service.uses) == before + 4  # one to look for it, one for both repositories


def test_the_token_service_may_refuse(tokened: tuple[str, Served, TokenService]) -> None:
    host, tokens, _ = tokened
    settings = RegistrySettings(token_services=((host, (tokens.host,)),))
    with Client(settings, lambda _: Credential(USER, "wr0ng")) as client, pytest.raises(RegistryError) as caught:
        client.resolve(parse(f"{host}/team/app:1"))
    assert "who are you?" in caught.value.problem.why
    assert "docker login" in caught.value.problem.remedy


def test_a_token_service_elsewhere_has_to_be_named(tokened: tuple[str, Served, TokenService]) -> None:
    host, tokens, service = tokened
    before = len(service.uses)
    with Client(keychain=lambda _: Credential(USER, PASSWORD)) as client, pytest.raises(RegistryError) as caught:
        client.resolve(parse(f"{host}/team/app:1"))
    assert f"token-services: [{tokens.host}]" in caught.value.problem.remedy
    assert len(service.uses) == before


# -- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A registry with a certificate of its own making, and that certificate."""
    directory = tmp_path_factory.mktemp("tls")
    key, certificate = self_signed(directory)
    with docker_registry(directory, tls=f"{{certificate: {certificate}, key: {key}}}") as host:
        yield host, certificate.read_text()


def test_a_private_authority_is_trusted_when_it_is_named(tls: tuple[str, str]) -> None:
    host, pem = tls
    with Client(RegistrySettings(certificates=(RegistryCertificates(host, pem),)), options=QUICK) as client:
        push_image(client, parse(f"{host}/a/b:1"), "amd64", "x")


def test_an_unknown_authority_is_not_trusted(tls: tuple[str, str]) -> None:
    host, _ = tls
    with Client(RegistrySettings(tls=frozenset({host}))) as client, pytest.raises(RegistryError) as caught:
        client.resolve(parse(f"{host}/a/b:1"))
    assert "cannot trust" in caught.value.problem.what
    assert f"--insecure-registry {host}" in caught.value.problem.remedy


def test_an_insecure_registry_is_spoken_to_without_verifying(tls: tuple[str, str], host: str) -> None:
    secure, _ = tls
    settings = RegistrySettings(insecure=frozenset({secure, host}), tls=frozenset({secure}))
    with Client(settings, options=QUICK) as client:
        push_image(client, parse(f"{secure}/a/b:1"), "amd64", "x")  # TLS, not verified
        push_image(client, parse(f"{host}/a/b:1"), "amd64", "x")  # no TLS at all


def test_plain_http_to_a_tls_registry_says_what_to_do(tls: tuple[str, str]) -> None:
    host, _ = tls
    with Client() as client, pytest.raises(RegistryError) as caught:
        client.manifest(parse(f"{host}/a/b:1"))
    assert "tls: true" in caught.value.problem.remedy


def test_a_broken_certificate_is_named(tls: tuple[str, str]) -> None:
    host, _ = tls
    settings = RegistrySettings(certificates=(RegistryCertificates(host, "-----BEGIN nonsense"),))
    with Client(settings) as client, pytest.raises(RegistryError, match="certificates"):
        client.resolve(parse(f"{host}/a/b:1"))

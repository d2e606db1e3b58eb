"""Attack 71 (review): what an image or a list of referrers says leads a copy, with its credentials, to other places."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from registry_server import Asked, MemoryRegistry, Said, served
from small_images import CONFIG, INDEX, MANIFEST, Images

from orchestrator.cli import cli
from platforms.errors import ArchiveError, RegistryError


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> None:
    cli.main(list(words), standalone_mode=False)


def test_the_next_page_of_referrers_takes_no_credential_to_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images()
    root = images.image()
    empty = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()
    with served(lambda _: Said(200, {"Content-Type": INDEX}, empty)) as stranger:

        def page(asked: Asked) -> object:
            if "authorization" not in asked.headers:
                return Said(401, {"WWW-Authenticate": 'Basic realm="here"'})
            if "/referrers/" in asked.path:
                return Said(200, {"Content-Type": INDEX, "Link": f'<{stranger.url}/steal>; rel="next"'}, empty)
            return ...

        memory = MemoryRegistry(page)
        images.put(memory, "app", {"1": root})
        with served(memory) as server:
            secret = base64.b64encode(b"user:password").decode()
            monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {server.host: {"auth": secret}}}))
            run("copy", f"{server.host}/app:1", "oci:out:1")
            assert server.secrets(), "the registry itself is given its credential"
        assert stranger.secrets() == []


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest/", "http://[fd00:ec2::254]/"])
def test_the_next_page_of_referrers_is_not_at_a_metadata_service(target: str) -> None:
    images = Images()
    empty = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()
    memory = MemoryRegistry(
        lambda asked: (
            Said(200, {"Content-Type": INDEX, "Link": f'<{target}>; rel="next"'}, empty)
            if "/referrers/" in asked.path
            else ...
        )
    )
    images.put(memory, "app", {"1": images.image()})
    with served(memory) as server, pytest.raises(RegistryError, match="metadata"):
        run("copy", f"{server.host}/app:1", "oci:out:1")


@pytest.mark.parametrize("flags", [(), ("--allow-nondistributable-artifacts",)])
def test_the_urls_of_foreign_layers_are_never_asked(flags: tuple[str, ...]) -> None:
    images = Images()
    with served(lambda _: Said(200, {}, b"foreign")) as stranger:
        layer = images.blob(
            "application/vnd.oci.image.layer.nondistributable.v1.tar", b"foreign", urls=[f"{stranger.url}/layer"]
        )
        config = images.blob(CONFIG, b'{"os":"windows","architecture":"amd64"}')
        root = images.document(MANIFEST, {"config": config, "layers": [layer]})
        memory = MemoryRegistry()
        images.put(memory, "app", {"1": root})
        del memory.blobs["app", layer["digest"]]
        with served(memory) as server:
            if flags:
                with pytest.raises(RegistryError, match=layer["digest"]):
                    run("copy", f"{server.host}/app:1", "oci:out:1", *flags)
            else:
                run("copy", f"{server.host}/app:1", "oci:out:1")
        assert stranger.asked == []


@pytest.mark.parametrize(
    "digest", ["sha256:../../../../canary", "sha256:" + "/" * 64, "../canary", "sha256:" + "A" * 64]
)
def test_digests_that_are_paths_are_none(digest: str, tmp_path: Path) -> None:
    (tmp_path / "canary").write_text("{}")
    images = Images()
    root = images.index([{"mediaType": MANIFEST, "digest": digest, "size": 2}])
    images.layout(tmp_path / "in", {"1": root})
    for words in (("index", "inspect", "oci:in:1"), ("copy", "oci:in:1", "oci:out:1")):
        with pytest.raises(ArchiveError, match="not a digest"):
            run(*words)
    assert not (tmp_path / "out").exists()

"""Ways to a cluster's API: kubeconfig in its forms, service accounts, and credentials that expire; on a server here."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.nodes.kubernetes import address
from orchestrator.nodes.kubernetes.cluster_api import APIRefusedError, APIUnreachableError, KubernetesClient
from platforms.errors import EnvironmentUnfit


class API:
    """A server that takes the tokens ``valid``, and any client with a certificate; what it was asked is in ``seen``."""

    def __init__(self, certificates: Path | None = None) -> None:
        self.valid = {"good"}
        self.seen: list[tuple[str, str]] = []
        """Request targets and tokens."""
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                api.seen.append((self.path, token))
                known = token in api.valid or (
                    isinstance(self.connection, ssl.SSLSocket) and self.connection.getpeercert()
                )
                body = json.dumps({"kind": "Status", "message": "it is what it is", "reason": "Unauthorized"}).encode()
                self.send_response(200 if known else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        if certificates is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates / "all.crt", certificates / "all.key")
            context.load_verify_locations(certificates / "all.crt")
            context.verify_mode = ssl.CERT_OPTIONAL
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            self.scheme = "https"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator[API]:
        thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join()


@pytest.fixture
def api() -> Iterator[API]:
    with API().running() as made:
        yield made


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for a server and a client, its own authority."""
    folder = tmp_path_factory.mktemp("certificates")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "9",
         "-keyout", folder / "all.key", "-out", folder / "all.crt", "-subj", "/CN=t",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:api.example.com"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


def config(path: Path, cluster: dict[str, Any] | None, user: dict[str, Any] | None, name: str = "one") -> Path:
    """Write a kubeconfig, whole or a part of one."""
    parts: dict[str, Any] = {"apiVersion": "v1", "kind": "Config", "clusters": [], "users": [], "contexts": []}
    if cluster is not None:
        parts["clusters"] = [{"name": name, "cluster": cluster}]
        parts["contexts"] = [{"name": name, "context": {"cluster": name, "user": name, "namespace": "from-context"}}]
        parts["current-context"] = name
    if user is not None:
        parts["users"] = [{"name": name, "user": user}]
    path.write_text(json.dumps(parts))
    return path


def asked(context: str = "", namespace: str = "", requests: int = 1) -> str:
    """Connect as the environment says, ask for something, and return the namespace."""

    async def ask() -> str:
        client = KubernetesClient(address.parse(f"kubernetes://{context}/{namespace}?image=i"), "farm")
        try:
            await client.connect()
            for _ in range(requests):
                await client.get("/version")
        finally:
            await client.close()
        return client.namespace

    return asyncio.run(ask())


def plugin(folder: Path, script: str) -> dict[str, Any]:
    """A user whose credentials a program tells."""
    path = folder / "plugin"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    env = [{"name": "WHO", "value": "good"}]
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path), "args": ["x"], "env": env}}


CREDENTIAL = '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "%s"}}'


def test_a_token(api: API, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path / "c", {"server": api.url}, {"token": "good"})))
    assert asked() == "from-context"
    assert asked("one", "mine") == "mine"
    assert api.seen == [("/version", "good")] * 2


def test_several_files(api: API, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = config(tmp_path / "a", {"server": "http://127.0.0.1:1"}, {"token": "bad"}, "other")
    second, third = config(tmp_path / "b", {"server": api.url}, None), config(tmp_path / "c", None, {"token": "good"})
    monkeypatch.setenv("KUBECONFIG", f"{first}:{tmp_path / 'missing'}:{second}:{third}")
    asked("one")
    assert api.seen == [("/version", "good")]


def test_a_token_file(api: API, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("good")
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path / "c", {"server": api.url}, {"tokenFile": "token"})))
    asked()
    assert api.seen == [("/version", "good")]


def test_a_plugin(api: API, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = plugin(tmp_path, f'test -n "$KUBERNETES_EXEC_INFO" && printf \'{CREDENTIAL}\' "$WHO"')
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path / "c", {"server": api.url}, user)))
    asked(requests=2)
    assert api.seen == [("/version", "good")] * 2


def test_a_plugin_that_fails_is_quoted(api: API, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = plugin(tmp_path, "echo 'log in first' >&2; exit 1")
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path / "c", {"server": api.url}, user)))
    with pytest.raises(EnvironmentUnfit) as refused:
        asked()
    assert "log in first" in refused.value.problem.why
    assert refused.value.problem.remedy


def test_a_credential_that_has_expired_is_asked_for_again(
    api: API, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = f"echo x >>{tmp_path}/calls; printf '{CREDENTIAL}' token-$(wc -l <{tmp_path}/calls)"
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path / "c", {"server": api.url}, plugin(tmp_path, counter))))
    api.valid = {"token-2"}
    asked()
    assert [token for _, token in api.seen] == ["token-1", "token-2"]
    api.valid = set()
    with pytest.raises(APIRefusedError):
        asked()
    assert len(api.seen) == 4, "once, not for ever"


def test_client_certificates(certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = {"client-certificate": str(certificates / "all.crt"), "client-key": str(certificates / "all.key")}
    with API(certificates).running() as api:
        for cluster in (
            {"server": api.url, "certificate-authority": str(certificates / "all.crt")},
            {"server": api.url, "insecure-skip-tls-verify": True},
            {
                "server": api.url.replace("127.0.0.1", "localhost"),
                "tls-server-name": "api.example.com",
                "certificate-authority": str(certificates / "all.crt"),
            },
        ):
            monkeypatch.setenv("KUBECONFIG", str(config(tmp_path / "c", cluster, user)))
            asked()
        monkeypatch.setenv("KUBECONFIG", str(config(tmp_path / "c", {"server": api.url}, user)))
        with pytest.raises(APIUnreachableError, match=r"(?i)certificate"):
            asked()


def test_a_proxy(api: API, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = {"server": "http://api.example.invalid", "proxy-url": api.url}
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path / "c", cluster, {"token": "good"})))
    asked()
    assert api.seen == [("http://api.example.invalid/version", "good")]


def test_a_service_account(certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kubernetes_asyncio.config import incluster_config

    with API(certificates).running() as api:
        host, _, port = api.url.removeprefix("https://").partition(":")
        (tmp_path / "token").write_text("good")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
        monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
        monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(certificates / "all.crt"))
        assert asked("in-cluster", "mine") == "mine"
        assert api.seen == [("/version", "good")]


@pytest.mark.parametrize("context", ["in-cluster", "nowhere"])
def test_what_is_not_there_is_said(context: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path / "c", {"server": "http://127.0.0.1:1"}, {"token": "t"})))
    with pytest.raises(EnvironmentUnfit) as refused:
        asked(context)
    assert refused.value.problem.remedy


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path / "c", {"server": "http://127.0.0.1:1"}, {"token": "t"})))
    with pytest.raises(APIUnreachableError):
        asked()


def test_requests_go_on_while_credentials_are_renewed(
    api: API, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"echo x >>{tmp_path}/calls; n=$(wc -l <{tmp_path}/calls); test $n = 1 || cat {tmp_path}/gate; "
    user = plugin(tmp_path, script + f"printf '{CREDENTIAL}' token-$n")
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path / "c", {"server": api.url}, user)))
    os.mkfifo(tmp_path / "gate")
    api.valid = {"token-1"}

    async def ask() -> None:
        client = KubernetesClient(address.parse("kubernetes:///?image=i"), "farm")
        await client.connect()
        api.valid = set()
        renewing = asyncio.create_task(client.get("/version"))
        with await asyncio.to_thread(open, tmp_path / "gate", "w"):  # it is being asked now
            api.valid = {"token-1", "token-2"}
            await client.get("/meanwhile")
        await renewing
        await client.close()

    asyncio.run(asyncio.wait_for(ask(), 30))
    assert ("/meanwhile", "token-1") in api.seen
    assert api.seen[-1] == ("/version", "token-2")

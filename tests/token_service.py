"""A docker-registry that wants tokens, and a token service whose tokens it believes."""

from __future__ import annotations

import base64
import json
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from registry_server import PASSWORD, USER, Asked, Said, Served, docker_registry, self_signed, served


class TokenService:
    """Makes JSON web tokens, signed by a key made with openssl, that are valid for ``seconds``."""

    seconds = 300

    def __init__(self, directory: Path) -> None:
        self.key, self.certificate = self_signed(directory)
        self.uses: list[Asked] = []

    def __call__(self, asked: Asked) -> Said:
        self.uses.append(asked)
        form = dict(each.split("=", 1) for each in asked.body.decode().split("&")) if asked.body else {}
        expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if asked.headers.get("authorization") != expected and form.get("refresh_token") != "refresh-me":
            return Said(401, {}, b'{"details": "who are you?"}')
        scopes = asked.query.get("scope") or urllib.parse.unquote_plus(form["scope"]).split(" ")
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        claims = {"iss": "tokens", "sub": USER, "aud": "crabs", "exp": now + 300, "nbf": now - 5, "iat": now}
        der = self.certificate.read_text().split("-----")[2].replace("\n", "")
        signed = ".".join(
            _url64(json.dumps(part).encode())
            for part in ({"typ": "JWT", "alg": "RS256", "x5c": [der]}, {**claims, "jti": "1", "access": access})
        )
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", self.key], input=signed.encode(), check=True, capture_output=True
        ).stdout
        return Said(
            200, {}, json.dumps({"token": f"{signed}.{_url64(signature)}", "expires_in": self.seconds}).encode()
        )


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def access(token: str) -> dict[str, set[str]]:
    """Return the actions that ``token`` allows, by repository."""
    body = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return {each["name"]: set(each["actions"]) for each in claims["access"]}


@contextmanager
def token_registry(directory: Path) -> Iterator[tuple[str, Served, TokenService]]:
    """Run the registry; yields its address, and the token service, which is on another port."""
    directory.mkdir(exist_ok=True)
    service = TokenService(directory)
    with served(service) as tokens:
        body = f"realm: '{tokens.url}/token', service: crabs, issuer: tokens, rootcertbundle: {service.certificate}"
        with docker_registry(directory, auth=f"{{token: {{{body}}}}}") as host:
            yield host, tokens, service

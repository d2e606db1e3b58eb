"""The API of a cluster: requests, watches and streams, by the library kubernetes_asyncio.

Of that library the kubeconfig, the exec plugins, the service account and the HTTP session are used; answers are read as
data here, by the few fields that matter. All requests that kanifold makes are in ``VERBS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import msgspec

from orchestrator.nodes.kubernetes.address import IN_CLUSTER, KubernetesAddress
from platforms import debug, decoding
from platforms.errors import EnvironmentUnfit, UsageError, printable

if TYPE_CHECKING:
    import aiohttp

Verb = tuple[str, str, str, str]
"""Verb, API group, resource and subresource."""
DELETE_JOBS: Final[Verb] = ("delete", "batch", "jobs", "")
VERBS: Final[tuple[Verb, ...]] = (
    ("create", "batch", "jobs", ""),
    DELETE_JOBS,
    ("list", "", "pods", ""),
    ("watch", "", "pods", ""),
    ("create", "", "pods", "exec"),
    ("get", "", "pods", "exec"),
)
"""What a build does in the namespace. A stream is opened by GET, for which older clusters ask for ``get``, and newer
ones for ``create`` as well."""
OPTIONAL_VERBS: Final[tuple[Verb, ...]] = (
    ("list", "", "events", ""),
    ("watch", "", "events", ""),
    ("list", "", "nodes", ""),
)
"""What it does without: why a Pod waits is then told less clearly, and architectures have to be named (``arch``)."""
REQUESTS_AT_ONCE: Final = 16
"""Each has a connection with TLS, which takes more memory than all else that a Job takes of the orchestrator."""
REQUEST_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 10.0
_REVIEWS: Final = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_CLUSTER_WIDE: Final = frozenset({"nodes"})
_ANSWER_LIMIT: Final = 32 << 20
_MESSAGE_LIMIT: Final = 4 << 20
"""Bytes of a message on a stream: a kubelet passes on what it reads from a pipe at a time."""
_LINE: Final = 2 << 20
"""Half of the bytes of a line of a watch at most: an object has 1.5 MiB, or not much more."""
_PROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")
"""Of streams: the first byte of a message is its channel."""


class APIStatus(msgspec.Struct, frozen=True):
    """What the API says of a request that it refuses (meta/v1 Status)."""

    reason: str = ""
    message: str = ""
    code: int = 0


class APIRefusedError(Exception):
    """A request that the API has answered with an error."""

    def __init__(self, status: APIStatus) -> None:
        super().__init__(status.message)
        self.status = status

    @property
    def code(self) -> int:
        """The status of HTTP."""
        return self.status.code


class APIUnreachableError(Exception):
    """A request without an answer: no connection, or one that was cut."""


class _ReviewStatus(msgspec.Struct, frozen=True):
    allowed: bool = False


class _Review(msgspec.Struct, frozen=True):
    status: _ReviewStatus = _ReviewStatus()


_REVIEW: Final = msgspec.json.Decoder(_Review)
_STATUS: Final = msgspec.json.Decoder(APIStatus)


class KubernetesClient:
    """The API that ``address`` leads to, for the node ``node``. Made by ``connect``."""

    def __init__(self, address: KubernetesAddress, node: str) -> None:
        self._address = address
        self._node = node
        self._api: Any = None
        self._configuration: Any = None
        self._retired: list[Any] = []
        """Those with older credentials, over which streams go on."""
        self._renewing = asyncio.Lock()
        self._turns = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._generation = 0
        """How often credentials were read."""
        self.namespace = address.namespace

    async def connect(self) -> None:
        """Read credentials. Raises ``EnvironmentUnfit``, ``UsageError``."""
        await asyncio.to_thread(_load, self._node)
        await self._renew(self._generation)

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        """Return the object at ``path``. Raises ``APIRefusedError``, ``APIUnreachableError``, as all of these."""
        return await self._request("GET", path, query)

    async def create(self, path: str, body: object) -> bytes:
        """Create an object in the collection ``path``."""
        return await self._request("POST", path, None, body)

    async def delete(self, path: str, policy: str) -> None:
        """Delete the object at ``path`` with the propagation policy ``policy``."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy}
        await self._request("DELETE", path, None, options)

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        """Yield the lines of a watch, until the API ends it."""
        response = await self._send("GET", path, {**query, "watch": "true"}, None, streamed=True)
        try:
            async for line in response.content:
                yield line
        except Exception as error:
            raise _unreachable(error) from error
        finally:
            response.close()

    @contextlib.asynccontextmanager
    async def stream(self, path: str, query: list[tuple[str, str]]) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Open a stream of channels to a container."""
        import aiohttp

        session, configuration = self._api.rest_client.pool_manager, self._configuration
        url = f"{configuration.host}{path}?{urlencode(query)}"
        generation = self._generation
        try:
            socket = await session.ws_connect(
                url,
                protocols=_PROTOCOLS,
                headers=await self._headers(),
                proxy=configuration.proxy,
                server_hostname=configuration.tls_server_name,
                timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
                max_msg_size=_MESSAGE_LIMIT,
                compress=0,
            )
        except aiohttp.WSServerHandshakeError as error:
            if error.status == 401:
                await self._renew(generation)
            raise APIRefusedError(APIStatus("", self._refused_stream(error), error.status)) from error
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            raise _unreachable(error) from error
        try:
            yield socket
        finally:
            await socket.close()

    def _refused_stream(self, error: aiohttp.WSServerHandshakeError) -> str:
        """Return why a stream is refused: the answer has no more than a status."""
        if error.status == 403:
            resource = f'resource "pods/exec" in the namespace "{self.namespace}"'
            return f"the account cannot get {resource}, or, from Kubernetes 1.35 on, create it"
        return str(error.message)

    async def may(self, wanted: Verb) -> bool:
        """Whether the account has a permission in the namespace, by a SelfSubjectAccessReview; True if it is not said.

        Raises ``APIUnreachableError``.
        """
        verb, group, resource, subresource = wanted
        attributes = {"verb": verb, "group": group, "resource": resource, "subresource": subresource}
        if resource not in _CLUSTER_WIDE:
            attributes["namespace"] = self.namespace
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        try:
            return decoding.decode(_REVIEW, await self.create(_REVIEWS, body)).status.allowed
        except APIRefusedError:
            return True  # the request itself will tell

    async def close(self) -> None:
        """Close all connections."""
        for each in (*self._retired, self._api):
            if each is not None:
                await each.close()

    async def _request(self, method: str, path: str, query: Mapping[str, str] | None, body: object = None) -> bytes:
        async with self._turns:
            response = await self._send(method, path, query, body)
            try:
                content: bytes = await response.content.read(_ANSWER_LIMIT)
                while not response.content.at_eof() and len(content) < _ANSWER_LIMIT:
                    content += await response.content.read(_ANSWER_LIMIT)
            except Exception as error:
                raise _unreachable(error) from error
            finally:
                response.release()
            return content

    async def _send(
        self, method: str, path: str, query: Mapping[str, str] | None, body: object, *, streamed: bool = False
    ) -> aiohttp.ClientResponse:
        """Return the answer to a request, with new credentials if the old ones have expired."""
        generation = self._generation
        try:
            return await self._send_once(method, path, query, body, streamed=streamed)
        except APIRefusedError as error:
            if error.code != 401:
                raise
        await self._renew(generation)
        return await self._send_once(method, path, query, body, streamed=streamed)

    async def _send_once(
        self, method: str, path: str, query: Mapping[str, str] | None, body: object, *, streamed: bool
    ) -> aiohttp.ClientResponse:
        import aiohttp

        configuration = self._configuration
        url = configuration.host + path + (f"?{urlencode(query)}" if query else "")
        timeout = aiohttp.ClientTimeout(total=None if streamed else REQUEST_SECONDS, sock_connect=CONNECT_SECONDS)
        headers = {**await self._headers(), "Content-Type": "application/json", "Accept": "application/json"}
        try:
            response: aiohttp.ClientResponse = await self._api.rest_client.pool_manager.request(
                method,
                url,
                data=None if body is None else msgspec.json.encode(body),
                headers=headers,
                proxy=configuration.proxy,
                timeout=timeout,
                server_hostname=configuration.tls_server_name,
                read_bufsize=_LINE if streamed else None,
            )
            if response.status < 400:
                return response
            content = await response.content.read(1 << 20)
            response.close()
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            raise _unreachable(error) from error
        debug.log("cluster refuses", method=method, path=path, status=response.status)
        raise APIRefusedError(_status(response.status, content))

    async def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {"User-Agent": "kanifold"}
        try:
            await self._api.update_params_for_auth(headers, [], ["BearerToken"])
        except Exception as error:  # of the library, which may read a token that has been renewed
            raise self._unconfigured(error) from error
        return headers

    async def _renew(self, generation: int) -> None:
        """Read credentials, unless that was done since ``generation``."""
        async with self._renewing:
            if generation != self._generation:
                return
            configuration = await self._configured()
            from kubernetes_asyncio.client import ApiClient

            old, self._api, self._configuration = self._api, ApiClient(configuration), configuration
            self._generation += 1
            if old is not None:
                self._retired.append(old)

    async def _configured(self) -> Any:
        """Return the configuration that the address names. Raises ``EnvironmentUnfit``."""
        from kubernetes_asyncio import config
        from kubernetes_asyncio.client import Configuration

        configuration = Configuration()
        configuration.connection_pool_maxsize = 0  # a stream for each executor
        address = self._address
        try:
            if address.context == IN_CLUSTER:
                config.load_incluster_config(  # type: ignore[no-untyped-call]
                    client_configuration=configuration
                )
                if not self.namespace:
                    self.namespace = await asyncio.to_thread(_own_namespace)
            else:
                files = os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")
                loader = await config.load_kube_config(
                    config_file=files,
                    context=address.context or None,
                    client_configuration=configuration,
                    persist_config=False,
                )
                found = loader.current_context or {}
                self.namespace = self.namespace or found.get("context", {}).get("namespace") or "default"
        except Exception as error:  # of the library, a plugin, or what is wrong in the file
            raise self._unconfigured(error) from error
        return configuration

    def _unconfigured(self, error: Exception) -> EnvironmentUnfit:
        where = f"context {self._address.context}" if self._address.context else "current context"
        if self._address.context == IN_CLUSTER:
            return EnvironmentUnfit(
                f"node {self._node}: this is no Pod with a service account",
                why=printable(str(error) or type(error).__name__),
                remedy="in-cluster is for an orchestrator in the cluster: let its Pod mount the token "
                "(automountServiceAccountToken), or name a context of a kubeconfig",
            )
        return EnvironmentUnfit(
            f"node {self._node}: cannot use the {where} of the kubeconfig",
            why=printable(str(error) or type(error).__name__),
            remedy="see what `kubectl config get-contexts` and `kubectl auth whoami` say; KUBECONFIG names the files",
        )


def _load(node: str) -> None:
    """Import the library. Raises ``EnvironmentUnfit``."""
    try:
        import kubernetes_asyncio.client
        import kubernetes_asyncio.config  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"node {node} needs the library kubernetes_asyncio, which is not installed",
            why=str(error),
            remedy="pip install 'kanifold[kubernetes]'",
        ) from error


def _own_namespace() -> str:
    with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace", encoding="utf-8") as file:
        return file.read().strip()


def _status(code: int, content: bytes) -> APIStatus:
    try:
        found = decoding.decode(_STATUS, content)
    except msgspec.DecodeError:
        return APIStatus("", printable(content.decode(errors="replace")) or f"status {code}", code)
    return APIStatus(found.reason, printable(found.message, 1000), code)


def _unreachable(error: Exception) -> APIUnreachableError:
    return APIUnreachableError(printable(str(error) or type(error).__name__))

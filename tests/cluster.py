"""A real Kubernetes on this machine: a control plane, a registry, and two nodes with a kubelet and a containerd each.

    def test_it(cluster: Cluster, namespace: str) -> None:
        cluster.kubectl("get", "pods", "-n", namespace)

One node is ``amd64``. The other one, ``arm64``, says that it is one for arm64 and runs amd64's programs all the same:
what is for arm64 is emulated in its pods, as on any other machine for amd64. Everything has an address of its own in a
network that exists on this machine only, and is reached by it from this machine and from pods. A node is a process
namespace and a mount namespace: what runs there and what is mounted there ends with it.

    ci/kubernetes up        starts one and leaves it running; as root
    ci/kubernetes down

Independent of kanifold's code.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bases
import debian_registry
import oci_layout
import pytest

BUSYBOX = "local.test/busybox:1"
"""An image that all nodes have."""
ARCHITECTURES = ("amd64", "arm64")
"""The nodes."""
_PAUSE = "local.test/pause:1"
_PROGRAMS = ("kube", "containerd", "containerd-shim-runc-v2", "ctr", "runc")
_NAMES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl", "etcd")
"""What ``kube`` is called by."""
_PLUGINS = Path("/usr/lib/cni")
_NS_GET_PARENT = 0xB702  # linux/nsfs.h
_WAIT = 90.0
"""Seconds in which the cluster must be up."""


class UnavailableError(Exception):
    """Why there can be no cluster on this machine."""


def programs() -> Path:
    """Return the directory of the programs that ``ci/kubernetes build`` makes."""
    named = os.environ.get("KANIFOLD_KUBERNETES")
    return (Path(named) if named else bases.cache_directory() / "kubernetes") / "bin"


def check() -> None:
    """Raise ``UnavailableError`` unless a cluster can be started here."""
    if os.geteuid() != 0:
        raise UnavailableError("needs root")
    for name in _PROGRAMS:
        if not (programs() / name).exists():
            raise UnavailableError(f"no {programs() / name}: ci/kubernetes build makes it")
    for name in ("ip", "nsenter", "openssl", "setpriv", "unshare"):
        if shutil.which(name) is None:
            raise UnavailableError(f"{name} is not installed (ci/kubernetes installs it on Debian)")
    if not (_PLUGINS / "bridge").exists() or debian_registry.program() is None:
        raise UnavailableError(
            "no containernetworking-plugins or no docker-registry (ci/kubernetes installs them on Debian)"
        )


# -- its processes


def _alive(record: Path) -> int | None:
    """Return the id of the process that ``record`` is about, unless it has ended."""
    with contextlib.suppress(OSError, ValueError):
        pid, born = record.read_text().split()
        state, since = _state(int(pid))
        if since == born and state not in "XZ":
            return int(pid)
    return None


def _state(pid: int) -> tuple[str, str]:
    """Return the state of a process, and when it was started: an id alone may be another's by now (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]


def _kill(record: Path) -> None:
    """Kill the process that ``record`` is about and wait for its end."""
    pid = _alive(record)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        until(lambda: _alive(record) is None, what=f"{record.name} ends")


def until(true: Callable[[], object], seconds: float = _WAIT, what: str = "") -> None:
    """Wait until ``true()`` is; fail after ``seconds``."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def _is_within(pid: int, namespace: int) -> bool:
    """Whether a process is in the process namespace with this inode number, or in one below it."""
    descriptor = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY)
    while os.fstat(descriptor).st_ino != namespace:
        try:
            above = fcntl.ioctl(descriptor, _NS_GET_PARENT)
        except PermissionError:  # this process's own
            return False
        finally:
            os.close(descriptor)
        descriptor = above
    os.close(descriptor)
    return True


@dataclass(frozen=True)
class Node:
    """A node, by the name of the architecture that it says it has."""

    cluster: Cluster
    name: str

    @property
    def folder(self) -> Path:
        return self.cluster.folder / self.name

    @property
    def number(self) -> int:
        return ARCHITECTURES.index(self.name)

    @property
    def address(self) -> str:
        return self.cluster.address(101 + self.number)

    def ctr(self, *arguments: str | Path) -> str:
        """Run containerd's client with the namespace that the kubelet uses."""
        command = [
            programs() / "ctr",
            "--address",
            self.folder / "containerd.sock",
            "--namespace",
            "k8s.io",
            *arguments,
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def processes(self) -> dict[int, str]:
        """Return the command lines of all processes there, pods' included, by their ids on this machine."""
        init = self.init()
        namespace, found = os.stat(f"/proc/{init}/ns/pid").st_ino, {}
        for each in Path("/proc").iterdir():
            if each.name.isdigit() and int(each.name) != init:
                with contextlib.suppress(OSError):  # it has just ended
                    if _is_within(int(each.name), namespace):
                        line = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                        found[int(each.name)] = line
        return found

    def init(self) -> int:
        """Return the id of process 1 of the node."""
        started = _alive(self.cluster.run / self.name)
        assert started is not None, f"node {self.name} is not running"
        children = Path(f"/proc/{started}/task/{started}/children")
        until(lambda: children.read_text().split(), what=f"node {self.name} starts")
        return int(children.read_text().split()[0])

    def kubelet(self) -> int | None:
        """Return the id of the kubelet; None while it does not run."""
        mine = str(self.folder / "kubelet.yaml")
        return next((pid for pid, line in self.processes().items() if "/kubelet " in line[:200] and mine in line), None)

    def kill_kubelet(self) -> None:
        """Kill the kubelet; its containers go on."""
        pid = self.kubelet()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: self.kubelet() is None, what="the kubelet ends")

    def start_kubelet(self) -> None:
        """Start the kubelet."""
        init = str(self.init())
        # Three settings of the kernel that the kubelet insists on are shown to it alone.
        script = (
            "mount --make-rprivate /proc; "
            "for each in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do "
            'file=$0/${each%=*}; mkdir -p "${file%/*}"; echo "${each#*=}" >"$file"; '
            'mount --bind "$file" "/proc/sys/${each%=*}"; done; exec "$@"'
        )
        command = [
            "nsenter", "-t", init, "-m", "-p", "unshare", "-m", "--propagation", "unchanged",
            "sh", "-c", script, self.folder / "sysctl", self.cluster.folder / "bin" / "kubelet",
            f"--config={self.folder / 'kubelet.yaml'}",
            f"--kubeconfig={self.cluster.kubeconfig_of(f'node-{self.name}')}",
            f"--hostname-override={self.name}", f"--node-ip={self.address}", f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={self.folder / 'certificates'}",
        ]  # fmt: skip
        self.cluster.start(f"kubelet-{self.name}", command)

    def start(self) -> None:
        """Start the node with its containerd."""
        for name in ("cni", "hosts", "upper/run", "upper/var", "workdir/run", "workdir/var"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "containerd.toml").write_text(self._containerd())
        (self.folder / "kubelet.yaml").write_text(json.dumps(self._kubelet()))
        (self.folder / "cni" / "10-bridge.conflist").write_text(json.dumps(self._network()))
        registry = self.folder / "hosts" / self.cluster.registry / "hosts.toml"
        registry.parent.mkdir()
        registry.write_text(f'[host."http://{self.cluster.registry}"]\ncapabilities = ["pull", "resolve"]\n')
        # What these programs write to places of their own stays here.
        script = (
            "mount --make-rshared / && for each in run var; do mount -t overlay overlay -o "
            '"lowerdir=/$each,upperdir=$0/upper/$each,workdir=$0/workdir/$each" "/$each" || exit; done; "$@" & wait'
        )
        command = [
            "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
            "sh", "-c", script, self.folder, programs() / "containerd", "--config", self.folder / "containerd.toml",
        ]  # fmt: skip
        self.cluster.start(self.name, command)

    def _network(self) -> dict[str, Any]:
        subnet = f"{self.cluster.address(128 + 64 * self.number)}/26"
        local = {"type": "host-local", "dataDir": str(self.folder / "addresses"), "ranges": [[{"subnet": subnet}]]}
        bridge = {
            "type": "bridge", "bridge": self.cluster.bridge(self), "isDefaultGateway": True, "ipMasq": False,
            "ipam": local,
        }  # fmt: skip
        return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, {"type": "loopback"}]}

    def _containerd(self) -> str:
        return f"""\
version = 3
root = "{self.folder}/images"
state = "{self.folder}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{self.folder}/containerd.sock"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{_PAUSE}"
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "{self.folder}/hosts"
[plugins.'io.containerd.cri.v1.runtime']
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true  # lowering it is refused in containers
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{_PLUGINS}"]
    conf_dir = "{self.folder}/cni"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = "{programs() / "runc"}"
      SystemdCgroup = false
"""

    def _kubelet(self) -> dict[str, Any]:
        certificates = self.cluster.folder / "certificates"
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "port": 10250,
            "readOnlyPort": 0,
            "healthzPort": 0,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(certificates / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(certificates / "all.crt"),
            "tlsPrivateKeyFile": str(certificates / "all.key"),
            "containerRuntimeEndpoint": f"unix://{self.folder}/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "cgroupRoot": f"/{self.cluster.control_group(self)}",
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "podLogsDir": str(self.folder / "logs"),
            "volumePluginDir": str(self.folder / "plugins"),
            "nodeStatusUpdateFrequency": "4s",
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "serializeImagePulls": False,
            "shutdownGracePeriod": "0s",
        }


# -- the cluster


@dataclass(frozen=True)
class Cluster:
    """A cluster whose files are in ``folder``."""

    folder: Path

    @property
    def number(self) -> int:
        """That of its network, 198.19.NUMBER.0/24."""
        return int((self.folder / "number").read_text())

    def address(self, last: int) -> str:
        """Return an address of its network: 1 is the API server, which pods reach by it as well, 100 the registry."""
        return f"198.19.{self.number}.{last}"

    @property
    def registry(self) -> str:
        """The address of a registry, with plain HTTP, for this machine, nodes and pods."""
        return f"{self.address(100)}:5000"

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(Node(self, name) for name in ARCHITECTURES)

    def node(self, name: str) -> Node:
        return next(each for each in self.nodes if each.name == name)

    @property
    def run(self) -> Path:
        """A file for each process that was started."""
        return self.folder / "run"

    @property
    def kubeconfig(self) -> Path:
        """The configuration of a client that may do everything; its context is called ``test``."""
        return self.kubeconfig_of("admin")

    def kubeconfig_of(self, user: str) -> Path:
        return self.folder / f"{user}.kubeconfig"

    def bridge(self, node: Node) -> str:
        return f"kube{self.number}-{node.name}"

    def control_group(self, node: Node) -> str:
        return f"kanifold-cluster-{self.number}-{node.name}"

    # -- clients

    def kubectl(self, *arguments: str | Path, text: str | None = None, fails: bool = False) -> str:
        """Run kubectl, with ``text`` on its stdin; return what it prints. It must fail if it is to."""
        command = [self.folder / "bin" / "kubectl", f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=_WAIT)
        assert (done.returncode != 0) == fails, f"kubectl {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}"
        return done.stdout + (done.stderr if fails else "")

    def get(self, *arguments: str) -> Any:
        """Return what ``kubectl get`` prints, as JSON."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *resources: Mapping[str, Any]) -> None:
        """Create resources, or change them."""
        self.kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": resources}))

    def request(
        self, method: str, path: str, body: object = None, token: str = "", timeout: float = 10
    ) -> tuple[int, Any]:
        """Ask the API server as the administrator, or with ``token``; return the status and the response."""
        trusted = ssl.create_default_context(cafile=str(self.folder / "certificates" / "ca.crt"))
        connection = http.client.HTTPSConnection(self.address(1), 443, context=trusted, timeout=timeout)
        token = token or (self.folder / "admin.token").read_text()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Accept": "application/json"}
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        return answer.status, json.loads(text) if text[:1] == b"{" else text.decode()

    def audit(self) -> Iterator[dict[str, Any]]:
        """Yield the requests that the API server has recorded (audit.k8s.io/v1 Event)."""
        with (self.folder / "audit.log").open() as lines:
            for each in lines:
                yield json.loads(each)

    def load(self, layout: Path, name: str) -> None:
        """Give all nodes the image of the OCI layout ``layout`` as ``name``."""
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            archive = Path(scratch) / "image.tar"
            index = json.loads((layout / "index.json").read_text())
            for each in index["manifests"]:
                each.setdefault("annotations", {})["io.containerd.image.name"] = name
            (Path(scratch) / "index.json").write_text(json.dumps(index))
            with tarfile.open(archive, "w") as tar:
                tar.add(layout / "oci-layout", "oci-layout")
                tar.add(Path(scratch) / "index.json", "index.json")
                tar.add(layout / "blobs", "blobs")
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda node: node.ctr("images", "import", archive), self.nodes))

    # -- its life

    def start(self, name: str, command: Sequence[str | Path]) -> None:
        """Start a process of the cluster in the background."""
        tied = ["setpriv", "--pdeathsig=KILL"] if (self.folder / "tied").exists() else []
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*tied, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        process.returncode = 0  # it is not waited for
        (self.run / name).write_text(f"{process.pid} {_state(process.pid)[1]}")

    def up(self, *, tied: bool) -> None:
        """Start everything. If ``tied``, it ends with this process, however that ends. Raises ``UnavailableError``."""
        check()
        self.run.mkdir(parents=True)
        (self.folder / "bin").mkdir()
        for name in _NAMES:
            (self.folder / "bin" / name).symlink_to(programs() / "kube")
        (self.folder / "number").write_text(str(_take_network()))
        if tied:
            (self.folder / "tied").touch()
        for last in (100, *(101 + node.number for node in self.nodes)):
            _ip("addr", "add", f"{self.address(last)}/32", "dev", "lo")
        self._certify()
        self._start_control_plane()
        for node in self.nodes:
            _make_control_group(self.control_group(node))
            node.start()
        self._start_registry()
        until(lambda: all((node.folder / "containerd.sock").exists() for node in self.nodes), what="containerd starts")
        self._load_own_images()
        until(self._is_ready, what=f"the API server starts (see {self.folder}/kube-apiserver.log)")
        self._start_controllers()
        self._rename_architecture()
        for node in self.nodes:
            node.start_kubelet()
        until(self._is_complete, what=f"the nodes are ready (see {self.folder}/kubelet-*.log)")

    def down(self) -> None:
        """End everything, pods included, and remove what was made."""
        for record in sorted(self.run.glob("*")) if self.run.exists() else ():
            _kill(record)
        for node in self.nodes:
            subprocess.run(["ip", "link", "delete", self.bridge(node)], check=False, capture_output=True)
            _remove_control_group(self.control_group(node))
        for last in (1, 100, 101, 102):
            subprocess.run(
                ["ip", "addr", "del", f"{self.address(last)}/32", "dev", "lo"], check=False, capture_output=True
            )
        shutil.rmtree(self.folder)

    def _certify(self) -> None:
        """Make an authority, and one certificate: of the API server, also as a client of kubelets, and of these."""
        folder = self.folder / "certificates"
        folder.mkdir()
        new = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "30",
        ]
        names = ",".join(f"IP:{self.address(last)}" for last in (1, 101, 102))
        own = [
            "-keyout", folder / "ca.key", "-out", folder / "ca.crt", "-subj", "/CN=test authority",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        ]  # fmt: skip
        subprocess.run([*new, *own], check=True, capture_output=True)
        signed = [
            "-keyout", folder / "all.key", "-out", folder / "all.crt", "-subj", "/O=system:masters/CN=api-server",
            "-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-addext", "basicConstraints=critical,CA:false",
            "-addext", "keyUsage=critical,digitalSignature", "-addext", "extendedKeyUsage=clientAuth,serverAuth",
            "-addext", f"subjectAltName={names},DNS:localhost,DNS:kubernetes.default.svc",
        ]  # fmt: skip
        subprocess.run([*new, *signed], check=True, capture_output=True)
        users = {
            "admin": ("admin", "system:masters"),
            "manager": ("system:kube-controller-manager", ""),
            "scheduler": ("system:kube-scheduler", ""),
            **{f"node-{node.name}": (f"system:node:{node.name}", "system:nodes") for node in self.nodes},
        }
        lines = []
        for name, (user, group) in users.items():
            token = secrets.token_hex(16)
            lines.append(f'{token},{user},{name},"{group}"\n')
            self.kubeconfig_of(name).write_text(json.dumps(self.client_configuration(token)))
            (self.folder / f"{name}.token").write_text(token)
        (self.folder / "tokens.csv").write_text("".join(lines))

    def client_configuration(self, token: str) -> dict[str, Any]:
        """Return a kubeconfig for the user of ``token``."""
        authority = str(self.folder / "certificates" / "ca.crt")
        server = {"server": f"https://{self.address(1)}", "certificate-authority": authority}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }

    def _start_control_plane(self) -> None:
        clients, peers = (f"http://{self.address(1)}:{port}" for port in (2379, 2380))
        self._start_program(
            "etcd", "--name=etcd", f"--data-dir={self.folder / 'etcd'}", f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}", f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=etcd={peers}", "--unsafe-no-fsync",
        )  # fmt: skip
        self.start_api_server()

    def start_api_server(self) -> None:
        """Start the API server, which records what clients that are not its own ask for."""
        api, certificates, policy = self.address(1), self.folder / "certificates", self.folder / "audit.yaml"
        unrecorded = {"level": "None", "userGroups": ["system:nodes", "system:serviceaccounts:kube-system"]}
        components = ("kube-controller-manager", "kube-scheduler", "apiserver")
        others = {"level": "None", "users": [f"system:{each}" for each in components]}
        rules = [unrecorded, others, {"level": "Metadata", "omitStages": ["RequestReceived", "ResponseStarted"]}]
        policy.write_text(json.dumps({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules}))
        self._start_program(
            "kube-apiserver", f"--etcd-servers=http://{api}:2379", f"--bind-address={api}",
            f"--advertise-address={api}",
            "--secure-port=443", f"--tls-cert-file={certificates / 'all.crt'}",
            f"--tls-private-key-file={certificates / 'all.key'}", f"--client-ca-file={certificates / 'ca.crt'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            f"--kubelet-client-certificate={certificates / 'all.crt'}",
            f"--kubelet-client-key={certificates / 'all.key'}",
            f"--kubelet-certificate-authority={certificates / 'ca.crt'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={certificates / 'all.crt'}",
            f"--service-account-signing-key-file={certificates / 'all.key'}",
            f"--service-cluster-ip-range={self.address(0)}/26", "--authorization-mode=Node,RBAC",
            "--kubelet-preferred-address-types=InternalIP",
            "--endpoint-reconciler-type=none", "--allow-privileged=true", "--profiling=false",
            f"--audit-policy-file={policy}", f"--audit-log-path={self.folder / 'audit.log'}",
            "--feature-gates=MutatingAdmissionPolicy=true",
            "--runtime-config=admissionregistration.k8s.io/v1beta1=true",
        )  # fmt: skip

    def kill_api_server(self) -> None:
        """Kill the API server, and with it every connection to it."""
        _kill(self.run / "kube-apiserver")

    def _start_controllers(self) -> None:
        api, certificates = self.address(1), self.folder / "certificates"
        for name, user in (("kube-controller-manager", "manager"), ("kube-scheduler", "scheduler")):
            configuration = self.kubeconfig_of(user)
            more = (
                f"--service-account-private-key-file={certificates / 'all.key'}",
                f"--root-ca-file={certificates / 'ca.crt'}", "--use-service-account-credentials=true",
            ) if user == "manager" else ()  # fmt: skip
            self._start_program(
                name, f"--kubeconfig={configuration}", f"--bind-address={api}", "--leader-elect=false",
                f"--authentication-kubeconfig={configuration}", f"--authorization-kubeconfig={configuration}", *more,
            )  # fmt: skip

    def _start_program(self, name: str, *flags: str) -> None:
        self.start(name, [self.folder / "bin" / name, *flags])

    def _start_registry(self) -> None:
        storage = self.folder / "registry"
        storage.mkdir()
        program = debian_registry.program()
        assert program is not None
        (storage / "config.yml").write_text(debian_registry.configuration(storage / "data", *self.registry.split(":")))
        self.start("registry", [program, "serve", storage / "config.yml"])

    def _load_own_images(self) -> None:
        """Give the nodes the image of the container that holds a pod's namespaces, and one with a shell."""
        native = bases.PLATFORMS[f"linux/{ARCHITECTURES[0]}"]
        layers = tuple(step(f"linux/{ARCHITECTURES[0]}") for step in bases.RECIPES["busybox"])
        environment = {"Env": [f"PATH={bases.PATH}"]}
        for name, words in ((BUSYBOX, ["/bin/sh"]), (_PAUSE, ["/bin/sleep", "1000000000"])):
            layout = self.folder / "layouts" / name.replace("/", "-").replace(":", "-")
            oci_layout.write_layout(layout, "1", [oci_layout.Image(native.oci, layers, {**environment, "Cmd": words})])
            self.load(layout, name)

    def _rename_architecture(self) -> None:
        """Let the second node say that it is arm64, whatever its kubelet says, and wait until that is so."""
        name = ARCHITECTURES[1]
        labels = f'{{"kubernetes.io/arch": "{name}", "beta.kubernetes.io/arch": "{name}"}}'
        policies = "/apis/admissionregistration.k8s.io/v1beta1/mutatingadmissionpolic"
        match = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"]}
        policy = {
            "matchConstraints": {"resourceRules": [{**match, "resources": ["nodes", "nodes/status"]}]},
            "matchConditions": [{"name": "node", "expression": f"object.metadata.name == '{name}'"}],
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [{
                "patchType": "ApplyConfiguration",
                "applyConfiguration": {"expression": f"Object{{metadata: Object.metadata{{labels: {labels}}}}}"},
            }],
        }  # fmt: skip
        metadata = {"metadata": {"name": "architecture"}}
        for path, spec in (("ies", policy), ("ybindings", {"policyName": "architecture"})):
            assert self.request("POST", policies + path, {**metadata, "spec": spec})[0] == 201
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}

        def holds() -> bool:
            made = self.request("POST", "/api/v1/nodes?dryRun=All", node)[1]
            return bool(made["metadata"].get("labels", {}).get("kubernetes.io/arch") == name)

        until(holds, what="the policy holds")

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self.request("GET", "/readyz")[0] == 200
        return False

    def _is_complete(self) -> bool:
        nodes = self.request("GET", "/api/v1/nodes")[1]["items"]
        ready = [
            condition for each in nodes for condition in each["status"].get("conditions", ())
            if (condition["type"], condition["status"]) == ("Ready", "True")
        ]  # fmt: skip
        account, _ = self.request("GET", "/api/v1/namespaces/default/serviceaccounts/default")
        return len(ready) == len(ARCHITECTURES) and account == 200


def _ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], check=False, capture_output=True).returncode == 0


def _take_network() -> int:
    """Add the first address of a network that no cluster has, and return its number."""
    for number in range(1, 255):
        if _ip("addr", "add", f"198.19.{number}.1/32", "dev", "lo"):
            return number
    raise UnavailableError("all networks for clusters are taken")


def _control_groups(name: str) -> list[Path]:
    """Return the directories of a control group, of which v1 has one for each controller."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root / name]
    return [
        each / name for each in root.iterdir() if each.is_dir() and each.name != "unified" and not each.is_symlink()
    ]


def _make_control_group(name: str) -> None:
    for each in _control_groups(name):
        each.mkdir(exist_ok=True)


def _remove_control_group(name: str) -> None:
    for top in _control_groups(name):
        for folder, _, _ in os.walk(top, topdown=False):
            until(lambda folder=folder: _removed(folder), what=f"{folder} becomes empty")


def _removed(folder: str) -> bool:
    with contextlib.suppress(OSError):
        os.rmdir(folder)
    return not os.path.exists(folder)


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """A cluster of this process's own. Raises ``UnavailableError``."""
    check()
    with tempfile.TemporaryDirectory(prefix="kanifold-cluster.", ignore_cleanup_errors=True) as scratch:
        os.chmod(scratch, 0o711)  # the root of a Pod with a user namespace is below it
        made = Cluster(Path(scratch) / "cluster")  # a socket's path has 107 bytes at most
        try:
            made.up(tied=True)
            yield made
        finally:
            made.down()


# -- fixtures


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the tests that use the cluster come last: it takes processor time as long as it is there."""
    items.sort(key=lambda item: "cluster" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster that $KANIFOLD_CLUSTER names, or one for the session."""
    named = os.environ.get("KANIFOLD_CLUSTER")
    if named:
        yield Cluster(Path(named))
        return
    try:
        check()
    except UnavailableError as reason:
        pytest.skip(f"no cluster: {reason}")
    with running() as made:
        yield made


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace for one test, which is deleted with all that is in it."""
    name = f"test-{secrets.token_hex(4)}"
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    path = f"/api/v1/namespaces/{name}"
    until(lambda: cluster.request("GET", f"{path}/serviceaccounts/default")[0] == 200, what="an account is made")
    yield name
    cluster.request("DELETE", path)


def main(words: Sequence[str]) -> int:
    made = Cluster(Path(os.environ.get("KANIFOLD_CLUSTER") or Path(tempfile.gettempdir()) / "kanifold-cluster"))
    try:
        if list(words) == ["up"]:
            if made.folder.exists():
                raise UnavailableError(f"{made.folder} exists: ci/kubernetes down removes it")
            made.up(tied=False)
            print(f"export KUBECONFIG={made.kubeconfig} KANIFOLD_CLUSTER={made.folder} PATH={made.folder}/bin:$PATH")
            print(f"# registry: {made.registry}, with plain HTTP")
        elif list(words) == ["down"]:
            made.down()
        else:
            print("cluster.py up|down", file=sys.stderr)
            return 2
    except UnavailableError as reason:
        print(f"ci/kubernetes: {reason}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Writes the table of docs/environments.md: what works in which kind of container, found out by building there.

    ci/environments            write it; as root, a quarter of an hour
    ci/environments -          print it

    ci/environments [-] NAME...    write, or print, the rows of these environments only

The containers are those of ``ci/containers``. Beside kanifold, those of buildah, kaniko and BuildKit that are on PATH
or were made by ``ci/judges`` build the same Dockerfiles, each in the way that needs the least.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import bases
import containers
import debian_registry
import judges
import kaniko_image
import ordinary_user
from containers import BOX, ENVIRONMENTS, Environment, Root

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "environments.md"
BEGIN, END = "<!-- made by ci/environments -->\n", "<!-- end -->\n"
TIMEOUT = 600.0
TOO_LONG = 124
"""The exit status of what was ended after that, as timeout(1) has it."""
TWO = ("linux/amd64", "linux/arm64")
MACHINE = Root()
NAMES = {"buildah": "buildah", "kaniko": "kaniko", "buildkit": "BuildKit"}

COPIES = "FROM {small}\nWORKDIR /there\nCOPY --chown=5:6 file /there/\nENV A=b\n"
STEPS = COPIES.replace("{small}", "{base}") + (
    "RUN useradd -m someone && chown someone:someone /srv && chmod 2750 /srv && touch /there/new && su someone -c id\n"
    "USER someone\nRUN id -u && readlink /proc/self/exe\n"
)
PACKAGES = (
    "FROM {base}\nRUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends cron "
    "libcap2-bin && setcap cap_net_raw=ep /usr/bin/crontab && getcap /usr/bin/crontab | grep -q net_raw\n"
)

_DAEMONLESS = r"""
platforms=$1
mkdir -p /box/run
printf '%s' "$2" >/box/buildkitd.toml
set -- --config /box/buildkitd.toml --root /box/root --addr unix:///box/run/sock
if [ "$(id -u)" = 0 ]; then
  buildkitd "$@" >/box/log 2>&1 &
else
  rootlesskit buildkitd "$@" --oci-worker-no-process-sandbox >/box/log 2>&1 &
fi
until buildctl --addr unix:///box/run/sock debug workers >/dev/null 2>&1; do
  kill -0 $! 2>/dev/null || { cat /box/log; exit 1; }
  sleep 0.1
done
buildctl --addr unix:///box/run/sock build --progress plain --frontend dockerfile.v0 --local context=/box/context \
  --local dockerfile=/box/context --opt "platform=$platforms" --output type=oci,dest=/dev/null
"""


class Place:
    """Directories that are the volumes of containers, and the base images in a registry of this machine.

    A builder has one volume for all builds in a kind of container, with what it keeps between builds.
    """

    def __init__(self, scratch: Path, registry: str) -> None:
        self.scratch = scratch
        self.registry = registry
        self.programs = scratch / "programs"
        self.programs.mkdir()

    def run(
        self,
        environment: Environment,
        command: Sequence[str],
        dockerfile: str,
        variables: Mapping[str, str],
        root: Root = MACHINE,
    ) -> tuple[int, str]:
        """Run ``command`` in a new container with a context in its volume; return exit status and output.

        Its root is that of this machine, which is lent what the project needs, or ``root``.
        """
        box = self.scratch / "volumes" / Path(command[0]).name
        (box / "context").mkdir(parents=True, exist_ok=True)
        bases_by_name = {"base": f"{self.registry}/debian:latest", "small": f"{self.registry}/busybox:latest"}
        (box / "context/Dockerfile").write_text(dockerfile.format(**bases_by_name))
        (box / "context/file").write_text("content")
        seen = [Path(sys.prefix), ROOT, self.scratch] if root == MACHINE else []
        try:
            done = containers.run(
                environment, command, box, root=root, variables=variables, seen=seen, timeout=TIMEOUT,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return TOO_LONG, f"{command[0]} was ended after {TIMEOUT:.0f} s"
        return done.returncode, done.stdout

    def forget(self) -> None:
        """Remove the volumes."""
        shutil.rmtree(self.scratch / "volumes", ignore_errors=True)

    def kanifold(self, environment: Environment, dockerfile: str, *arguments: str) -> tuple[int, str]:
        """Build with kanifold; the store is on the volume."""
        user = ordinary_user.User("user", environment.user, environment.user, self.scratch)
        found = ordinary_user.reachable(user, self.scratch)
        if found is None:
            sys.exit("no Python that an ordinary user may run")
        command, extra = found
        words = [*command, "build", "/box/context", "-o", "type=cacheonly", "--progress", "plain", *arguments]
        return self.run(environment, words, dockerfile, {"KANIFOLD_ROOT": "/box/store", **extra})

    def lend(self, programs: Sequence[str]) -> None:
        """Let containers have ``programs`` of this machine, at a place that every user can reach."""
        for each in programs:
            shutil.copy(judges.find(each), self.programs)

    def buildah(self, environment: Environment, dockerfile: str, platforms: tuple[str, ...]) -> tuple[int, str]:
        """Build with buildah in a chroot, without overlays."""
        words = ["buildah", "--root", "/box/root", "--runroot", "/box/run", "--storage-driver", "vfs", "build"]
        words += [
            "--isolation",
            "chroot",
            "--tls-verify=false",
            "--manifest",
            "made",
            f"--platform={','.join(platforms)}",
        ]
        return self.run(environment, [*words, "/box/context"], dockerfile, {"BUILDAH_ISOLATION": "chroot"})

    def kaniko(self, environment: Environment, dockerfile: str, platforms: tuple[str, ...]) -> tuple[int, str]:
        """Build with kaniko's own image, each platform in a new container."""
        image = self.scratch / "kaniko"
        root = Root(image, BOX) if image.exists() else kaniko_image.make(image, judges.find("executor"), BOX)
        status, said = 0, ""
        for platform in platforms:
            if not status:
                words = [*kaniko_image.words(f"{BOX}/context", platform), "--no-push"]
                status, said = self.run(environment, words, dockerfile, kaniko_image.VARIABLES, root)
        return status, said

    def buildkit(self, environment: Environment, dockerfile: str, platforms: tuple[str, ...]) -> tuple[int, str]:
        """Build with a daemon in the container: as root itself, for an ordinary user behind rootlesskit.

        This is what BuildKit's ``buildctl-daemonless.sh`` does, with the setting for containers whose /proc is masked.
        """
        settings = f'[registry."{self.registry}"]\nhttp = true\ninsecure = true\n'
        return self.run(
            environment, ["sh", "-c", _DAEMONLESS, "sh", ",".join(platforms), settings], dockerfile,
            {
                "PATH": f"{self.programs}:/usr/sbin:/usr/bin:/sbin:/bin", "XDG_RUNTIME_DIR": "/box/run",
                "USER": "user" if environment.user else "root",
            },
        )  # fmt: skip


Build = Callable[[Environment, str, tuple[str, ...]], tuple[int, str]]
"""Builds a Dockerfile for platforms in a kind of container; returns exit status and output."""


def peers(place: Place) -> dict[str, Build]:
    """The other builders that are found, by name."""
    needs = {"buildah": ("buildah",), "kaniko": ("executor",), "buildkit": ("buildkitd", "buildctl", "rootlesskit")}
    builds: dict[str, Build] = {"buildah": place.buildah, "kaniko": place.kaniko, "buildkit": place.buildkit}
    for name, programs in needs.items():
        if missing := [each for each in programs if not judges.find(each)]:
            print(f"ci/environments: going on without {name}, as there is no {', '.join(missing)}", file=sys.stderr)
            del builds[name]
        else:
            place.lend(programs)
    return builds


def rows(place: Place, environments: Sequence[Environment]) -> Iterator[str]:
    """Yield the lines of the table."""
    others = peers(place)
    head = ["environment", "mode", "`COPY`", "`RUN`", "packages", "arm64", "store in `/tmp`"]
    for each in others:
        head += [f"{NAMES[each]}: `COPY`", "`RUN`"]
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for environment in environments:
        status, said = place.kanifold(environment, STEPS)
        mode = re.search(r"executor [^,]+, [^,\n]+, (\w+)$", said, re.M)
        cells = [
            f"`{environment.name}`: {environment.meaning}",
            f"`{mode[1]}`" if mode else "none",
            shown(place.kanifold(environment, COPIES, "--platform", "linux/amd64,linux/arm64")),
            shown((status, said)),
            shown(place.kanifold(environment, PACKAGES)) if mode else "–",
            shown(place.kanifold(environment, STEPS, "--platform", "linux/arm64")) if mode else "–",
            shown(place.kanifold(environment, STEPS, "--root", "/tmp/store")) if mode else "–",
        ]
        for build in others.values():
            cells += [shown(build(environment, COPIES, TWO)), shown(build(environment, STEPS, TWO[:1]))]
        place.forget()
        yield f"| {' | '.join(cells)} |"
        print(cells, file=sys.stderr, flush=True)


def shown(result: tuple[int, str]) -> str:
    status, said = result
    if status:
        print(said[-1000:], file=sys.stderr)
    return f"no (exit {status})" if status else "yes"


def main() -> None:
    printed, names = sys.argv[1:2] == ["-"], [each for each in sys.argv[1:] if each != "-"]
    environments = [ENVIRONMENTS[each] for each in names] or list(ENVIRONMENTS.values())
    with tempfile.TemporaryDirectory(prefix="kanifold-environments.") as temporary:
        scratch = Path(temporary)
        scratch.chmod(0o755)
        (scratch / "registry").mkdir()
        with debian_registry.serve(scratch / "registry") as registry:
            for name in ("debian", "busybox"):
                layout = scratch / name
                bases.make_layout(name, layout, TWO)
                copy = ["skopeo", "copy", "--quiet", "--all", "--dest-tls-verify=false"]
                subprocess.run([*copy, f"oci:{layout}:latest", f"docker://{registry}/{name}:latest"], check=True)
            made = "\n".join(rows(Place(scratch, registry), environments)) + "\n"
    if printed:
        print(made, end="")
        return
    text = PAGE.read_text()
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    if names:
        made = with_rows(text[before:after].strip(), made)
    PAGE.write_text(text[:before] + "\n" + made + "\n" + text[after:])


def with_rows(table: str, made: str) -> str:
    """Return ``table`` with the rows of environments that are in the table ``made``, which must have the same head."""
    head, *lines = made.splitlines()
    if table.partition("\n")[0] != head:
        sys.exit("ci/environments: the page has other columns: write the whole table")
    rows = {line.partition(":")[0]: line for line in lines}
    return "".join(f"{rows.get(line.partition(':')[0], line)}\n" for line in table.splitlines())


if __name__ == "__main__":
    main()

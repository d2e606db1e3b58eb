"""Writes the table of docs/environments.md: what works in which kind of container, found out by building there.

    ci/environments        write it; as root, some minutes
    ci/environments -      print it

The containers are those of ``ci/containers``. Beside kanifold, buildah builds the same Dockerfiles, if it is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import bases
import containers
import debian_registry
import ordinary_user
from containers import ENVIRONMENTS, Environment

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "environments.md"
BEGIN, END = "<!-- made by ci/environments -->\n", "<!-- end -->\n"
TIMEOUT = 600.0

COPIES = "FROM {base}\nWORKDIR /there\nCOPY --chown=5:6 file /there/\nENV A=b\n"
STEPS = COPIES + (
    "RUN useradd -m someone && chown someone:someone /srv && chmod 2750 /srv && touch /there/new && su someone -c id\n"
    "USER someone\nRUN id -u && readlink /proc/self/exe\n"
)
PACKAGES = (
    "FROM {base}\nRUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends cron "
    "libcap2-bin && setcap cap_net_raw=ep /usr/bin/crontab && getcap /usr/bin/crontab | grep -q net_raw\n"
)


class Place:
    """A directory that is the volume of containers, and the base image in a registry of this machine."""

    def __init__(self, scratch: Path, base: str) -> None:
        self.scratch = scratch
        self.base = base

    def run(self, environment: Environment, command: list[str], dockerfile: str, **variables: str) -> tuple[int, str]:
        """Run ``command`` in a new container with a context in its empty volume; return exit status and output."""
        box = Path(tempfile.mkdtemp(dir=self.scratch))
        box.chmod(0o755)
        (box / "context").mkdir()
        (box / "context/Dockerfile").write_text(dockerfile.format(base=self.base))
        (box / "context/file").write_text("content")
        done = containers.run(
            environment, command, box, variables=variables, seen=[Path(sys.prefix), ROOT, self.scratch],
            timeout=TIMEOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        shutil.rmtree(box, ignore_errors=True)
        return done.returncode, done.stdout

    def kanifold(self, environment: Environment, dockerfile: str, *arguments: str) -> tuple[int, str]:
        """Build with kanifold; the store is on the volume."""
        user = ordinary_user.User("user", environment.user, environment.user, self.scratch)
        found = ordinary_user.reachable(user, self.scratch)
        if found is None:
            sys.exit("no Python that an ordinary user may run")
        command, extra = found
        words = [*command, "build", "/box/context", "-o", "type=cacheonly", "--progress", "plain", *arguments]
        return self.run(environment, words, dockerfile, KANIFOLD_ROOT="/box/store", **extra)

    def buildah(self, environment: Environment, dockerfile: str) -> tuple[int, str]:
        """Build with buildah, in the one way that needs the least."""
        words = ["buildah", "--root", "/box/root", "--runroot", "/box/run", "--storage-driver", "vfs", "build"]
        return self.run(
            environment, [*words, "--isolation", "chroot", "--tls-verify=false", "/box/context"], dockerfile,
            BUILDAH_ISOLATION="chroot",
        )  # fmt: skip


def rows(place: Place) -> Iterator[str]:
    """Yield the lines of the table."""
    with_buildah = shutil.which("buildah") is not None
    head = ["environment", "mode", "`COPY`", "`RUN`", "packages", "arm64", "store in `/tmp`"]
    head += ["buildah: `COPY`", "`RUN`"] if with_buildah else []
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for name, environment in ENVIRONMENTS.items():
        status, said = place.kanifold(environment, STEPS)
        mode = re.search(r"executor [^,]+, [^,\n]+, (\w+)$", said, re.M)
        cells = [
            f"`{name}`: {environment.meaning}",
            f"`{mode[1]}`" if mode else "none",
            shown(place.kanifold(environment, COPIES, "--platform", "linux/amd64,linux/arm64")),
            shown((status, said)),
            shown(place.kanifold(environment, PACKAGES)) if mode else "–",
            shown(place.kanifold(environment, STEPS, "--platform", "linux/arm64")) if mode else "–",
            shown(place.kanifold(environment, STEPS, "--root", "/tmp/store")) if mode else "–",
        ]
        if with_buildah:
            cells += [shown(place.buildah(environment, COPIES)), shown(place.buildah(environment, STEPS))]
        yield f"| {' | '.join(cells)} |"
        print(cells, file=sys.stderr)


def shown(result: tuple[int, str]) -> str:
    status, said = result
    if status:
        print(said[-1000:], file=sys.stderr)
    return f"no (exit {status})" if status else "yes"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="kanifold-environments.") as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        (scratch / "registry").mkdir()
        layout = scratch / "debian"
        bases.make_layout("debian", layout, ("linux/amd64", "linux/arm64"))
        with debian_registry.serve(scratch / "registry") as registry:
            base = f"{registry}/debian:latest"
            copy = ["skopeo", "copy", "--quiet", "--all", "--dest-tls-verify=false"]
            subprocess.run([*copy, f"oci:{layout}:latest", f"docker://{base}"], check=True)
            made = "\n".join(rows(Place(scratch, base))) + "\n"
    if sys.argv[1:] == ["-"]:
        print(made, end="")
        return
    text = PAGE.read_text()
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(text[:before] + "\n" + made + "\n" + text[after:])


if __name__ == "__main__":
    main()

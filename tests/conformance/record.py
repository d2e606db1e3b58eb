"""Record what BuildKit makes of the cases: ``record.py [CASE…]`` writes their ``golden.json``.

Needs root, ``buildkitd`` and ``buildctl`` (on PATH or in $KANIFOLD_JUDGES), runc, docker-registry, skopeo and git. The
daemon is this program's own: it lives in a temporary directory and ends with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import debian_registry
from conformance_case import Case, all_cases, lay_out
from conformance_image import Picture, dump, picture
from conformance_world import YEAR, World, base_of, world
from oci_layout import image_manifests, read_image


@contextlib.contextmanager
def buildkit(registry: str, folder: Path) -> Iterator[str]:
    """A BuildKit daemon of our own; yields its address."""
    address = f"unix://{folder}/buildkitd.sock"
    settings = folder / "buildkitd.toml"
    settings.write_text(
        f'[registry."docker.io"]\nmirrors = ["{registry}"]\n[registry."{registry}"]\nhttp = true\ninsecure = true\n'
    )
    command = [_program("buildkitd"), "--config", str(settings), "--root", str(folder / "root"), "--addr", address]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while subprocess.run(_buildctl(address, "debug", "workers"), capture_output=True, check=False).returncode:
                if process.poll() is not None:
                    raise SystemExit(f"buildkitd did not start:\n{(folder / 'log').read_text()}")
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait()


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('KANIFOLD_JUDGES', '')}:{os.environ['PATH']}")
    if found is None:
        raise SystemExit(f"{name} is not on PATH")
    return found


def _buildctl(address: str, *arguments: str) -> list[str]:
    return [_program("buildctl"), "--addr", address, *arguments]


def record(case: Case, here: World, address: str, scratch: Path) -> Picture:
    """Build ``case`` with BuildKit and say what came out.

    Nothing is left of the build before: BuildKit would only be sent what seems to have changed in the context, taking a
    file of the same name, size and time to be the same file, and the directory above a new one would lose its time.
    """
    subprocess.run(_buildctl(address, "prune", "--all"), check=True, capture_output=True)
    work = Path(tempfile.mkdtemp(prefix=f"{case.name}.", dir=scratch))
    dest = work / "layout"
    command = _buildctl(address, "build", "--no-cache", "--progress", "plain", *_options(case, here, work, dest))
    done = subprocess.run(command, env=os.environ | _secrets(case), capture_output=True, check=False)
    if done.returncode:
        return {"error": _failure(done.stderr.decode(errors="replace"))}
    (platform,) = image_manifests(dest)
    seen = read_image(dest, platform)
    return picture(seen, base_of(seen, here), time.time() - YEAR)


def _options(case: Case, here: World, work: Path, dest: Path) -> Iterator[str]:
    main = lay_out(case, work, (0, 0), here.places(case))
    _drop_syntax(main / case.file)
    yield from ("--frontend", "dockerfile.v0", "--output", f"type=oci,tar=false,dest={dest}")
    yield from ("--local", f"context={main}", "--local", f"dockerfile={main}")
    yield from ("--opt", f"filename={case.file}")
    options = {f"build-arg:{key}": value for key, value in case.args.items()}
    options |= {f"label:{key}": value for key, value in case.labels.items()}
    options |= {"platform": case.platform, "target": case.target, "force-network-mode": case.network}
    options["add-hosts"] = ",".join(f"{name}={address}" for name, address in case.hosts.items())
    for name, content in case.contexts.items():
        if isinstance(content, str):
            options[f"context:{name}"] = content
        else:
            yield from ("--local", f"{name}={work / 'contexts' / name}")
            options[f"context:{name}"] = f"local:{name}"
    for key, value in options.items():
        if value or key.startswith(("build-arg:", "label:")):
            yield from ("--opt", f"{key}={value}")
    for name in case.secrets:
        yield from ("--secret", f"id={name},env=SECRET_{name}")


def _drop_syntax(dockerfile: Path) -> None:
    """Take a first line ``# syntax=…`` away: BuildKit would pull that front end, which says the same as its own."""
    text = dockerfile.read_bytes()
    if re.match(rb"# *syntax *=", text):
        dockerfile.write_bytes(text.partition(b"\n")[2])


def _secrets(case: Case) -> dict[str, str]:
    return {f"SECRET_{name}": value for name, value in case.secrets.items()}


def _failure(said: str) -> Picture:
    """The lines that BuildKit blames and its last word, without what changes from run to run."""
    blamed = re.findall(r"^ *(\d+) \| >>> ?(.*)$", said, re.M)
    last = re.findall(r"^error: (.*)", said, re.M | re.S)[-1]
    last = re.split(r"\n(?:Dockerfile|\S*[dD]ockerfile\S*):\d+\n", last)[0]
    last = re.sub(r"\b[a-z0-9]{25}\b", "ID", last).strip()
    last = re.sub(r" \(did you mean .*?\)", "", last)  # of several that are as near, any one
    last = re.sub(r"/tmp/record\.\S*?/(buildkit\d+|fs)(?=/|\b)", "", last)
    return {"lines": [int(number) for number, _ in blamed], "says": last}


def _keep(case: Case, recorded: str) -> None:
    before = case.golden.read_text() if case.golden.exists() else None
    case.golden.write_text(recorded)
    verdict = "new " if before is None else "same" if before == recorded else "DIFF"
    print(verdict, case.name, "(fails)" if '"error"' in recorded else "")


def main(names: list[str]) -> int:
    """Record the cases in ``names``, or all of them."""
    cases = [case for case in all_cases() if not names or case.name in names]
    if missing := set(names) - {case.name for case in cases}:
        raise SystemExit(f"no such case: {', '.join(sorted(missing))}")
    with (
        tempfile.TemporaryDirectory(prefix="record.") as name,
        debian_registry.serve(Path(name) / "registry") as registry,
        world(cases, registry, Path(name)) as here,
        buildkit(registry, Path(name)) as address,
    ):
        for case in cases:
            _keep(case, here.neutral(dump(record(case, here, address, Path(name)))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

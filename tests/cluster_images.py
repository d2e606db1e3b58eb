"""kanifold's images on the nodes of a test's cluster (``cluster.py``).

They are made by ``ci/image``, and kept beside the base images (``bases.py``) until its recipe changes: to a Pod whose
image has another kanifold, this one is sent.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import bases
import pytest
from cluster import ARCHITECTURES, Cluster
from conftest import installed, needs

ROOT = Path(__file__).resolve().parents[1]
EXECUTOR, ORCHESTRATOR = "local.test/kanifold:1", "local.test/kanifold:1-kubernetes"
_PLATFORM = f"linux/{ARCHITECTURES[0]}"
"""What the nodes run, whatever they say that they are."""
_RECIPE = ("ci/image", "ci/image.Dockerfile")
_MAKING_TIMEOUT = 500.0
_NEWER = """\
FROM image
WORKDIR /usr/lib/python3/dist-packages
COPY --from=code . .
RUN ["python3", "-m", "compileall", "-qf", "--invalidation-mode", "unchecked-hash", \\
  "orchestrator", "executor", "platforms"]
WORKDIR /workspace
"""


def made() -> Path:
    """Return the directory of the images, as OCI layouts ``kanifold``, ``debug`` and ``kubernetes``."""
    needs("mmdebstrap")
    digest = hashlib.sha256(b"".join((ROOT / each).read_bytes() for each in _RECIPE)).hexdigest()
    place = bases.cache_directory() / f"kubernetes-images-{digest[:12]}"
    with bases.locked(place.with_name(f"{place.name}.lock")):
        if not place.exists():
            with tempfile.TemporaryDirectory(prefix=f"{place.name}.", dir=place.parent) as scratch:
                _run([ROOT / "ci/image", Path(scratch) / "images", _PLATFORM], Path(scratch) / "store")
                (Path(scratch) / "images").rename(place)
    return place


def _run(command: list[str | Path], store: Path) -> None:
    environment = {**os.environ, "KANIFOLD_ROOT": str(store), "KANIFOLD_VENV": sys.prefix}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=_MAKING_TIMEOUT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _load_newer(cluster: Cluster, image: str, name: str, place: Path) -> None:
    """Give all nodes ``image`` of ``made`` with this very kanifold in it, as ``name``."""
    for each in ("orchestrator", "executor", "platforms"):
        shutil.copytree(ROOT / each, place / "code" / each, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "Dockerfile").write_text(_NEWER)
    command, _ = installed()
    options = [
        "--platform", _PLATFORM, "--build-context", f"image=oci-layout://{made() / image}",
        "--build-context", f"code={place / 'code'}", "--output", f"type=oci,dest={place / 'image'}",
    ]  # fmt: skip
    _run([*command, "build", place, *options], place / "store")
    cluster.load(place / "image", name)


@pytest.fixture(scope="session")
def executor_image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of an image with this very kanifold, for executors, which all nodes have: none is sent."""
    _load_newer(cluster, "kanifold", EXECUTOR, tmp_path_factory.mktemp("executor"))
    return EXECUTOR


@pytest.fixture(scope="session")
def orchestrator_image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same for orchestrators in Pods."""
    _load_newer(cluster, "kubernetes", ORCHESTRATOR, tmp_path_factory.mktemp("orchestrator"))
    return ORCHESTRATOR

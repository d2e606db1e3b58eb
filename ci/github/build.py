"""The step of the action: calls ``kanifold build`` with the inputs, and sets the outputs.

Inputs come as JSON in the variable INPUTS, never as a part of a script. Lists are read as docker/build-push-action
reads them: CSV over several lines; commas separate values only where a value has none of its own.
"""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

LISTS = {
    "add-hosts": "--add-host", "allow": "--allow", "no-cache-filters": "--no-cache-filter", "platforms": "--platform",
    "ssh": "--ssh", "tags": "--tag",
}  # fmt: skip
"""Inputs whose values are separated by lines and commas, and their flags."""
LINES = {
    "annotations": "--annotation", "build-args": "--build-arg", "build-contexts": "--build-context",
    "cache-from": "--cache-from", "cache-to": "--cache-to", "labels": "--label", "outputs": "--output",
    "reports": "--report", "ulimit": "--ulimit",
}  # fmt: skip
"""Inputs with a value on each line, and their flags."""
TEXTS = {
    "builder": "--builder", "call": "--call", "cgroup-parent": "--cgroup-parent", "file": "--file",
    "network": "--network", "pins": "--pins", "shm-size": "--shm-size", "target": "--target",
}  # fmt: skip
SWITCHES = {
    "load": "--load", "no-cache": "--no-cache", "pull": "--pull", "push": "--push",
    "push-by-digest": "--push-by-digest",
}  # fmt: skip
UNSUPPORTED = ("attests", "provenance", "sbom")
"""Inputs of docker/build-push-action for what kanifold does not make."""


def values(text: str, *, commas: bool) -> list[str]:
    """Return the values of a list."""
    found: list[str] = []
    for record in csv.reader(io.StringIO(text)):
        found += record if commas else [",".join(record)]
    return [each.strip() for each in found if each.strip()]


def arguments(inputs: Mapping[str, str], metadata: Path, scratch: Path) -> list[str]:
    """Return the command. Secrets with a value are written to files in ``scratch``."""
    words = ["kanifold", "build", f"--metadata-file={metadata}"]
    for name in UNSUPPORTED:
        if inputs.get(name, "") not in ("", "false"):
            raise SystemExit(f"::error::{name}: kanifold makes no attestations; leave it out")
    words += [f"{flag}={inputs[name]}" for name, flag in TEXTS.items() if inputs.get(name)]
    words += [flag for name, flag in SWITCHES.items() if switch(name, inputs.get(name, ""))]
    words += [f"{flag}={each}" for name, flag in LISTS.items() for each in values(inputs.get(name, ""), commas=True)]
    words += [f"{flag}={each}" for name, flag in LINES.items() for each in values(inputs.get(name, ""), commas=False)]
    given = [each.partition("=") for each in values(inputs.get("secrets", ""), commas=False)]
    if inputs.get("github-token") and is_git(inputs.get("context", "")):
        given.append(("GIT_AUTH_TOKEN.github.com", "=", inputs["github-token"]))
    for number, (name, _, value) in enumerate(given):
        file = scratch / f"secret-{number}"
        file.write_text(value)
        words.append(f"--secret=id={name},src={file}")
    for text, key in ((inputs.get("secret-envs", ""), "env"), (inputs.get("secret-files", ""), "src")):
        for name, _, value in (each.partition("=") for each in values(text, commas=key == "env")):
            words.append(f"--secret=id={name},{key}={value}")
    words += values(inputs.get("args", ""), commas=False)
    context = inputs.get("context", "") or "."
    return [*words, "--", context]


def switch(name: str, text: str) -> bool:
    """Return the value of a switch, as YAML 1.2 writes it."""
    if text.lower() not in ("", "true", "false"):
        raise SystemExit(f"::error::{name}: neither true nor false")
    return text.lower() == "true"


def is_git(context: str) -> bool:
    """Whether the context is a git repository of the host that the token is for."""
    return context.startswith("https://github.com/")


def set_outputs(found: Mapping[str, str], file: str) -> None:
    """Append outputs to the file of the step; a delimiter that nobody can know ends a value."""
    with Path(file).open("a", encoding="utf-8") as stream:
        for name, value in found.items():
            end = secrets.token_hex(16)
            stream.write(f"{name}<<{end}\n{value}\n{end}\n")


def outputs(metadata: str) -> dict[str, str]:
    """Return the outputs for what ``--metadata-file`` wrote."""
    document = json.loads(metadata)
    digest = document["containerimage.digest"]
    image = document.get("image.name", "").partition(",")[0]
    repository = image.rpartition(":")[0] if ":" in image.rpartition("/")[2] else image
    return {
        "imageid": document.get("containerimage.config.digest", digest),
        "digest": digest,
        "metadata": metadata.strip(),
        "image": f"{repository}@{digest}" if repository else "",
    }


def shown(words: Iterable[str]) -> str:
    """Return the command for the log, as one line without commands of the runner, which it finds anywhere in a line."""
    return "".join(char if char.isprintable() else " " for char in " ".join(words)).replace("##", "# #")


def _without_inputs(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name != "INPUTS"}


def main() -> int:
    inputs: dict[str, str] = json.loads(os.environ["INPUTS"])
    with tempfile.TemporaryDirectory(dir=os.environ.get("RUNNER_TEMP"), prefix="kanifold-") as name:
        scratch = Path(name)
        metadata = Path(inputs["metadata-file"]) if inputs.get("metadata-file") else scratch / "metadata.json"
        metadata.parent.mkdir(parents=True, exist_ok=True)
        words = arguments(inputs, metadata, scratch)
        print(f"Running {shown(words)}", flush=True)
        # Secrets are in files, for the steps that ask for them: nothing else that runs has them in its environment.
        status = subprocess.run(
            words, stdin=subprocess.DEVNULL, env=_without_inputs(os.environ), check=False
        ).returncode
        if status == 0 and metadata.exists() and os.environ.get("GITHUB_OUTPUT"):
            set_outputs(outputs(metadata.read_text(encoding="utf-8")), os.environ["GITHUB_OUTPUT"])
    return status


if __name__ == "__main__":
    sys.exit(main())

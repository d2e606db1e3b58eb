"""Running GitHub's workflows with act, on this machine and without a network."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import judges
from debian_registry import free_port
from programs import program

RUNNERS = ("ubuntu-24.04", "ubuntu-24.04-arm")
"""Labels of runners; each is this machine."""


class WorkflowRunner:
    """A checked-out repository whose workflows are run by act.

    Every job has a store of its own, as on a runner of its own: its ``kanifold`` keeps it in RUNNER_TEMP.
    """

    def __init__(self, folder: Path, command: tuple[str, ...], environment: dict[str, str]) -> None:
        self.repository = folder / "repository"
        self._folder = folder
        self._environment = environment
        self.repository.mkdir(parents=True)
        (folder / "home").mkdir()
        self._command = " ".join(f"'{each}'" for each in command)
        self.fail("nothing")

    def fail(self, subcommand: str) -> None:
        """Let ``kanifold subcommand`` fail from now on."""
        script = f'[ "$1" != {subcommand} ] || exit 1\nKANIFOLD_ROOT="$RUNNER_TEMP/store" exec {self._command} "$@"'
        program(self._folder / "bin", "kanifold", script)

    def write(self, files: dict[str, str | Path]) -> None:
        """Write files of the repository, by path; a path as content is a file or a directory to copy."""
        for name, content in files.items():
            target = self.repository / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                subprocess.run(["cp", "-r", content, target], check=True)
            else:
                target.write_text(content)

    def commit(self) -> None:
        """Make the repository one of git's, with all files."""
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"]
        for words in (["init", "-q"], ["remote", "add", "origin", "https://git.invalid/org/app.git"], ["add", "-A"],
                      ["commit", "-qm", "Start"]):  # fmt: skip
            subprocess.run([*git, *words], cwd=self.repository, check=True)

    def run(self, workflow: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the workflow of this name for a push, and return what act says."""
        words = [
            judges.find("act"), "push", "-W", f".github/workflows/{workflow}", "--action-offline-mode",
            "--artifact-server-path", str(self._folder / "artifacts"), "--artifact-server-addr", "127.0.0.1",
            "--artifact-server-port", str(free_port()),
            "--cache-server-path", str(self._folder / "cache"), "--cache-server-addr", "127.0.0.1",
            "--action-cache-path", str(self._folder / "home" / "act"), "--pull=false", "--rm",
            "-s", "GITHUB_TOKEN=none",
        ]  # fmt: skip
        for each in RUNNERS:
            words += ["-P", f"{each}=-self-hosted"]
        for each, version in (
            ("checkout", "v6"),
            ("upload-artifact", "v5"),
            ("download-artifact", "v6"),
            ("github-script", "v8"),
        ):
            words += ["--local-repository", f"actions/{each}@{version}={judges.ACTIONS / each}"]
        for name, value in {**self._environment, **variables}.items():
            words += ["--env", f"{name}={value}"]
        path = f"{self._folder / 'bin'}:{os.environ['PATH']}"
        environment = {"PATH": path, "HOME": str(self._folder / "home"), "LANG": "C.UTF-8"}
        return subprocess.run(
            [*words, "--env", f"PATH={path}"], cwd=self.repository, env=environment, text=True, timeout=300,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip

"""The command line. Flags are named as ``docker buildx build`` names them; ``--help`` is meant to be read."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, Any

import click

from executor import __version__
from orchestrator.flags import BuildFlags, request
from orchestrator.options import (
    DEBUG,
    INSECURE,
    MIRRORS,
    TIMEOUT,
    complete_directories,
    complete_files,
)
from platforms import debug
from platforms.errors import KanifoldError, StoreError, UsageError

if TYPE_CHECKING:
    from orchestrator.prefork import PreforkServer

_NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What click raises for a command without arguments; before 8.2 it printed the help by itself."""
_CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


_LATER = ("copy", "emulators", "index", "matrix", "node", "release")


class _Commands(click.Group):
    """The commands. Some are loaded only when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted((*super().list_commands(ctx), *_LATER))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _LATER:
            return super().get_command(ctx, cmd_name)
        if cmd_name == "emulators":
            from orchestrator import emulator_commands

            return emulator_commands.emulators
        if cmd_name == "node":
            from orchestrator.nodes import node_commands

            return node_commands.node
        if cmd_name == "release":
            from orchestrator.release import release_command

            return release_command.release
        from orchestrator.index import commands

        return {"copy": commands.copy, "index": commands.index, "matrix": commands.matrix}[cmd_name]


@click.group(cls=_Commands, context_settings=_CONTEXT_SETTINGS)
@click.version_option(__version__, "--version", prog_name="kanifold")
@DEBUG
def cli() -> None:
    """Build one Dockerfile for every platform and publish an OCI image index.

    One command, no daemon, no privilege. A first build:

    \b
        kanifold build . --platform linux/amd64,linux/arm64 -t registry.example.com/app:1 --push

    \b
    Exit status: 0 built · 1 the build failed · 2 wrong usage · 3 this host cannot do it · 130 interrupted
    """


@cli.command(short_help="Build an image for one or many platforms.")
@BuildFlags.declare
def build(**given: Any) -> None:
    """Build CONTEXT (default: the current directory) for every platform, and put the result where --output says.

    CONTEXT is a directory, a git repository (https://host/path.git#REF:SUBDIR, git@host:path), the URL of an archive
    or of a Dockerfile, or - for an archive or a Dockerfile on stdin. In all but directories, --file is a path inside.

    Without --push or --output the result is an OCI image layout in the directory oci-layout.
    """
    exit_with, flags = click.get_current_context().exit, BuildFlags(given)
    method = flags.call
    if flags.check:
        method = "check"
    if method not in ("", "build"):
        from orchestrator import build_checks

        exit_with(build_checks.call(request(given), method))
    from orchestrator import bootstrap

    exit_with(bootstrap.run(given, click.get_current_context().obj))


@cli.command(short_help="Pin the external images of Dockerfiles to digests.")
@click.argument("dockerfiles", metavar="[DOCKERFILE]...", nargs=-1, shell_complete=complete_files)
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 unless all are pinned and current.")
@click.option("--update", is_flag=True, help="Renew digests whose tag has moved on, or that are one platform's alone.")
@click.option("--dry-run", is_flag=True, help="Print what would change as a diff.")
@click.option(
    "--lock",
    metavar="FILE",
    default="",
    shell_complete=complete_files,
    help="Change no Dockerfile: write the digests to this file, for kanifold build --pins.",
)
@INSECURE
@MIRRORS
@TIMEOUT
def pin(
    dockerfiles: tuple[str, ...],
    check: bool,
    update: bool,
    dry_run: bool,
    lock: str,
    insecure: tuple[str, ...],
    mirrors: tuple[str, ...],
    timeouts: tuple[str, ...],
) -> None:
    """Write into FROM and --from the digest of the index that each external image is today.

    A DOCKERFILE is a file, or a directory that has one (default: the current one). Comments and layout stay. What is
    pinned already is left as it is, and said to have moved on where it has: --update renews it.
    """
    from executor.registry import registry_settings
    from orchestrator import pin as pinning

    if check and (update or dry_run):
        raise click.UsageError("--check changes nothing: it goes with neither --update nor --dry-run")
    if lock and (check or update or dry_run):
        raise click.UsageError("--lock leaves the Dockerfiles alone: it goes with none of --check, --update, --dry-run")
    found = pinning.examine(
        dockerfiles, registry_settings.with_flags(registry_settings.load_settings(), insecure, mirrors, timeouts)
    )
    if check:
        click.get_current_context().exit(pinning.check(found))
    if lock:
        pinning.lock(lock, found)
        return
    states = pinning.UPDATED if update else pinning.NEW
    contents = pinning.edit(found, states)
    if dry_run:
        pinning.show(found, contents)
    else:
        pinning.write(found, contents, states)


@cli.command(name="platforms")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def platforms_command(as_json: bool) -> None:
    """Show what this host builds natively, what it emulates, and how."""
    from orchestrator import doctor

    doctor.show_platforms(as_json)


@cli.command()
@click.option("--root", metavar="DIR", default="", shell_complete=complete_directories, help="The store to look at.")
def doctor(root: str) -> None:
    """Say how steps are isolated and emulated here, why not better, and what to install; and how the nodes are."""
    from orchestrator import doctor as doctoring

    click.get_current_context().exit(doctoring.examine(root))


_FILTER = click.option(
    "--filter",
    "filters",
    metavar="CONDITION",
    multiple=True,
    help=(
        "Only what meets all of these: until=24h (not used for so long), "
        "type=blob|snapshot|record|cache-mount|partial, id=, description~=TEXT, inuse, shared, private."
    ),
)


@cli.command()
@click.option("--root", metavar="DIR", default="", shell_complete=complete_directories, help="The store to look at.")
@click.option("--verbose", "-v", is_flag=True, help="One line for each thing.")
@_FILTER
def du(root: str, verbose: bool, filters: tuple[str, ...]) -> None:
    """Show what the store holds and how much."""
    from orchestrator import store_commands

    store_commands.show(root, verbose, filters)


@cli.command()
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option(
    "-o", "--output", metavar="FILE", default="", help="Where to write, - for stdout (default: kanifold.yaml)."
)
@click.option("--var", "given", metavar="NAME=VALUE", multiple=True, help="The value of a variable of the files.")
@click.option("-f", "--force", is_flag=True, help="Replace the file if it is there.")
def convert(files: tuple[str, ...], output: str, given: tuple[str, ...], force: bool) -> None:
    """Write bake files and Compose files as a release file (kanifold.yaml) with the same plan."""
    from orchestrator.release import convert_command, release_flags

    convert_command.convert(files, release_flags.variables(given, "--var"), output, force=force)


@cli.command()
@click.option("--root", metavar="DIR", default="", shell_complete=complete_directories, help="The store to look at.")
@click.option("-n", "--count", type=click.IntRange(1), default=10, help="How many builds (default: 10).")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def history(root: str, count: int, as_json: bool) -> None:
    """Show the last builds of this store: what they made, how long they took, and their reports."""
    from orchestrator import history_command

    history_command.show(root, count, as_json=as_json)


@cli.command()
@click.option("--root", metavar="DIR", default="", shell_complete=complete_directories, help="The store to clean.")
@click.option("-a", "--all", "everything", is_flag=True, help="Remove all that no running build uses.")
@click.option("-f", "--force", is_flag=True, expose_value=False, help="Accepted from habit: there is no question.")
@click.option(
    "--keep-storage",
    "--reserved-space",
    "--max-used-space",
    "keep_storage",
    metavar="BYTES",
    default="",
    help="Keep up to this much, the least recently used goes first: 10g, …",
)
@_FILTER
def prune(root: str, everything: bool, keep_storage: str, filters: tuple[str, ...]) -> None:
    """Remove what is not needed from the store. Never what a running build uses."""
    from orchestrator import store_commands

    store_commands.prune(root, everything, keep_storage, filters)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL: eval "$(kanifold completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "kanifold", "_KANIFOLD_COMPLETE").source())


def main(started: PreforkServer | None = None) -> int:
    """The entry point: errors become messages, never tracebacks. ``started`` is a build's prefork server."""
    debug.enter("kanifold")
    try:
        status = _run(started)
        debug.log("process ends", status=status)
        sys.stdout.flush()
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        from orchestrator.view.problems import render_problem

        return render_problem(StoreError("cannot write the output", why=error.strerror or str(error)).problem)
    return status


def _run(started: PreforkServer | None) -> int:
    try:
        return int(cli.main(prog_name="kanifold", standalone_mode=False, obj=started) or 0)
    except _NO_ARGUMENTS as error:
        click.echo(error.ctx.get_help())
        return UsageError.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        from orchestrator.view.problems import render_problem

        return render_problem(UsageError(error.format_message(), remedy=_hint(error)).problem)
    except KanifoldError as error:
        from orchestrator.view.problems import render_problem

        render_problem(error.problem)
        return error.exit_code


def _hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"see {context.command_path} --help" if context is not None else ""

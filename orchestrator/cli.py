"""The command line. Flags are named as ``docker buildx build`` names them; ``--help`` is meant to be read."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, Any

import click

from executor import __version__
from orchestrator.options import (
    DEBUG,
    INSECURE,
    MIRRORS,
    TIMEOUT,
    complete_directories,
    complete_files,
    complete_platforms,
)
from platforms import debug
from platforms.errors import KanifoldError, StoreError, UsageError

if TYPE_CHECKING:
    from orchestrator.prefork import PreforkServer

_CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def _method(value: str) -> str:
    name, comma, options = value.partition(",")
    if name not in ("", "build", "check", "lint", "targets", "outline") or (comma and options != "format=json"):
        raise click.BadParameter(f"{value!r} is not check, targets or outline, with or without ,format=json")
    return value


class _Commands(click.Group):
    """The commands. Those about images that exist are loaded only when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted((*super().list_commands(ctx), "copy", "index"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in ("copy", "index"):
            return super().get_command(ctx, cmd_name)
        from orchestrator.index import commands

        return commands.copy if cmd_name == "copy" else commands.index


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
@click.argument("context", default=".", shell_complete=complete_directories)
@click.option(
    "-f",
    "--file",
    "dockerfile",
    metavar="PATH",
    default="",
    shell_complete=complete_files,
    help="The Dockerfile (default: CONTEXT/Dockerfile); - is stdin.",
)
@click.option(
    "--platform",
    "platforms",
    metavar="LIST",
    multiple=True,
    shell_complete=complete_platforms,
    help="Target platforms: linux/amd64,linux/arm64,… (default: this host's).",
)
@click.option(
    "-t", "--tag", "tags", metavar="REF", multiple=True, help="Name for the result; may be given several times."
)
@click.option(
    "--push",
    is_flag=True,
    help="Push to the registries that the tags name. Tags move only when every platform is built.",
)
@click.option(
    "--push-by-digest",
    is_flag=True,
    help="Push to the repositories of the tags and move no tag: kanifold index create names what several jobs built.",
)
@click.option(
    "--load",
    is_flag=True,
    help="Hand the image to docker, podman or containerd (nerdctl, ctr), whichever is here: short for -o type=docker.",
)
@click.option(
    "--load-to",
    metavar="PROGRAM",
    default="",
    help="Load, and into which: docker, podman, nerdctl or ctr (default: $KANIFOLD_LOAD, or the only one here).",
)
@click.option(
    "-o",
    "--output",
    "outputs",
    metavar="SPEC",
    multiple=True,
    help=(
        "type=oci,dest=DIR or FILE.tar[,tar=BOOL] · type=docker,dest=FILE · type=registry · type=image,push=true; "
        "also name=, compression=gzip|zstd|uncompressed, compression-level=, oci-mediatypes=, rewrite-timestamp=. "
        "The files alone: type=local,dest=DIR[,platform-split=BOOL][,mode=delete] or DIR · type=tar,dest=FILE or -. "
        "Nothing: type=cacheonly."
    ),
)
@click.option(
    "--build-arg",
    "build_args",
    metavar="NAME[=VALUE]",
    multiple=True,
    help="Set an ARG; without a value, from the environment.",
)
@click.option(
    "--build-context",
    "build_contexts",
    metavar="NAME=PLACE",
    multiple=True,
    help="A further context: a directory, docker-image://REF, oci-layout://PATH[:TAG], or a URL.",
)
@click.option("--target", metavar="STAGE", default="", help="The stage to build (default: the last).")
@click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, help="Add a label to every image.")
@click.option(
    "--annotation",
    "annotations",
    metavar="[LEVEL:]KEY=VALUE",
    multiple=True,
    help=(
        "Annotate; LEVEL is manifest (default), index, manifest-descriptor or index-descriptor, or several with "
        "commas; manifest[PLATFORM] is one of many."
    ),
)
@click.option(
    "--secret",
    "secrets",
    metavar="id=NAME[,src=FILE|,env=VAR]",
    multiple=True,
    help="A secret for RUN --mount=type=secret.",
)
@click.option(
    "--ssh",
    metavar="ID[=PLACE]",
    multiple=True,
    help="An SSH agent for RUN --mount=type=ssh: default, or ID=SOCKET|KEY.",
)
@click.option("--add-host", "hosts", metavar="NAME:ADDRESS", multiple=True, help="A line for /etc/hosts of every step.")
@click.option(
    "--network",
    type=click.Choice(["default", "host", "none"]),
    default="default",
    help="Network of RUN steps; host needs --allow network.host.",
)
@click.option(
    "--allow",
    metavar="ENTITLEMENT",
    multiple=True,
    help=(
        "Let the Dockerfile have it: security.insecure, network.host; for RUN --security=, --network=. Let an output "
        "delete what is in a directory outside of this one: buildx.local.delete."
    ),
)
@click.option("--shm-size", metavar="BYTES", default="", help="Size of /dev/shm in steps: 64m, 1g, …")
@click.option(
    "--ulimit",
    "ulimits",
    metavar="NAME=SOFT[:HARD]",
    multiple=True,
    help="A limit of every process in steps: nofile=1024:4096, core=0, …; -1 is none.",
)
@click.option(
    "--resource",
    "resources",
    metavar="NAME=VALUE",
    multiple=True,
    help=(
        "Bound each step: memory=2g, memory-swap=4g, cpu-shares=, cpu-period=, cpu-quota=, cpuset-cpus=0-3, "
        "cpuset-mems=, pids=512. Needs control groups (cgroup v2) that this user may make."
    ),
)
@click.option("--cgroup-parent", metavar="PATH", default="", help="The control group that those of steps are made in.")
@click.option("--no-cache", is_flag=True, help="Run every step, whatever the cache knows.")
@click.option(
    "--no-cache-filter", "no_cache_filters", metavar="STAGE", multiple=True, help="Run every step of these stages."
)
@click.option(
    "--cache-from",
    "cache_from",
    metavar="SPEC",
    multiple=True,
    help="type=registry,ref=REF · type=local,src=DIR: caches to ask.",
)
@click.option(
    "--cache-to",
    "cache_to",
    metavar="SPEC",
    multiple=True,
    help="type=registry,ref=REF[,mode=max] · type=local,dest=DIR[,mode=max] · type=inline: caches to write.",
)
@click.option("--cache-repo", metavar="REF", default="", help="Ask and write this registry cache, mode=max (kaniko).")
@click.option("--cache-ttl", metavar="AGE", default="", help="Ignore entries of outside caches older than this: 2w, …")
@click.option(
    "--compression",
    type=click.Choice(["gzip", "zstd", "uncompressed"]),
    default=None,
    help="How new layers are compressed (default: gzip).",
)
@click.option("--compression-level", type=int, default=None, help="0 to 9 for gzip, 1 to 22 for zstd.")
@click.option("--check", is_flag=True, help="Only check the Dockerfile: short for --call check.")
@click.option(
    "--call",
    metavar="METHOD",
    default="",
    callback=lambda _context, _option, value: _method(value),
    help="Ask instead of build: check, targets or outline, with ,format=json for machines.",
)
@click.option(
    "--pull",
    is_flag=True,
    expose_value=False,
    help="Ask the registry for base images (always done for tags; digests are never asked again).",
)
@click.option("--builder", metavar="NAME", default="", help="default: there are no other builders.")
@DEBUG
@click.option(
    "--progress",
    type=click.Choice(["auto", "live", "plain", "rawjson", "quiet"]),
    default="auto",
    help="How the build is shown.",
)
@click.option("-q", "--quiet", is_flag=True, help="Short for --progress quiet.")
@click.option(
    "--metadata-file", metavar="FILE", default="", shell_complete=complete_files, help="Write digests as JSON."
)
@click.option(
    "--iidfile",
    "iid_file",
    metavar="FILE",
    default="",
    shell_complete=complete_files,
    help="Write the image's id (the index's digest for several platforms).",
)
@click.option(
    "--trace",
    metavar="FILE",
    default="",
    shell_complete=complete_files,
    help="Write what happened when, as JSON for Perfetto (ui.perfetto.dev) and Chrome.",
)
@click.option("--jobs", "-j", type=click.IntRange(min=0), default=0, help="Platforms built at once (default: all).")
@click.option(
    "--keep-going", is_flag=True, help="Let other platforms end when one fails. Nothing is published all the same."
)
@click.option(
    "--audit",
    type=click.Choice(["error", "warn", "off"]),
    default="warn",
    help="What to do about programs of another architecture in an image.",
)
@click.option(
    "--audit-allow",
    "audit_allow",
    metavar="[PLATFORM:]PATTERN",
    multiple=True,
    help="Paths whose foreign programs are intended.",
)
@INSECURE
@MIRRORS
@TIMEOUT
@click.option(
    "--root",
    metavar="DIR",
    default="",
    shell_complete=complete_directories,
    help="The store (default: $KANIFOLD_ROOT or $XDG_DATA_HOME/kanifold).",
)
def build(check: bool, call: str, **flags: Any) -> None:
    """Build CONTEXT (default: the current directory) for every platform, and put the result where --output says.

    CONTEXT is a directory, a git repository (https://host/path.git#REF:SUBDIR, git@host:path), the URL of an archive
    or of a Dockerfile, or - for an archive or a Dockerfile on stdin. In all but directories, --file is a path inside.

    Without --push or --output the result is an OCI image layout in the directory oci-layout.
    """
    exit_with = click.get_current_context().exit
    if check or call not in ("", "build"):
        from orchestrator import build_checks
        from orchestrator import flags as parsing

        exit_with(build_checks.call(parsing.request(flags), "check" if check else call))
    from orchestrator import bootstrap

    exit_with(bootstrap.run(flags, click.get_current_context().obj))


@cli.command(short_help="Pin the external images of Dockerfiles to digests.")
@click.argument("dockerfiles", metavar="[DOCKERFILE]...", nargs=-1, shell_complete=complete_files)
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 unless all are pinned and current.")
@click.option("--update", is_flag=True, help="Renew digests whose tag has moved on, or that are one platform's alone.")
@click.option("--dry-run", is_flag=True, help="Print what would change as a diff.")
@INSECURE
@MIRRORS
@TIMEOUT
def pin(
    dockerfiles: tuple[str, ...],
    check: bool,
    update: bool,
    dry_run: bool,
    insecure: tuple[str, ...],
    mirrors: tuple[str, ...],
    timeouts: tuple[str, ...],
) -> None:
    """Write into FROM and --from the digest of the index that each external image is today.

    A DOCKERFILE is a file, or a directory that has one (default: the current one). Comments and layout stay. What is
    pinned already is left as it is, and said to have moved on where it has: --update renews it.
    """
    from executor.registry import config
    from orchestrator import pin as pinning

    if check and (update or dry_run):
        raise click.UsageError("--check changes nothing: it goes with neither --update nor --dry-run")
    found = pinning.examine(dockerfiles, config.with_flags(config.load_settings(), insecure, mirrors, timeouts))
    if check:
        click.get_current_context().exit(pinning.check(found))
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
    """Say how steps are isolated and emulated here, why not better, and what to install."""
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
    except click.exceptions.NoArgsIsHelpError as error:
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

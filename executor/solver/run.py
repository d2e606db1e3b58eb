"""The step RUN: its cache key, its environment, its run in the sandbox, and its errors."""

from __future__ import annotations

import os
from typing import ClassVar, Final, Literal

import msgspec
from msgspec.structs import replace

from executor.dockerfile.instructions import Run, shell_text
from executor.dockerfile.scope import PROXIES
from executor.protocol import BuildWarning, Job, Log
from executor.rootfs import moment
from executor.sandbox import cgroup
from executor.sandbox.network import NO_HELPER
from executor.sandbox.spec import Ended, Mount, Spec
from executor.snapshotter.snapshotter import ActiveRoot
from executor.solver import builtin_args, cache, output, users
from executor.solver import state as states
from executor.solver.inputs import Input
from executor.solver.mounts import Mounts
from executor.solver.progress import Progress
from executor.solver.services import FileSystems, Services
from executor.solver.state import State
from executor.solver.step import Made
from executor.solver.treename import Observed
from executor.step_options import Network, StepOptions, control_files
from executor.store import faults
from platforms import debug
from platforms.errors import DockerfileError, Problem, StepFailed, StepStarved

_SHARED_REMEDY: Final = "kanifold doctor tells what a network of their own needs"


class RunStep(msgspec.Struct, frozen=True):
    """A RUN with its variables expanded."""

    job: Job
    services: Services
    filesystems: FileSystems
    progress: Progress
    number: int
    state: State
    instruction: Run
    mounts: Mounts
    by_content: ClassVar[bool] = False

    @property
    def argv(self) -> tuple[str, ...]:
        """The command."""
        if self.instruction.shell:
            return states.shell_command(self.state.config, shell_text(self.instruction))
        return self.instruction.command

    @property
    def text(self) -> str:
        return states.run_text(self.state, self.argv)

    @property
    def network(self) -> Network:
        """The network of the step."""
        options = self.job.options.steps
        return _asked_network(options, self.instruction) or options.default_network

    @property
    def title(self) -> str:
        return self.instruction.original

    key_parts: ClassVar[tuple[str, ...]] = (
        "the files below",
        "the platform",
        "the command",
        "the environment",
        "the working directory",
        "the user",
        "the network of the instruction",
        "the network of the build",
        "the security mode",
        "the host name",
        "an option of steps",
        "what it mounts",
    )

    def key(self, input_: Input) -> Observed:
        input_.mark_static()  # the mounts have inputs of their own
        return self._observed(self.mounts.key)

    def content_key(self) -> Observed | None:
        mounted = self.mounts.by_content()
        return None if mounted is None else self._observed(mounted)

    def _observed(self, mounted: Observed) -> Observed:
        state, job = self.state, self.job
        options = job.options.steps
        return (
            "run",
            state.tree,
            str(state.platform),
            self.argv,
            state.env,
            state.workdir,
            state.config.user,
            self.instruction.network,
            options.network,
            self.instruction.security,
            builtin_args.host_name(job.build_args),
            *options.observed,
            mounted,
        )

    def make(self) -> Made:
        """Run the step in a root file system on top of the stage, and commit the changes as a snapshot."""
        services = self.services
        services.runner().prepare(isolated=self.network == "isolated")  # while base layers are unpacked
        parents = self.filesystems.snapshots(self.state.layers)
        result = cache.new_result()
        active = services.snapshotter.prepare(parents)
        try:
            services.snapshotter.add_mount_points(active, moment.nanoseconds(self.job.epoch))
            with self.progress.turn(services.slots):
                execute(self, active)
            keys = (cache.snapshot_key(result),)
            services.snapshotter.commit(active, keys=keys, description=self.instruction.original)
        except BaseException:
            services.snapshotter.remove(active)
            raise
        return Made(result)

    def log(self, lines: str, stream: int) -> None:
        """Send ``lines`` of the step's output to the orchestrator (``protocol.Log``)."""
        self.services.tell(Log(self.number, lines, stream))


def check_allowed(options: StepOptions, instruction: Run) -> None:
    """Raise ``DockerfileError`` if ``instruction`` requires a permission that is not given, or a device."""
    if instruction.security == "insecure" and "security.insecure" not in options.allow:
        raise DockerfileError(
            "security.insecure is not allowed",
            why="such a step may do on this machine whatever kanifold may",
            remedy="if you trust the Dockerfile that far: --allow security.insecure",
            where=instruction.location,
        )
    if _asked_network(options, instruction) == "host" and "network.host" not in options.allow:
        raise DockerfileError(
            "network.host is not allowed",
            why="such a step reaches what listens on this machine only, and sees the traffic of others",
            remedy="if you trust the Dockerfile that far: --allow network.host",
            where=instruction.location,
        )
    required = next((each.name for each in instruction.devices if each.required), None)
    if required is not None:
        raise DockerfileError(
            f'required device "{required}" is not registered',
            why="no devices are handed to steps here",
            remedy="without ,required the step does without",
            where=instruction.location,
        )


def execute(step: RunStep, active: ActiveRoot) -> None:
    """Run ``step`` in the root file system ``active``.

    Raises ``StepFailed`` with the tail of the output, ``EnvironmentUnfit``, or ``Interrupted``.
    """
    options, services = step.job.options.steps, step.services
    services.check_runs(step.state.platform)
    tail = output.Tail()
    with step.mounts.mounted() as mounts:
        secrets = step.mounts.masked()
        spec = _spec(step, active, mounts)
        if debug.on:
            shown = tuple(output.masked(each, secrets) for each in spec.argv)
            debug.log("step runs", step=step.number, argv=shown, user=spec.uid, cwd=spec.cwd, network=spec.network)
        bounds = cgroup.group(options.cgroup_parent, control_files(options.limits))
        with (
            bounds as group,
            output.captured(secrets, output.LogLimits.of(os.environ), tail, step.log) as (stdout, stderr),
        ):
            ended = services.runner().run(replace(spec, cgroup=group), stdout, stderr, services.cancellation.future)
            starved = cgroup.killed(group)
    debug.log("step ended", step=step.number, code=ended.code, error=output.masked(ended.error, secrets))
    if ended.shared and ended.shared != NO_HELPER:
        problem = Problem("Network", "steps share the network of this machine", ended.shared, _SHARED_REMEDY)
        services.tell(BuildWarning(problem, problem.kind))
    services.cancellation.check()
    if ended.code != 0 or ended.error:
        raise _failure(step, ended, starved, tail)


def _spec(step: RunStep, active: ActiveRoot, mounts: tuple[Mount, ...]) -> Spec:
    """Return the specification for the sandbox."""
    job, state = step.job, step.state
    who = users.identity(step.services.snapshotter.view(active.parents), state.config.user)
    return Spec(
        rootfs=active.rootfs,
        argv=step.argv,
        env=tuple(f"{name}={value}" for name, value in _environment(step, who.home)),
        cwd=state.workdir,
        uid=who.uid,
        gid=who.gid,
        groups=who.groups,
        mounts=mounts,
        network=step.network,
        insecure=step.instruction.security == "insecure",
        hostname=builtin_args.host_name(job.build_args),
        options=job.options.steps,
    )


def _environment(step: RunStep, home: str) -> tuple[tuple[str, str], ...]:
    """Return the complete environment of ``step``.

    In this order: ENV and ARG; proxies that are not declared; SSH_AUTH_SOCK; secrets, which override variables of the
    same name; HOME. Proxies are set in upper and lower case (BuildKit, solver/llbsolver/ops/exec.go).
    """
    env = step.state.env
    declared = {name for name, _ in env}
    proxies = {name: value for name, value in step.job.build_args if name in PROXIES}
    upper = {name.upper(): value for name, value in proxies.items()}
    lower = {name.lower(): value for name, value in proxies.items()}
    env = (*env, *((name, value) for name, value in (upper | lower | proxies).items() if name not in declared))
    agent = step.mounts.agent
    if agent and not any(name == "SSH_AUTH_SOCK" for name, _ in env):
        env = (*env, ("SSH_AUTH_SOCK", agent))
    env = (*env, *step.mounts.variables())
    if not any(name == "HOME" for name, _ in env):
        env = (*env, ("HOME", home))
    return env


def _failure(step: RunStep, ended: Ended, starved: bool, tail: output.Tail) -> StepFailed:
    command = " ".join(step.argv)
    why = ended.error or f"exit code: {ended.code}"
    if starved:
        why += " (it needed more memory than --resource allows)"
    elif ended.oom:
        why += " (the kernel ran out of memory)"
    full = faults.full_disk_remedy(step.services.store.root)
    kind = StepStarved if full or (ended.oom and not starved) else StepFailed
    return kind(
        f'process "{command}" did not complete successfully',
        why=why,
        remedy=_remedy(ended) or full,
        where=step.instruction.location,
        log=tail.lines,
    )


def _remedy(ended: Ended) -> str:
    if ended.code == 127 and ended.error.startswith("exec /"):  # execve(2) of a file that is there
        return "the file is there, but not the interpreter that its #! line or its ELF header names (another libc?)"
    if ended.code == 127:
        return "the program is not in the stage: install it in an earlier step, or check its name and PATH"
    if ended.code == 126:
        return "the file is there but cannot be executed: check its mode, its architecture and its #! line"
    return ""


def _asked_network(options: StepOptions, instruction: Run) -> Literal["", "host", "none"]:
    """Return the network that the step or the build requests explicitly, else ""."""
    return options.network if instruction.network == "default" else instruction.network

"""Solves a job: from its Dockerfile to the final state of its target. Stages run in parallel, steps in order.

(1) The graph has the stages that are needed. (2) Each of them runs on a thread of its own and waits for the stages that
it uses. (3) An instruction that can have a layer becomes a step (``run``, ``copy``, ``workdir``), which ``caching``
finds or makes. (4) Layers of the image are packed and pushed in the background while the next step runs.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial

from msgspec.structs import replace

from executor import protocol
from executor.dockerfile import Stage, expand, trigger
from executor.dockerfile import instructions as dockerfile
from executor.dockerfile.instructions import Instruction
from executor.rootfs import moment
from executor.rootfs.tree import Tree
from executor.solver import copy, graph, run, sources, treename, workdir
from executor.solver import state as states
from executor.solver.base import Bases
from executor.solver.caching import CachedStep, ImageLayers, StepCache
from executor.solver.graph import FromStage, JobPlan, Origin
from executor.solver.job_contexts import Contexts
from executor.solver.layer import LayerLost
from executor.solver.lazy import Lazy
from executor.solver.mounts import MountPlanner
from executor.solver.origins import Origins
from executor.solver.progress import Numbers, Progress
from executor.solver.services import FileSystems, Memory, Services
from executor.solver.state import State
from executor.solver.step import Step
from executor.store import faults
from platforms.errors import DockerfileError, KanifoldError


class Solver:
    """The stages of one job, each solved at most once. ``image`` receives new layers of the image."""

    def __init__(
        self, job: protocol.Job, plan: JobPlan, services: Services, memory: Memory, image: ImageLayers
    ) -> None:
        self._job = job
        self._plan = plan
        self._services = services
        self._memory = memory
        self._given: Mapping[str, str] = dict(job.build_args)
        self._uncached = frozenset(each.casefold() for each in job.options.no_cache_stages)
        self._made_ns = moment.nanoseconds(job.epoch)
        """The modification time of directories that steps create, nanoseconds."""
        self._stages = {stage.index: Lazy(partial(self._solve, stage)) for stage in plan.dockerfile.stages}
        self._numbers = Numbers(plan.dockerfile, plan.graph)
        self._progress = Progress(services.tell)
        self._filesystems = FileSystems(services.snapshotter, services.background, self._progress)
        self._origins = Origins(
            plan=plan,
            services=services,
            memory=memory,
            stages=self._stages,
            filesystems=self._filesystems,
            contexts=Contexts(job, plan, services, memory.scratch),
            bases=Bases(
                job,
                services.store,
                services.conversation,
                services.cancellation,
                memory.scratch,
                services.snapshotter,
                services.registry,
            ),
            made_ns=self._made_ns,
        )
        self._mounts = MountPlanner(job, services, memory, self._origins, self._made_ns)
        self._cache = StepCache(job, services, memory, image, self._share)
        self._lock = threading.Lock()
        self._first_error: BaseException | None = None

    def solve(self) -> State:
        """Return the final state of the target."""
        stages = graph.described(self._plan.dockerfile, self._plan.graph, self._plan.named)
        self._services.tell(protocol.Planned(self._numbers.steps, self._services.how, stages))
        threads = [
            threading.Thread(target=self._quietly, args=(index,), name=f"stage-{index}", daemon=True)
            for index in self._plan.graph.stages
        ]
        for thread in threads:
            thread.start()
        try:
            return self._stages[self._plan.graph.target]()
        except BaseException:
            # The first error is the cause; the other stages were cancelled because of it.
            if self._first_error is not None:
                raise self._first_error from None
            raise

    @property
    def progress(self) -> Progress:
        """The numbers of steps that were found and made."""
        return self._progress

    @property
    def steps(self) -> list[CachedStep]:
        """All steps with a layer, in the order of their completion."""
        return self._cache.steps

    @property
    def contexts(self) -> tuple[str, ...]:
        """The named contexts that were used, sorted."""
        return tuple(sorted(self._origins.contexts.used - {""}))

    def tree(self, state: State) -> Tree:
        """Return the file system of ``state``, for reading."""
        return self._filesystems.tree(state.layers)

    def _quietly(self, index: int) -> None:
        try:
            self._stages[index]()
        except BaseException as error:  # the stages that use this one raise it again
            with self._lock:
                if self._first_error is None:
                    self._first_error = error
            if not isinstance(error, LayerLost) and not faults.is_full(error):
                self._services.cancellation.cancel()

    # -- stages

    def _solve(self, stage: Stage) -> State:
        plan = self._plan
        state = self._begin(stage, self._base_of(stage))
        triggers = [trigger(each, stage.location) for each in state.config.onbuild]
        state = replace(state, config=replace(state.config, onbuild=()))
        if graph.replaced(plan.dockerfile, stage, plan.scope, plan.named):
            return state
        added, shown = self._numbers.triggers(stage, triggers)
        if shown:
            self._announce(shown)
        numbers = (*added, *self._numbers.of(stage))
        draft: states.StateBuilder | None = None
        for instruction, number in zip((*triggers, *stage.instructions), numbers, strict=True):
            self._services.cancellation.check()
            try:
                if number:
                    state, draft = draft.state() if draft is not None else state, None
                    state = self._layered(stage, number, state, instruction)
                else:
                    draft = draft or states.StateBuilder(state)
                    draft.apply(instruction, self._given, plan.scope, plan.dockerfile.escape)
            except KanifoldError as error:
                if error.problem.where is None:
                    error.problem = replace(error.problem, where=instruction.location)
                raise
        return draft.state() if draft is not None else state

    def _base_of(self, stage: Stage) -> Origin:
        plan = self._plan
        if stage.index in plan.graph.stages:
            return plan.graph.bases[stage.index]
        # Only a trigger of a base image uses this stage.
        origin = graph.base_of(plan.dockerfile, stage, plan.scope, plan.named)
        shown = self._numbers.add_stage(stage, has_base=not isinstance(origin, FromStage))
        if shown:
            self._announce(shown)
        return origin

    def _begin(self, stage: Stage, origin: Origin) -> State:
        """Return the state after the FROM of ``stage``."""
        plan = self._plan
        platform = graph.platform_of(plan.dockerfile, stage, plan.scope, self._services.platform)
        if isinstance(origin, FromStage):
            return replace(self._origins.state(origin, platform), command_set=False)
        clock = self._progress.start(self._numbers.base(stage))
        try:
            state = self._origins.state(origin, platform)
        except KanifoldError as error:
            self._progress.fail(clock, error)
            if error.problem.where is None:
                error.problem = replace(error.problem, where=stage.location)
            raise
        self._progress.end(clock)
        return states.enter(state)

    def _announce(self, steps: tuple[protocol.StepInfo, ...]) -> None:
        """Announce ``steps`` to the orchestrator."""
        self._services.tell(protocol.Planned(steps, self._services.how))

    # -- steps

    def _layered(self, stage: Stage, number: int, state: State, instruction: Instruction) -> State:
        """Return ``state`` after an instruction that can have a layer."""
        instruction = expand(instruction, dict(state.env), self._plan.dockerfile.escape)
        if isinstance(instruction, dockerfile.Workdir):
            state = workdir.entered(state, instruction)
            if state.workdir == "/":
                return states.noted(state, "WORKDIR /")
        step = self._step(stage, number, state, instruction)
        in_image = stage.index in self._plan.graph.chain
        clock = self._progress.start(number)
        try:
            found = self._cache.find_or_make(step, fresh=self._ignores_cache(stage), in_image=in_image)
        except LayerLost:
            raise  # the job will be started again
        except KanifoldError as error:
            if not faults.is_full(error):  # else the job may be started again with more room
                self._progress.fail(clock, error)
            raise
        self._progress.finish(clock, cached=found.made is None, missed=found.missed)
        layer = self._cache.layer(step, found, in_image=in_image)
        return replace(
            states.noted(step.state, step.text, layer=True, created=found.entry.created),
            layers=(*state.layers, layer),
            tree=treename.above(state.tree, found.entry, found.keys[0].sources),
        )

    def _step(self, stage: Stage, number: int, state: State, instruction: Instruction) -> Step:
        """Return ``instruction`` as a step of ``stage`` on ``state``."""
        services, memory, filesystems = self._services, self._memory, self._filesystems
        match instruction:
            case dockerfile.Run():
                run.check_allowed(self._job.options.steps, instruction)
                mounts = self._mounts.plan(stage, state, instruction)
                return run.RunStep(self._job, services, filesystems, self._progress, number, state, instruction, mounts)
            case dockerfile.Copy() | dockerfile.Add():
                files = Lazy(partial(copy.copied_from, self._origins, stage, instruction))
                taken = sources.of(services, memory, instruction, files, windows=state.windows)
                return copy.CopyStep(memory.contents, filesystems, self._made_ns, number, state, instruction, taken)
            case dockerfile.Workdir():
                return workdir.WorkdirStep(memory.contents, filesystems, self._made_ns, number, state)
            case _:
                raise DockerfileError(f"{instruction.keyword} cannot be built", where=instruction.location)

    def _share(self, steps: list[CachedStep]) -> None:
        """Export ``steps`` now if this machine is a node that may be lost: another one that takes the job over finds
        them."""
        if self._job.lends and self._job.options.cache_to:
            from executor.solver import sharing

            self._services.background.submit(sharing.share_early, self._job, self._services, steps)

    def _ignores_cache(self, stage: Stage) -> bool:
        """Whether ``--no-cache`` or ``--no-cache-filter`` applies to ``stage``."""
        return self._job.options.no_cache or (bool(stage.name) and stage.name in self._uncached)

"""A job's way from its Dockerfile to the final state of its target: stages in parallel, steps in order.

(1) The graph says which stages are needed. (2) Each needed stage runs on a thread of its own and waits for those it
builds on. (3) A step is looked up by its key; one that is not found is done, under a lock on the key, so that of
several builds that want the same step one does it and the others share. (4) Layers of the target's own chain are packed
(and pushed) in the background while the next step runs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import assert_never

import msgspec
from msgspec.structs import replace

from executor import protocol
from executor.context.directory import open_context
from executor.dockerfile import Dockerfile, Stage, expand, global_scope, parse, trigger
from executor.dockerfile import instructions as dockerfile
from executor.dockerfile.instructions import Instruction, inline_script, shell_text
from executor.dockerfile.scope import PROXIES
from executor.image import config as image
from executor.rootfs import moment
from executor.rootfs.entry import Entry
from executor.rootfs.tree import Tree
from executor.snapshotter import unpack
from executor.snapshotter.snapshotter import Parents
from executor.solver import base, cache, content, copying, graph, keys, runstep, scope, sources, treename, users
from executor.solver import state as steps
from executor.solver.cache import CacheEntry
from executor.solver.copying import normal_path
from executor.solver.graph import MAIN_CONTEXT, FromContext, FromImage, FromStage, Graph, Origin, Scratch
from executor.solver.inputs import Input
from executor.solver.layer import Layer, LayerLost, from_result
from executor.solver.mounts import Mounts, prepare, secret_variables, ssh_socket
from executor.solver.named import Named
from executor.solver.numbering import Numbers
from executor.solver.once import Once
from executor.solver.sources import Files
from executor.solver.state import State
from executor.solver.treename import Observed
from executor.solver.workshop import Workshop, together
from executor.store import faults, locks
from executor.store.spool import SpooledList
from platforms import debug
from platforms.errors import ContextError, DockerfileError, Interrupted, KanifoldError, StoreError
from platforms.platform import Platform


class _Clock(msgspec.Struct):
    """A step that has begun."""

    number: int
    started: float
    waited: float = 0.0
    """Seconds in which it waited for others."""


class Made(msgspec.Struct, frozen=True):
    """A step that has a layer: what an outside cache is told."""

    key: str
    outcome: CacheEntry
    layer: Layer
    in_image: bool
    promised: bool
    """Whether nobody here has the layer."""


class _Entries(msgspec.Struct, frozen=True):
    """The entries of the COPY that came to ``result``, worked out should somebody go through them."""

    again: Once[tuple[str, SpooledList[Entry]]]
    result: str

    def __iter__(self) -> Iterator[Entry]:
        result, entries = self.again()
        if result != self.result:
            raise ContextError("what is copied changed during the build", remedy="build again")
        return iter(entries)


class _Key(msgspec.Struct, frozen=True):
    """The key of a step: in this store, and in outside caches."""

    here: str
    outside: str
    places: tuple[str, ...]
    """The outside caches that had a say in what the step observes."""

    @staticmethod
    def of(observed: Observed, job: protocol.Job) -> _Key:
        """The key of a step of ``job`` that observes that."""
        places = treename.places(observed)
        times = (job.epoch, job.latest)
        key = keys.key("step", treename.here(observed), *times)
        return _Key(key, keys.key("step", treename.outside(observed), *times) if places else key, places)


class JobPlan(msgspec.Struct, frozen=True):
    """What a job comes to, as far as its Dockerfile says."""

    dockerfile: Dockerfile
    scope: Mapping[str, str]
    """What FROM sees."""
    named: Named
    graph: Graph
    may_run: bool
    """Whether there may be a RUN to do."""


def job_plan(job: protocol.Job, native: Platform, platform: Platform) -> JobPlan:
    """The course of ``job`` on a ``native`` node. Raises ``DockerfileError``."""
    source = parse(job.dockerfile, job.dockerfile_name)
    stage = job.target or source.stages[-1].name
    seen = global_scope(source, dict(job.build_args), scope.platform_arguments(native, platform, stage))
    named = Named(frozenset(context.name for context in job.contexts if context.name), platform)
    needed = graph.plan(source, job.target, seen, named)
    return JobPlan(source, seen, named, needed, graph.may_run(source, needed))


class Solver:
    """One job's stages. ``state(index)`` is a stage's last state, worked out by whoever asks first."""

    def __init__(self, workshop: Workshop, job_plan: JobPlan) -> None:
        job, source = workshop.job, job_plan.dockerfile
        self._workshop = workshop
        self.dockerfile = source
        self._given: Mapping[str, str] = dict(job.build_args)
        self._scope = job_plan.scope
        self._made = moment.nanoseconds(job.epoch)
        """The time of what the Dockerfile itself makes, nanoseconds."""
        self._proxies = tuple((name, value) for name, value in job.build_args if name in PROXIES)
        self._contexts = {context.name: context for context in job.contexts}
        self.named = job_plan.named
        self.graph = job_plan.graph
        self._stages = {
            stage.index: Once(lambda stage=stage: self._solve(stage))  # type: ignore[misc]
            for stage in source.stages
        }
        self._trees: dict[str, Once[Tree]] = {
            name: Once(lambda context=context: self._open_context(context))  # type: ignore[misc]
            for name, context in self._contexts.items()
            if isinstance(context, protocol.FilesContext)
        }
        self._numbers = Numbers(source, self.graph)
        self._counting = threading.Lock()
        self._clocks = threading.local()
        """``step``: the clock of the step that this thread does."""
        self.contexts: set[str] = set()
        """The named contexts that something was taken from."""
        self.made: list[Made] = []
        """Every step with a layer, in the order in which they were done."""
        self._first_error: BaseException | None = None
        self._told: list[BaseException] = []
        """Errors of which it was said whose they are."""
        self.cached = 0
        self.ran = 0

    def solve(self, on_layer: Callable[[Layer], None]) -> State:
        """The target's last state. ``on_layer`` hears of each layer of the image that was just made."""
        self._on_layer = on_layer
        self._workshop.tell(protocol.Planned(self._numbers.steps, str(self._workshop.how)))
        threads = [
            threading.Thread(target=self._quietly, args=(index,), name=f"stage-{index}", daemon=True)
            for index in self.graph.stages
        ]
        for thread in threads:
            thread.start()
        try:
            return self._stages[self.graph.target]()
        except BaseException:
            # The first error is the reason; what other stages say after it is that they were cancelled.
            if self._first_error is not None:
                raise self._first_error from None
            raise

    def _quietly(self, index: int) -> None:
        try:
            self._stages[index]()
        except BaseException as error:  # whoever needs the stage gets the error again
            with self._counting:
                if self._first_error is None:
                    self._first_error = error
            if not isinstance(error, LayerLost) and not faults.is_full(error):
                self._workshop.cancel()

    # -- stages

    def _solve(self, stage: Stage) -> State:
        origin = self._base_of(stage)
        state = self._begin(stage, origin)
        triggers = [trigger(each, stage.location) for each in state.config.onbuild]
        state = replace(state, config=replace(state.config, onbuild=()))
        if graph.replaced(self.dockerfile, stage, self._scope, self.named):
            return state
        added, shown = self._numbers.triggers(stage, triggers)
        self._announce(shown)
        numbers = (*added, *self._numbers.of(stage))
        draft: steps.Draft | None = None
        for instruction, number in zip((*triggers, *stage.instructions), numbers, strict=True):
            self._workshop.check()
            try:
                if number:
                    state, draft = draft.state() if draft is not None else state, None
                    state = self._step(stage, number, state, instruction)
                else:
                    draft = draft or steps.Draft(state)
                    draft.apply(instruction, self._given, self._scope, self.dockerfile.escape)
            except KanifoldError as error:
                if error.problem.where is None:
                    error.problem = replace(error.problem, where=instruction.location)
                raise
        return draft.state() if draft is not None else state

    def _base_of(self, stage: Stage) -> Origin:
        if stage.index in self.graph.stages:
            return self.graph.bases[stage.index]
        # Only a base image's trigger knew that this stage is needed.
        origin = graph.base_of(self.dockerfile, stage, self._scope, self.named)
        self._announce(self._numbers.add_stage(stage, has_base=not isinstance(origin, FromStage)))
        return origin

    def _announce(self, shown: tuple[protocol.Step, ...]) -> None:
        """Tell of steps that only a base image's triggers made known."""
        if shown:
            self._workshop.tell(protocol.Planned(shown, str(self._workshop.how)))

    def _begin(self, stage: Stage, origin: Origin) -> State:
        platform = graph.platform_of(self.dockerfile, stage, self._scope, self._workshop.platform)
        if isinstance(origin, FromStage):
            state = self._stages[origin.index]()
            return replace(state, command_set=False)
        number = self._numbers.base(stage)
        clock = self._start(number)
        try:
            state = self._origin_state(origin, platform)
        except KanifoldError as error:
            self._fail(clock, error)
            if error.problem.where is None:
                error.problem = replace(error.problem, where=stage.location)
            raise
        self._workshop.tell(protocol.Finished(number, self._stop(clock)))
        return steps.enter(state)

    def _origin_state(self, origin: Scratch | FromImage | FromContext, platform: Platform) -> State:
        """The state that an external ``origin`` begins with."""
        taken = self._workshop.inputs.add("base")
        held: Scratch | FromImage | protocol.Context
        if isinstance(origin, FromContext):
            self.contexts.add(origin.name)
            held = self._contexts[origin.name]
        else:
            held = origin
        match held:
            case Scratch() | protocol.ScratchContext():
                taken.nothing()
                return State(platform, image.empty(platform))
            case FromImage():
                return _from_base(platform, base.from_registry(self._workshop, taken, held.name, platform))
            case protocol.ImageContext():
                return _from_base(platform, base.from_registry(self._workshop, taken, held.image, platform))
            case protocol.LayoutContext():
                return _from_base(platform, base.from_layout(self._workshop, held.name, held.path, platform))
            case protocol.DirectoryContext() | protocol.SentContext():
                return self._files_as_base(held, taken, platform)
            case _:
                assert_never(held)

    def _files_as_base(self, context: protocol.FilesContext, taken: Input, platform: Platform) -> State:
        """The state of a base whose only layer are the files of ``context``."""
        tree = self._read_context(context.name, taken)
        empty = State(platform, image.empty(platform))
        source = copying.Source(tree, "/", wildcards=False, context=True)
        plan = copying.Plan(None, self._workshop.directory, self._made)
        for match, top, found in content.select(self._workshop, source).matches():
            copying.copy_match(plan, source, match, top, found, "/", copying.CopyOptions())
        entries = plan.finish()
        result = content.name(self._workshop, entries)
        layer = from_result(self._workshop, result, _now(), entries, ())
        return replace(empty, layers=(layer,), tree=treename.name(keys.key("tree", empty.tree.here, result)))

    def origin(self, origin: Origin, platform: Platform) -> State:
        """The state of what ``--from`` names."""
        if isinstance(origin, FromStage):
            return self._stages[origin.index]()
        return self._origin_state(origin, platform)

    # -- steps

    def _step(self, stage: Stage, number: int, state: State, instruction: Instruction) -> State:
        """A step that may have a layer."""
        instruction = expand(instruction, dict(state.env), self.dockerfile.escape)
        match instruction:
            case dockerfile.Run():
                return self._run(stage, number, state, instruction)
            case dockerfile.Copy() | dockerfile.Add():
                return self._copy(stage, number, state, instruction)
            case dockerfile.Workdir():
                return self._workdir(stage, number, state, instruction)
            case _:
                raise DockerfileError(f"{instruction.keyword} cannot be built", where=instruction.location)

    def _run(self, stage: Stage, number: int, state: State, instruction: dockerfile.Run) -> State:
        workshop = self._workshop
        if instruction.security == "insecure" and "security.insecure" not in workshop.job.allow:
            raise DockerfileError(
                "security.insecure is not allowed",
                why="such a step may do on this machine whatever kanifold may",
                remedy="if you trust the Dockerfile that far: --allow security.insecure",
                where=instruction.location,
            )
        if runstep.asked_network(workshop.job, instruction) == "host" and "network.host" not in workshop.job.allow:
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
        script = inline_script(instruction)
        argv = instruction.command
        if instruction.shell:
            argv = steps.shell_command(state.config, shell_text(instruction))
        env = runstep.environment(state, self._proxies)
        agent = ssh_socket(state, instruction)
        if agent and not any(name == "SSH_AUTH_SOCK" for name, _ in env):
            env = (*env, ("SSH_AUTH_SOCK", agent))
        mounts = prepare(self, workshop, stage, state, instruction, script)
        visible = tuple(pair for pair in state.env)
        running = runstep.Running(argv, env)

        def key(taken: Input) -> Observed:
            taken.nothing()
            return observed(mounts.key)

        def observed(mounted: Observed) -> Observed:
            return (
                "run",
                state.tree,
                str(state.platform),
                argv,
                visible,
                state.workdir,
                state.config.user,
                instruction.network,
                workshop.job.network,
                instruction.security,
                scope.host_name(workshop.job.build_args),
                workshop.job.hosts,
                workshop.job.shm_size,
                workshop.job.ulimits,
                mounted,
            )

        def make() -> tuple[str, None]:
            return self._execute(number, instruction, running, state, mounts), None

        same = mounts.same
        return self._layered(
            stage,
            number,
            state,
            key,
            make,
            steps.run_text(state, argv),
            state.layers,
            None if same is None else lambda: observed(same()),
        )

    def _execute(
        self, number: int, instruction: dockerfile.Run, running: runstep.Running, state: State, mounts: Mounts
    ) -> str:
        """Run ``instruction``; the name of its result, whose directory is in the store."""
        workshop = self._workshop
        network = runstep.network(workshop.job, instruction)
        workshop.runner().prepare(isolated=network == "isolated")  # while base layers are unpacked
        parents = self._snapshots(state)
        tree = workshop.snapshotter.view(parents)
        result = cache.fresh_result()
        running = replace(running, env=(*running.env, *secret_variables(workshop, instruction)))
        active = workshop.snapshotter.prepare(parents)
        try:
            workshop.snapshotter.add_mount_points(active, self._made)
            with self._turn(), mounts.mounted() as mounted:
                runstep.execute(
                    workshop,
                    number,
                    instruction,
                    running,
                    state,
                    tree,
                    active.rootfs,
                    mounted,
                    mounts.masked(),
                )
            workshop.snapshotter.commit(active, keys=(cache.snapshot_key(result),), description=instruction.original)
        except BaseException:
            workshop.snapshotter.remove(active)
            raise
        return result

    def _snapshots(self, state: State) -> Parents:
        """The layers of ``state`` as snapshots, bottom first; missing ones are made at the same time."""
        missing = [layer for layer in state.layers if not layer.snapshot.done]
        with nullcontext() if all(layer.unpacked() for layer in missing) else self._waiting("unpack"):
            together(self._workshop, [layer.snapshot for layer in missing])
        return tuple(layer.snapshot() for layer in state.layers)

    def tree_of(self, state: State) -> Tree:
        """The file system of ``state``, mounted for reading."""
        return self._workshop.snapshotter.view(self._snapshots(state))

    def snapshots_of(self, origin: Origin) -> Parents:
        """The layers of what ``origin`` names."""
        return self._snapshots(self.origin(origin, self._workshop.platform))

    def _copy(self, stage: Stage, number: int, state: State, instruction: dockerfile.Copy | dockerfile.Add) -> State:
        plan = self._copy_inputs(stage, instruction)
        # With a mode, --link is as good as not there (BuildKit, dockerfile2llb/convert_copy.go).
        alone = instruction.link and not instruction.chmod
        below = None if alone else Once(lambda: self.tree_of(state))
        is_add = isinstance(instruction, dockerfile.Add)
        head = "ADD" if is_add else "COPY"
        flags = "".join(
            f" --{name}={value}"
            for name, value in (("chown", instruction.chown), ("chmod", instruction.chmod))
            if value
        )
        parents = " --parents" if isinstance(instruction, dockerfile.Copy) and instruction.parents else ""
        words = [*instruction.sources, *(f"<<{each.name}" for each in instruction.heredocs), instruction.destination]
        text = f"{head}{parents}{flags} {' '.join(words)} # buildkit"
        destination = _destination(state.workdir, instruction.destination)

        def key(taken: Input) -> Observed:
            taken.nothing()  # the sources account for themselves
            return (
                "add" if is_add else "copy",
                "" if alone else state.tree,
                destination,
                instruction.chown,
                instruction.chmod,
                instruction.exclude,
                alone,
                bool(parents),
                instruction.unpack if isinstance(instruction, dockerfile.Add) else None,
                plan.key(),
            )

        def make() -> tuple[str, SpooledList[Entry]]:
            tree = below() if below is not None else None
            draft = copying.Plan(tree, self._workshop.directory, self._made)
            treatment = sources.copy_options(
                Once(lambda: self.tree_of(state)),
                instruction.chown,
                instruction.chmod,
                instruction.exclude,
            )
            plan.copy_to(draft, destination, treatment)
            entries = draft.finish()
            return content.name(self._workshop, entries), entries

        return self._layered(stage, number, state, key, make, text, again=make)

    def _copy_inputs(self, stage: Stage, instruction: dockerfile.Copy | dockerfile.Add) -> sources.Sources:
        def found() -> Files:
            if isinstance(instruction, dockerfile.Copy) and instruction.from_:
                return self.source(
                    graph.named_origin(
                        self.dockerfile, instruction.from_, stage.index, instruction.location, self.named, numbers=True
                    )
                )
            return self.source(MAIN_CONTEXT)

        return sources.of(self._workshop, instruction, found)

    def source(self, origin: Origin) -> Files:
        """The files that ``origin`` names, to copy from."""
        if isinstance(origin, FromContext):
            context = self._contexts.get(origin.name)
            if context is None:
                raise ContextError(
                    "there is no build context",
                    why="the Dockerfile came from stdin alone",
                    remedy="build with a directory: kanifold build DIRECTORY --file -",
                )
            if isinstance(context, protocol.FilesContext):
                self.contexts.add(origin.name)
                shared = ""
                if isinstance(context, protocol.DirectoryContext):
                    shared = keys.key("context", context.path, context.ignore, context.owners)
                return Files(partial(self._read_context, origin.name), None, origin.name, shared)
        state = self.origin(origin, self._workshop.platform)
        tree = Once(lambda: self.tree_of(state))
        return Files(lambda _taken: tree(), state.tree)

    def _read_context(self, name: str, taken: Input) -> Tree:
        """The files of the context ``name``, to be read as the input ``taken``."""
        taken.opened()
        return self._trees[name]()

    def _open_context(self, context: protocol.FilesContext) -> Tree:
        workshop = self._workshop
        match context:
            case protocol.DirectoryContext():
                directory = context.path
            case protocol.SentContext():
                directory = _received(workshop, context.name)
            case _:
                assert_never(context)
        return workshop.trees.keep(open_context(directory, context.ignore, owners=context.owners))

    def _workdir(self, stage: Stage, number: int, state: State, instruction: dockerfile.Workdir) -> State:
        path = steps.directory(state.workdir, instruction.path)
        moved = replace(state, config=replace(state.config, working_dir=path))
        if path == "/":
            return steps.noted(moved, "WORKDIR /")

        def make() -> tuple[str, SpooledList[Entry]]:
            tree = self.tree_of(state)
            owner = users.owner(tree, state.config.user) if state.config.user else None
            entries = copying.make_directory(tree, path, owner, self._made)
            return content.name(self._workshop, entries), entries

        def key(taken: Input) -> Observed:
            taken.nothing()
            return "workdir", state.tree, path, state.config.user

        return self._layered(stage, number, moved, key, make, f"WORKDIR {path}", again=make)

    def _layered(
        self,
        stage: Stage,
        number: int,
        state: State,
        observed: Callable[[Input], Observed],
        make: Callable[[], tuple[str, SpooledList[Entry] | None]],
        text: str,
        below: Sequence[Layer] = (),
        same: Callable[[], Observed] | None = None,
        again: Callable[[], tuple[str, SpooledList[Entry]]] | None = None,
    ) -> State:
        """``state`` with one more layer: found by what is ``observed``, or made by ``make`` and then findable.

        ``make`` returns the result's name and its entries, unless a directory in the store holds those. What is in the
        directory is a change to the layers ``below``; a result that is named by its content is the same on any.

        ``observed`` accounts for the input that it is given; else the job's answer is not cacheable.

        What is not found so may be under the key of ``same``, which takes longer to work out and holds for more.

        Another job of this build may know the result and not have packed it yet. That is no reason to do the step once
        more where ``again`` would give its entries, should that job not come to it.

        Working out what a COPY's sources are is part of the step: it is most of what an unchanged one costs.
        """
        workshop, store = self._workshop, self._workshop.store
        clock = self._start(number)
        fresh = self._ignores_cache(stage)
        made: Layer | None = None

        def look(key: _Key) -> CacheEntry | None:
            asked = [each.name for each in workshop.job.cache_from]
            found = cache.outcome(store, key.here) or cache.outcome_from(store, key.outside, asked)
            if found is None:
                return None
            if self._is_ours(found) and again is not None:
                return found
            return found if (self._is_ours(found) or not fresh) and cache.is_there(store, found.layer) else None

        try:
            key = _Key.of(observed(workshop.inputs.add("step")), workshop.job)
            known: tuple[_Key, ...] = (key,)
            outcome = look(key)
            if outcome is None:
                with locks.lock(store, f"step {key.here}", cancel=workshop.cancelled):
                    outcome = look(key) or (None if fresh else self._import(key.outside, text))
                    if outcome is None and same is not None:
                        known = (key, other := _Key.of(same(), workshop.job))
                        outcome = look(other) or (None if fresh else self._import(other.outside, text))
                        if outcome is not None and not outcome.foreign:
                            cache.note_outcome(store, key.here, outcome, text)
                    if outcome is None:
                        result, entries = make()
                        outcome = CacheEntry(result, _now(), workshop.job.build)
                        # Before others can find it, so that it is packed by who has the entries in hand.
                        made = self._taken(stage, from_result(workshop, result, outcome.created, entries, below))
                        for each in known:
                            cache.note_outcome(store, each.here, outcome, text)
        except LayerLost:
            raise  # the step will be started again
        except KanifoldError as error:
            if not faults.is_full(error):  # else it may be started again, too, with more room
                self._fail(clock, error)
            raise
        self._finish(clock, cached=made is None)
        workshop.inputs.found(key.here, outcome)
        held = made is not None or cache.is_held(store, outcome.layer)
        layer = made if made is not None else self._found(stage, outcome, below, None if held else again)
        promised = not held and (again is None or not self._is_ours(outcome))
        self.made += [Made(each.outside, outcome, layer, stage.index in self.graph.chain, promised) for each in known]
        return replace(
            steps.noted(state, text, layer=True, created=outcome.created),
            layers=(*state.layers, layer),
            tree=treename.above(state.tree, outcome, key.places),
        )

    def _taken(self, stage: Stage, layer: Layer) -> Layer:
        """``layer``, which ``stage`` has just made, on its way to where it is wanted."""
        if stage.index in self.graph.chain:
            self._on_layer(layer)
        else:
            self._workshop.later(layer.snapshot)  # now, while the files of the context are what they were for the key
        return layer

    def _found(
        self,
        stage: Stage,
        outcome: CacheEntry,
        below: Sequence[Layer],
        again: Callable[[], tuple[str, SpooledList[Entry]]] | None,
    ) -> Layer:
        """The layer of ``outcome``; when nobody has it yet, ``again`` gives its entries."""
        ours = self._is_ours(outcome)
        entries = _Entries(Once(again), outcome.result) if again is not None and ours else None
        layer = from_result(self._workshop, outcome.layer, outcome.created, entries, below)
        if ours and stage.index in self.graph.chain:
            self._on_layer(layer)
        return layer

    def _import(self, key: str, text: str) -> CacheEntry | None:
        """What an outside cache knows of the step ``key``, noted for builds that ask it."""
        store = self._workshop.store
        if not self._workshop.job.cache_from:
            return None
        found = self._workshop.exchange().find(key)
        debug.log("outside cache look-up", key=key, found="no" if found is None else found[1].name)
        if found is None:
            return None
        entry, place = found
        name = entry.name
        outcome = CacheEntry(entry.result, entry.created, foreign=name, place=place.name)
        if entry.blob is None:
            cache.note_known(store, name, replace(cache.known(store, name), promised=True))
            cache.note_outcome_from(store, key, place.name, outcome, text)
            return outcome
        known = cache.known(store, name)
        cache.note_known(
            store,
            name,
            cache.LayerInfo(
                entry.diff_id,
                (*(each for each in known.blobs if each.kind != entry.blob.kind), entry.blob),
                entry.machines,
                tuple(dict.fromkeys((*known.caches, place.location))),
            ),
        )
        cache.note_outcome_from(store, key, place.name, outcome, text)
        return outcome

    def _is_ours(self, found: CacheEntry) -> bool:
        """Whether a job of this build has done the step."""
        return bool(found.build) and found.build == self._workshop.job.build

    def _ignores_cache(self, stage: Stage) -> bool:
        job = self._workshop.job
        return job.no_cache or (bool(stage.name) and stage.name in {each.casefold() for each in job.no_cache_stages})

    def _start(self, number: int) -> _Clock:
        self._workshop.tell(protocol.Started(number))
        clock = self._clocks.step = _Clock(number, time.monotonic())
        return clock

    def _stop(self, clock: _Clock) -> float:
        """How many seconds the step took."""
        self._clocks.step = None
        return round(time.monotonic() - clock.started - clock.waited, 3)

    def _finish(self, clock: _Clock, *, cached: bool) -> None:
        self._workshop.tell(protocol.Finished(clock.number, self._stop(clock), cached))
        with self._counting:
            if cached:
                self.cached += 1
            else:
                self.ran += 1

    def _fail(self, clock: _Clock, error: KanifoldError) -> None:
        """Say that a step failed: the one whose ``error`` it is, and none that waited for it or was stopped with it."""
        with self._counting:
            told = isinstance(error, Interrupted) or any(each is error for each in self._told)
            self._told.append(error)
        seconds = self._stop(clock)
        if not told:
            self._workshop.tell(protocol.Finished(clock.number, seconds, error=str(error)))

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        """While the step of this thread, if any, waits for ``what``: that is none of its own time."""
        clock: _Clock | None = getattr(self._clocks, "step", None)
        if clock is None:
            yield
            return
        self._workshop.tell(protocol.Held(clock.number, what))
        began = time.monotonic()
        self._clocks.step = None  # what others do on this thread is not part of the step
        try:
            yield
        finally:
            clock.waited += time.monotonic() - began
            self._clocks.step = clock
            self._workshop.tell(protocol.Held(clock.number))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One of the places for steps that run."""
        slots = self._workshop.slots
        if not slots.acquire(blocking=False):
            with self._waiting("turn"):
                slots.acquire()
        try:
            yield
        finally:
            slots.release()


def _received(workshop: Workshop, name: str) -> str:
    """The directory that the orchestrator sends as the context ``name``."""
    directory = workshop.scratch()
    path = os.path.join(workshop.scratch(), "context.tar")
    try:
        with open(path, "wb") as file:
            if not workshop.conversation.ask_into(file.write, protocol.AskContext(name)):
                raise ContextError(f"the orchestrator does not know the context {name!r}")
    except OSError as error:
        raise StoreError("cannot keep the build context", why=error.strerror or str(error)) from error
    with open(path, "rb") as stream:
        unpack.extract(stream, directory, limits=unpack.Limits())
    os.unlink(path)
    return directory


def _from_base(platform: Platform, found: base.Base) -> State:
    return State(
        platform,
        found.config,
        found.layers,
        treename.name(found.tree),
        base_history=len(found.config.history),
    )


def _destination(workdir: str, text: str) -> str:
    """Where COPY goes: absolute, a trailing ``/`` or ``/.`` kept."""
    path = normal_path(workdir, text or ".")
    if text in ("", ".") or text.endswith(("/", "/.")):
        return path.rstrip("/") + "/"
    return path


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

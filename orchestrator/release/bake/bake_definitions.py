"""The variables, functions, groups and targets of bake files, evaluated when they are needed.

Source: https://docs.docker.com/build/bake/reference/. What is declared in several files is merged in the order of the
files. A value that refers to another is evaluated after it; a cycle is an error.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from executor.dockerfile.suggestions import hint
from orchestrator.release.bake.bake_target import ATTRIBUTES, BakeTarget, attribute_value, field, read_attribute, truth
from orchestrator.release.hcl import hcl_functions, hcl_parser
from orchestrator.release.hcl import hcl_values as values
from orchestrator.release.hcl.hcl_evaluation import STEP_LIMIT, TIME_LIMIT, HclFunction, HclScope, arguments, evaluate
from orchestrator.release.hcl.hcl_functions import FUNCTIONS
from orchestrator.release.hcl.hcl_syntax import (
    CallExpression,
    Expression,
    FilePlace,
    HclBlock,
    HclBody,
    LiteralExpression,
    TupleExpression,
    VariableExpression,
)
from orchestrator.release.hcl.hcl_values import ANY, HclType, HclValue, ValueRefused
from orchestrator.release.model import Group
from platforms.errors import printable

NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,128}")
"""What the names of targets and groups are."""
NO_ENVIRONMENT: Final = "BUILDX_BAKE_DISABLE_VARS_ENV_LOOKUP"
"""An environment variable: if it is true, variables do not take values from the environment."""
TARGET_LIMIT: Final = 4096
"""How many targets the files may declare, those of matrices included."""
_DEPTH_LIMIT: Final = 32
"""How deeply functions and variables may refer to each other."""
_JSON: Final = "_JSON"
"""What the name of an environment variable with a value in JSON ends with."""
_BLOCKS: Final = ("variable", "function", "target", "group")
_GROUP_KEYS: Final = ("description", "targets")
_VARIABLE_KEYS: Final = ("type", "default", "description")
_FUNCTION_KEYS: Final = ("params", "variadic_params", "result")


BlockKey = tuple[str, int, int]
"""Identifies a block: file, line and column of what is in it."""


class Declared(msgspec.Struct, frozen=True):
    """What files declare, before inheritance and overrides."""

    targets: tuple[BakeTarget, ...]
    """In the order of the files; several may have one name."""
    groups: tuple[Group, ...]
    places: Mapping[str, FilePlace]
    """Where targets and groups are declared."""


class UserFunction(msgspec.Struct, frozen=True):
    """A ``function`` block."""

    parameters: tuple[str, ...]
    rest: str
    """The name of the variable that has further arguments; "" if there are none."""
    result: Expression
    definitions: Definitions

    def call(self, expression: CallExpression, scope: HclScope) -> HclValue:
        """Return the result for the arguments of ``expression``. Raises ``UsageError``."""
        given = arguments(expression, scope)
        wanted = len(self.parameters)
        if len(given) < wanted or (len(given) > wanted and not self.rest):
            why = f"it takes {wanted} argument{'s' * (wanted != 1)}, and here are {len(given)}"
            raise expression.place.refusal(f"{expression.name}() is called wrongly", why=why)
        if None in given:
            raise expression.place.refusal(f"argument {given.index(None) + 1} of {expression.name}() is null")
        variables: dict[str, HclValue] = dict(zip(self.parameters, given, strict=False))
        if self.rest:
            variables[self.rest] = values.sequence("tuple", given[wanted:])
        with self.definitions.entered(f"function {expression.name}", expression.place):
            return evaluate(self.result, HclScope(self.definitions, variables))


class _Entered:
    """Marks something as being evaluated, for as long as a ``with`` lasts."""

    def __init__(self, active: set[str], name: str) -> None:
        self._active = active
        self._name = name

    def __enter__(self) -> None:
        self._active.add(self._name)

    def __exit__(self, *_: object) -> None:
        self._active.discard(self._name)


class Definitions:
    """The blocks of all files, with what was evaluated of them. It is what expressions refer to."""

    def __init__(self, bodies: Iterable[HclBody], built_in: Mapping[str, str], given: Mapping[str, str]) -> None:
        self._built_in = built_in
        self._given = given
        self._variables: dict[str, HclBlock] = {}
        self._constants: dict[str, Expression] = {}
        self._functions: dict[str, HclFunction | HclBlock] = {}
        self._blocks: list[HclBlock] = []
        self._names: dict[BlockKey, tuple[str, ...]] = {}
        self._scopes: dict[BlockKey, tuple[HclScope, ...]] = {}
        self._known: dict[str, HclValue] = {}
        self._fields: dict[tuple[BlockKey, int, str], Any] = {}
        self._active: set[str] = set()
        self._steps = 0
        self._deadline = time.monotonic() + TIME_LIMIT
        for body in bodies:
            self._constants.update(body.attributes)
            for block in body.blocks:
                self._add(block)
        for name in self._reserved():
            self._constants.pop(name, None)

    def _reserved(self) -> tuple[str, ...]:
        return ("target", "group", "function", *self._built_in)

    def _add(self, block: HclBlock) -> None:
        if block.kind not in _BLOCKS:
            raise block.place.refusal(f"unknown block {printable(block.kind)}{hint(block.kind, _BLOCKS)}")
        if len(block.labels) != 1:
            raise block.place.refusal(f"a {block.kind} has one name", why=f"here are {len(block.labels)}")
        name = block.labels[0]
        if block.kind == "variable" and name not in self._reserved():
            self._variables[name] = block
        elif block.kind == "function" and name not in self._reserved():
            self._functions[name] = block
        elif block.kind in ("target", "group"):
            self._blocks.append(block)

    def spend(self, place: FilePlace) -> None:
        """Count one step. Raises ``UsageError`` if there were too many."""
        self._steps += 1
        if self._steps > STEP_LIMIT or time.monotonic() > self._deadline:
            why = f"it has more than {STEP_LIMIT} expressions, or takes more than {TIME_LIMIT:.0f} seconds"
            raise place.refusal("the file takes too long", why=why)

    def entered(self, name: str, place: FilePlace) -> _Entered:
        """Mark ``name`` as being evaluated. Raises ``UsageError`` if it is already: a cycle."""
        if name in self._active:
            raise place.refusal(f"{printable(name)} refers to itself")
        if len(self._active) >= _DEPTH_LIMIT:
            raise place.refusal("references are nested too deeply")
        return _Entered(self._active, name)

    def function(self, name: str, place: FilePlace) -> HclFunction:
        """Return the function ``name``, of the standard library first. Raises ``UsageError`` if there is none."""
        found = FUNCTIONS.get(name) or self._functions.get(name)
        if found is None:
            similar = [each for each in (*self._functions, *FUNCTIONS) if each[0] == name[0]]
            raise place.refusal(f"unknown function {printable(name)}{hint(name, similar)}")
        if isinstance(found, HclBlock):
            self._functions[name] = found = self._user_function(found)
        return found

    def _user_function(self, block: HclBlock) -> UserFunction:
        _check_keys(block, _FUNCTION_KEYS)
        attributes = block.body.attributes
        for key in ("params", "result"):
            if key not in attributes:
                raise block.place.refusal(f"the function {printable(block.labels[0])} has no {key}")
        params = attributes["params"]
        if not isinstance(params, TupleExpression):
            raise params.place.refusal("a list of names is expected")
        rest = attributes.get("variadic_params")
        return UserFunction(
            tuple(map(_keyword, params.items)), _keyword(rest) if rest else "", attributes["result"], self
        )

    def variable(self, name: str, place: FilePlace) -> HclValue:
        """Return the value of a variable. Raises ``UsageError``."""
        if name in self._built_in:
            return self._built_in[name]
        if name in self._known:
            return self._known[name]
        if name in ("target", "group"):
            raise place.refusal(
                f"{name} is not a variable", remedy=f"name one and its attribute: {name}.NAME.ATTRIBUTE"
            )
        if name not in self._constants and name not in self._variables:
            near = hint(name, (*self._variables, *self._constants))
            raise place.refusal(f"unknown variable {printable(name)}{near}")
        with self.entered(f"variable {name}", place):
            if name in self._constants:
                self._known[name] = evaluate(self._constants[name], HclScope(self, {}))
            else:
                self._known[name] = self._variable_value(name, self._variables[name])
        return self._known[name]

    def _variable_value(self, name: str, block: HclBlock) -> HclValue:
        _check_keys(block, _VARIABLE_KEYS)
        type_ = self._type(block)
        typed = type_ is not None
        default = block.body.attributes.get("default")
        value: HclValue = None if typed else ""
        if default is not None:
            value = evaluate(default, HclScope(self, {}))
            try:
                value = values.convert(value, type_ or ANY)
            except ValueRefused as error:
                raise default.place.refusal(f"the default of {printable(name)} is wrong", why=str(error)) from error
        found, encoded = self._override(name, typed=typed)
        if found is None:
            return value
        try:
            if type_ is not None and encoded:
                decoded = FUNCTIONS["jsondecode"].apply(found)  # type: ignore[attr-defined]
                return values.convert(decoded, type_)
            if type_ is not None:
                return _from_csv(found, type_)
            return _from_text(found, values.type_of(value) if default is not None else ANY)
        except ValueRefused as error:
            what = f"the value {printable(found, 80)!r} of the variable {printable(name)} is wrong"
            raise block.place.refusal(what, why=str(error)) from error

    def _type(self, block: HclBlock) -> HclType | None:
        expression = block.body.attributes.get("type")
        if isinstance(expression, LiteralExpression) and expression.value is None:
            return None
        if isinstance(expression, LiteralExpression) and isinstance(expression.value, str):  # in a file in JSON
            inner = hcl_parser.parse(f"x = {expression.value}\n".encode(), expression.place.source.file)
            expression = inner.attributes.get("x")
        return hcl_functions.type_constraint(expression) if expression is not None else None

    def _override(self, name: str, *, typed: bool) -> tuple[str | None, bool]:
        """Return the value that a variable is given from outside, and whether it is in JSON."""
        found = self._looked_up(name)
        if found is None or typed:
            encoded = name + _JSON
            if encoded not in self._variables and encoded not in self._built_in:
                other = self._looked_up(encoded)
                if other is not None:
                    return other, True
        return found, False

    def _looked_up(self, name: str) -> str | None:
        if name in self._given:
            return self._given[name]
        try:
            hidden = truth(os.environ.get(NO_ENVIRONMENT, "false"))
        except ValueRefused:
            hidden = False
        found = None if hidden else os.environ.get(name)
        return found.encode(errors="replace").decode() if found is not None else None

    def reference(self, kind: str, name: str, attribute: str, place: FilePlace) -> HclValue:
        """Return the value of ``kind.name.attribute``; of ``kind.name``, if ``attribute`` is empty.

        Raises ``UsageError`` if there is no such target or group.
        """
        blocks = [(block, at) for block in self._blocks if block.kind == kind for at in self._places_of(block, name)]
        if not blocks:
            known = [each for block in self._blocks if block.kind == kind for each in self.names(block)]
            raise place.refusal(f"unknown {kind} {printable(name)}{hint(name, known)}")
        block, at = blocks[-1]
        known_attributes = _GROUP_KEYS if kind == "group" else (*ATTRIBUTES,)
        if attribute and attribute not in known_attributes:
            near = hint(attribute, known_attributes)
            raise place.refusal(f"a {kind} has no attribute {printable(attribute)}{near}")
        if not attribute:
            found = {each: self._attribute_value(block, at, each) for each in known_attributes}
            return values.mapping("object", found)
        with self.entered(f"{kind} {name}.{attribute}", place):
            return self._attribute_value(block, at, attribute)

    def _attribute_value(self, block: HclBlock, at: int, attribute: str) -> HclValue:
        known = "texts" if attribute == "targets" else ATTRIBUTES[attribute]
        found = self._field(block, at, attribute)
        return attribute_value("tags" if known == "texts" else attribute, found)

    def _places_of(self, block: HclBlock, name: str) -> list[int]:
        return [at for at, each in enumerate(self.names(block)) if each == name]

    def _field(self, block: HclBlock, at: int, attribute: str) -> Any:
        """Return the value of an attribute of a block, for one of the combinations of its matrix."""
        key = (_key(block), at, attribute)
        if key not in self._fields:
            expression = block.body.attributes.get(attribute)
            value = evaluate(expression, self.scopes(block)[at]) if expression is not None else None
            try:
                self._fields[key] = read_attribute("tags" if attribute == "targets" else attribute, value)
            except ValueRefused as error:
                place = expression.place if expression is not None else block.place
                raise place.refusal(f"the value of {attribute} is wrong", why=str(error)) from error
        return self._fields[key]

    def scopes(self, block: HclBlock) -> tuple[HclScope, ...]:
        """Return a scope for each combination of the matrix of ``block``; one, if there is no matrix."""
        if _key(block) not in self._scopes:
            self._scopes[_key(block)] = tuple(self._combinations(block))
        return self._scopes[_key(block)]

    def _combinations(self, block: HclBlock) -> Iterator[HclScope]:
        expression = block.body.attributes.get("matrix")
        if expression is None:
            yield HclScope(self, {})
            return
        if block.kind == "group":
            raise expression.place.refusal("a group has no matrix")
        matrix = evaluate(expression, HclScope(self, {}))
        if not isinstance(matrix, values.MappingValue):
            raise expression.place.refusal("a matrix is a map of lists")
        axes: list[tuple[HclValue, ...]] = []
        count = 1
        for name, each in matrix.entries.items():
            if not isinstance(each, values.SequenceValue | values.MappingValue):
                raise expression.place.refusal(f"the matrix has no list of values for {printable(name)}")
            axes.append(each.items if isinstance(each, values.SequenceValue) else tuple(each.entries.values()))
            count *= len(axes[-1])
        if count > TARGET_LIMIT:
            raise expression.place.refusal("the matrix has too many combinations", why=f"more than {TARGET_LIMIT}")
        for combination in itertools.product(*axes):
            yield HclScope(self, dict(zip(matrix.entries, combination, strict=True)))

    def names(self, block: HclBlock) -> tuple[str, ...]:
        """Return the name of ``block`` for each combination of its matrix. Raises ``UsageError``."""
        if _key(block) in self._names:
            return self._names[_key(block)]
        label = _checked_name(block.labels[0], block.place)
        expression = block.body.attributes.get("name")
        if expression is None:
            found = (label,) * len(self.scopes(block))
        else:
            if block.kind == "group" or "matrix" not in block.body.attributes:
                raise expression.place.refusal("only a target with a matrix has a name besides its label")
            found = tuple(self._name(expression, each) for each in self.scopes(block))
        repeated = next((each for each in found if found.count(each) > 1), "") if len(found) > 1 else ""
        if repeated:
            raise block.place.refusal(
                f"several combinations of the matrix are called {printable(repeated)}",
                remedy="give the target a name with all variables of the matrix",
            )
        self._names[_key(block)] = found
        return found

    def _name(self, expression: Expression, scope: HclScope) -> str:
        try:
            return _checked_name(values.as_string(evaluate(expression, scope)), expression.place)
        except ValueRefused as error:
            raise expression.place.refusal("it is not a name", why=str(error)) from error

    def declared(self) -> Declared:
        """Return all targets and groups. Raises ``UsageError`` for the first fault, an invalid variable included."""
        for name, block in self._variables.items():
            self.variable(name, block.place)
        for block in self._variables.values():
            self._validate(block)
        for name, function in tuple(self._functions.items()):
            if isinstance(function, HclBlock):
                self.function(name, function.place)
        for name, expression in self._constants.items():
            self.variable(name, expression.place)
        targets: list[BakeTarget] = []
        groups: list[Group] = []
        places: dict[str, FilePlace] = {}
        renamed: dict[str, list[str]] = {}
        for block in self._blocks:
            known = _GROUP_KEYS if block.kind == "group" else (*ATTRIBUTES, "matrix", "name")
            names = self.names(block)
            _check_keys(block, known)
            for at, name in enumerate(names):
                places.setdefault(name, block.place)
                if block.kind == "group":
                    groups.append(self._group(block, name))
                    continue
                found = {
                    field(each): self._field(block, at, each) for each in block.body.attributes if each in ATTRIBUTES
                }
                targets.append(BakeTarget(name, **{key: each for key, each in found.items() if each is not None}))
            if block.kind == "target":
                renamed.setdefault(block.labels[0], []).extend(names)
            if len(targets) > TARGET_LIMIT:
                raise block.place.refusal("there are too many targets", why=f"more than {TARGET_LIMIT}")
        named = {each.name for each in groups}
        for label, members in renamed.items():
            if members and set(members) != {label} and label not in named:
                groups.append(Group(label, tuple(dict.fromkeys(members))))
        return Declared(tuple(targets), tuple(groups), places)

    def _group(self, block: HclBlock, name: str) -> Group:
        if "targets" not in block.body.attributes:
            raise block.place.refusal(f"the group {printable(name)} has no targets")
        description = self._field(block, 0, "description") if "description" in block.body.attributes else ""
        return Group(name, tuple(dict.fromkeys(self._field(block, 0, "targets") or ())), description or "")

    def _validate(self, block: HclBlock) -> None:
        for each in block.body.blocks:
            if each.kind != "validation":
                raise each.place.refusal(f"unknown block {printable(each.kind)}{hint(each.kind, ('validation',))}")
            _check_keys(each, ("condition", "error_message"))
            condition = each.body.attributes.get("condition")
            if condition is None:
                raise each.place.refusal("a validation has a condition")
            try:
                passed = values.as_bool(evaluate(condition, HclScope(self, {})))
            except ValueRefused as error:
                raise condition.place.refusal("the condition is not a bool", why=str(error)) from error
            if not passed:
                message = each.body.attributes.get("error_message")
                why = values.as_string(evaluate(message, HclScope(self, {}))) if message else ""
                what = f"the value of the variable {printable(block.labels[0])} is not valid"
                raise condition.place.refusal(what, why=printable(why))


def _key(block: HclBlock) -> BlockKey:
    place = block.body.place
    return place.source.file, place.line, place.column


def _check_keys(block: HclBlock, known: tuple[str, ...]) -> None:
    for name, place in block.body.names.items():
        if name == "policy" and block.kind == "target":
            raise place.refusal(
                "source policies are not supported", remedy="remove policy, if the build is to be without"
            )
        if name not in known and block.kind in ("function", "validation"):  # elsewhere bake takes no notice of it
            near = hint(name, known)
            raise place.refusal(
                f"a {block.kind} has no {printable(name)}{near}", remedy=f"known are {', '.join(known)}"
            )
    if block.kind != "variable" and block.body.blocks:
        inner = block.body.blocks[0]
        raise inner.place.refusal(f"a {block.kind} has no blocks", remedy=f"{printable(inner.kind)} = {{ … }}")


def _checked_name(name: str, place: FilePlace) -> str:
    if not NAME.fullmatch(name):
        why = "a name has letters, digits, _ and -"
        raise place.refusal(f"{printable(name, 60)!r} is not a name", why=why, remedy="sanitize() makes one")
    return name


def _keyword(expression: Expression) -> str:
    if isinstance(expression, VariableExpression):
        return expression.name
    if isinstance(expression, LiteralExpression) and isinstance(expression.value, str):  # in a file in JSON
        return expression.value
    raise expression.place.refusal("the name of a parameter is expected")


def _from_text(text: str, type_: HclType) -> HclValue:
    """Return the value that ``text`` of the environment is for a variable with a value of ``type_``."""
    if type_.kind in ("string", "any"):
        return text
    if type_.kind == "bool":
        return truth(text)
    if type_.kind == "number":
        return values.parse_number(text)
    raise ValueRefused(f"a {type_.kind} cannot be given as text, unless the variable has a type")


def _from_csv(text: str, type_: HclType) -> HclValue:
    """Return the value that ``text`` is for a variable whose type is said: composite ones in CSV."""
    import csv

    if type_.kind in ("string", "bool", "number"):
        return _from_text(text, type_)
    if type_.kind in ("any", "object"):
        if type_.kind == "any":
            return text
        raise ValueRefused("an object is given in JSON: use the name with _JSON at its end")
    try:
        items = next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise ValueRefused("it is not CSV") from error
    if type_.kind == "tuple":
        if len(items) != len(type_.items):
            raise ValueRefused(f"{len(type_.items)} values are required, and here are {len(items)}")
        return values.sequence("tuple", (_from_text(*each) for each in zip(items, type_.items, strict=True)))
    element = type_.element or ANY
    if type_.kind == "map":
        pairs = [each.partition(":") for each in items]
        if not all(colon for _, colon, _ in pairs):
            raise ValueRefused("a map is given as KEY:VALUE,KEY:VALUE")
        return values.mapping("map", {key: _from_text(each, element) for key, _, each in pairs})
    return values.sequence("set" if type_.kind == "set" else "list", (_from_text(each, element) for each in items))

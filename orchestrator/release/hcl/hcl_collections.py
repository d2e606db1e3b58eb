"""Functions of HCL on lists, sets, maps and objects: ``hcl_functions.py`` names them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from orchestrator.release.hcl import hcl_values as values
from orchestrator.release.hcl.hcl_values import HclValue, MappingValue, SequenceValue, ValueRefused


def chunks(items: SequenceValue, size: int) -> SequenceValue:
    """Return lists of ``size`` items each; 0 for a single one."""
    length_ = values.as_whole(size)
    if length_ < 0:
        raise ValueRefused("the size is negative")
    if not items.items:
        return values.sequence("list", ())
    parts = _parts(items.items, length_ or len(items.items))
    return values.sequence("list", (values.sequence("list", each) for each in parts))


def _parts(items: tuple[HclValue, ...], length_: int) -> Iterator[tuple[HclValue, ...]]:
    return (items[at : at + length_] for at in range(0, len(items), length_))


def coalesce(*given: HclValue) -> HclValue:
    """Return the first argument that is not null, as one of the common type."""
    type_ = values.unify(map(values.type_of, given)) if given else None
    if type_ is None:
        raise ValueRefused("all arguments have to be of one type")
    for each in given:
        if each is not None:
            return values.convert(each, type_)
    raise ValueRefused("all arguments are null")


def coalesce_list(*given: HclValue) -> SequenceValue:
    """Return the first argument that is not empty."""
    for each in given:
        if each is not None and (not isinstance(each, SequenceValue) or each.kind == "set"):
            raise ValueRefused("the arguments have to be lists or tuples")
    for each in given:
        if isinstance(each, SequenceValue) and each.items:
            return each
    raise ValueRefused("all arguments are empty")


def compact(items: SequenceValue) -> SequenceValue:
    """Return the strings that are not empty."""
    return values.sequence("list", (each for each in items.items if each))


def concat(*given: HclValue) -> SequenceValue:
    """Return the items of all lists and tuples: a list, if all are lists of types that unify."""
    if not given:
        raise ValueRefused("at least one argument is required")
    sequences = [each for each in given if isinstance(each, SequenceValue) and each.kind != "set"]
    if len(sequences) < len(given):
        raise ValueRefused("all arguments have to be lists or tuples")
    items = itertools.chain.from_iterable(each.items for each in sequences)
    if all(each.kind == "list" for each in sequences):
        type_ = values.unify(map(values.type_of, sequences))
        if type_ is not None:
            return values.sequence("list", (values.convert(each, type_.element or values.ANY) for each in items))
    return values.sequence("tuple", items)


def contains(items: HclValue, value: HclValue) -> bool:
    """Tell whether ``value`` is among the items."""
    if not isinstance(items, SequenceValue):
        raise ValueRefused("the first argument has to be a list, a tuple or a set")
    return any(values.equal(each, value) for each in items.items)


def distinct(items: SequenceValue) -> SequenceValue:
    """Return each item once, in the order of their first places."""
    if all(isinstance(each, str) for each in items.items):
        return values.sequence("list", dict.fromkeys(items.items))
    found: list[HclValue] = []
    for each in items.items:
        if not any(values.equal(each, other) for other in found):
            found.append(each)
        if len(found) > values.COMPARED_LIMIT:
            raise ValueRefused("there are too many items")
    return values.sequence("list", found)


def element_of(items: HclValue, at: int) -> HclValue:
    """Return the item ``at``, counted around the end."""
    if not isinstance(items, SequenceValue) or items.kind == "set":
        raise ValueRefused("the first argument has to be a list or a tuple")
    if not items.items:
        raise ValueRefused("the list is empty")
    return items.items[values.as_whole(at) % len(items.items)]


def flatten(items: HclValue) -> SequenceValue:
    """Return the items, and those of sequences among them in their places."""
    if not isinstance(items, SequenceValue):
        raise ValueRefused("the argument has to be a list, a tuple or a set")
    return values.sequence("tuple", _flat(items))


def _flat(items: SequenceValue) -> Iterator[HclValue]:
    for each in items.items:
        if isinstance(each, SequenceValue):
            yield from _flat(each)
        else:
            yield each


def has_index(collection: HclValue, key: HclValue) -> bool:
    """Tell whether the collection has an element with ``key``."""
    if isinstance(collection, MappingValue):
        if collection.kind == "object":
            raise ValueRefused("the first argument has to be a list, a map or a tuple")
        return isinstance(key, str) and key in collection.entries
    if not isinstance(collection, SequenceValue) or collection.kind == "set":
        raise ValueRefused("the first argument has to be a list, a map or a tuple")
    return isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(collection.items)


def index(collection: HclValue, key: HclValue) -> HclValue:
    """Return the element with ``key``."""
    if isinstance(collection, MappingValue) and collection.kind == "object":
        raise ValueRefused("the first argument has to be a list, a map or a tuple")
    if isinstance(collection, SequenceValue) and not values.is_number(key):
        raise ValueRefused("the key of a list has to be a number")
    return values.element(collection, key)


def index_of(items: HclValue, value: HclValue) -> int:
    """Return the place of the first item that is equal to ``value``."""
    if not isinstance(items, SequenceValue) or items.kind == "set":
        raise ValueRefused("the first argument has to be a list or a tuple")
    for at, each in enumerate(items.items):
        if values.equal(each, value):
            return at
    raise ValueRefused("the list is empty" if not items.items else "there is no such item")


def keys(collection: HclValue) -> SequenceValue:
    """Return the sorted keys: a list for a map, a tuple for an object."""
    found = _mapping(collection)
    return values.sequence("list" if found.kind == "map" else "tuple", found.entries)


def length(collection: HclValue) -> int:
    """Return the number of elements."""
    if isinstance(collection, MappingValue) and collection.kind == "map":
        return len(collection.entries)
    if isinstance(collection, SequenceValue):
        return len(collection.items)
    raise ValueRefused("the argument has to be a list, a map or a tuple")


def lookup(collection: HclValue, key: str, default: HclValue) -> HclValue:
    """Return the element with ``key``, or ``default`` converted to the type of the elements."""
    found = _mapping(collection)
    if key in found.entries:
        return found.entries[key]
    type_ = values.type_of(found).element if found.kind == "map" else None
    return values.convert(default, type_) if type_ is not None else default


def merge(*given: HclValue) -> MappingValue:
    """Return the entries of all maps and objects; later ones win."""
    mappings = [_mapping(each) for each in given if each is not None]
    entries: dict[str, HclValue] = {}
    for each in mappings:
        entries.update(each.entries)
    alike = len({values.type_of(each) for each in mappings}) == 1 and len(mappings) == len(given)
    return values.mapping("map" if alike and mappings[0].kind == "map" else "object", entries)


def reverse_list(items: HclValue) -> SequenceValue:
    """Return the items from the last to the first."""
    if not isinstance(items, SequenceValue):
        raise ValueRefused("the argument has to be a list or a tuple")
    return values.sequence("tuple" if items.kind == "tuple" else "list", reversed(items.items))


def set_has_element(items: SequenceValue, value: HclValue) -> bool:
    """Tell whether ``value`` is in the set."""
    return any(values.equal(each, value) for each in items.items)


def set_intersection(*sets: SequenceValue) -> SequenceValue:
    """Return what is in all sets."""
    _check_count(*sets)
    first, *others = _alike(sets)
    return values.sequence("set", (each for each in first.items if all(set_has_element(one, each) for one in others)))


def set_subtract(one: SequenceValue, other: SequenceValue) -> SequenceValue:
    """Return what is in ``one`` and not in ``other``."""
    _check_count(one, other)
    one, other = _alike((one, other))
    return values.sequence("set", (each for each in one.items if not set_has_element(other, each)))


def set_symmetric_difference(*sets: SequenceValue) -> SequenceValue:
    """Return what is in one of two sets and not in the other, from left to right."""
    found, *others = _alike(sets)
    for each in others:
        items = (*set_subtract(found, each).items, *set_subtract(each, found).items)
        found = values.sequence("set", items)
    return found


def set_union(*sets: SequenceValue) -> SequenceValue:
    """Return what is in any set."""
    return values.sequence("set", itertools.chain.from_iterable(each.items for each in _alike(sets)))


def set_product(*given: HclValue) -> SequenceValue:
    """Return tuples of all combinations: a list, if no argument is a set."""
    if len(given) < 2:
        raise ValueRefused("at least two arguments are required")
    sequences = [each for each in given if isinstance(each, SequenceValue)]
    if len(sequences) < len(given):
        raise ValueRefused("the arguments have to be sets or lists")
    if math.prod(len(each.items) for each in sequences) * len(sequences) > values.SIZE_LIMIT:
        raise ValueRefused("the value is too large")
    kind = "set" if any(each.kind == "set" for each in sequences) else "list"
    columns = (values.convert(each, values.HclType("list", values.ANY)) for each in sequences)
    items = [each.items for each in columns if isinstance(each, SequenceValue)]
    return values.sequence(kind, (values.sequence("tuple", each) for each in itertools.product(*items)))  # type: ignore[arg-type]


def slice_of(items: HclValue, start: int, end: int) -> SequenceValue:
    """Return the items from ``start`` up to ``end``."""
    if not isinstance(items, SequenceValue) or items.kind == "set":
        raise ValueRefused("the first argument has to be a list or a tuple")
    first, last = values.as_whole(start), values.as_whole(end)
    if not 0 <= first <= last <= len(items.items):
        raise ValueRefused(f"the indices have to be from 0 to {len(items.items)}, the end not before the start")
    return values.sequence(items.kind, items.items[first:last])


def sort(items: SequenceValue) -> SequenceValue:
    """Return the strings in the order of their characters."""
    if None in items.items:
        raise ValueRefused("an item is null")
    return values.sequence("list", sorted(items.items, key=lambda text: str(text).encode(errors="replace")))


def values_of(collection: HclValue) -> SequenceValue:
    """Return the values in the order of their keys: a list for a map, a tuple for an object."""
    found = _mapping(collection)
    return values.sequence("list" if found.kind == "map" else "tuple", found.entries.values())


def zip_map(names: SequenceValue, items: HclValue) -> MappingValue:
    """Return a map of keys and values from two lists; an object, if the values are a tuple."""
    if not isinstance(items, SequenceValue) or items.kind == "set":
        raise ValueRefused("the second argument has to be a list or a tuple")
    if len(names.items) != len(items.items):
        raise ValueRefused(f"there are {len(names.items)} keys and {len(items.items)} values")
    entries = {values.as_string(key): each for key, each in zip(names.items, items.items, strict=True)}
    return values.mapping("map" if items.kind == "list" else "object", entries)


def _mapping(value: HclValue) -> MappingValue:
    if not isinstance(value, MappingValue):
        raise ValueRefused("a map or an object is required")
    return value


def _alike(sets: tuple[SequenceValue, ...]) -> list[SequenceValue]:
    """Return the sets with elements of one type."""
    types = [values.type_of(each).element or values.ANY for each in sets if each.items]
    type_ = values.unify(types) if types else values.ANY
    if type_ is None:
        raise ValueRefused("the sets have to have elements of one type")
    found = (values.convert(each, values.HclType("set", type_)) for each in sets)
    return [each for each in found if isinstance(each, SequenceValue)]


def _check_count(*sets: SequenceValue) -> None:
    if sum(len(each.items) for each in sets) > 4 * values.COMPARED_LIMIT:
        raise ValueRefused("the sets are too large")

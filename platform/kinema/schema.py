"""What a spec (a pydantic model) allows at each place of its tree.

Loading needs it three times: to merge layers without mixing two masks, to name the place of a
problem as its author wrote it, and to list the keys for `--help`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Model = type[BaseModel]


@dataclass(frozen=True)
class Place:
    """The alternatives that the value at one place may be: models, containers or plain types."""

    members: tuple[Any, ...]

    @classmethod
    def of(cls, annotation: Any) -> Place:
        """The place an annotation describes. `None` is left out of the alternatives."""
        return cls(tuple(dict.fromkeys(_members(annotation))))

    @property
    def models(self) -> list[Model]:
        """The alternatives that are sections with keys of their own."""
        return [m for m in self.members if isinstance(m, type) and issubclass(m, BaseModel)]

    @property
    def names(self) -> list[str]:
        """Values that `name` may have where it chooses what a section is; else empty."""
        return [name for model in self.models for name in _literal_names(model)]

    @property
    def keys(self) -> list[str]:
        """Known keys of the section; empty where keys are free."""
        return list(dict.fromkeys(key for model in self.models for key in model.model_fields))

    @property
    def is_free(self) -> bool:
        """Whether it is a mapping whose keys its author chooses."""
        return bool(self._mapping_values()) and not self.models

    @property
    def takes_one_key(self) -> bool:
        """Whether the rest of a dotted path is a single key, as in `sweep.axes.mask.name`."""
        below = [Place.of(value) for value in self._mapping_values()]
        return bool(below) and not any(b.models or b._mapping_values() for b in below)

    def child(self, key: str | int) -> Place:
        """The place under a key of a section or mapping, or an index of a list."""
        found: list[Any] = []
        for member in self.members:
            if member in self.models:
                if key in member.model_fields:
                    found += _members(member.model_fields[key].annotation)
            elif get_origin(member) is not None and get_args(member):
                found += _members(get_args(member)[-1 if _is_mapping(member) else 0])
        return Place(tuple(dict.fromkeys(found)))

    def narrow(self, tag: Any) -> Place:
        """The alternatives called `tag`: by the value of `name`, or by the name of the class."""
        return Place(tuple(m for m in self.models if tag in _literal_names(m) or tag == m.__name__))

    def default(self, key: str) -> dict[str, Any]:
        """What a section under `key` holds before anything is said about it, as plain data."""
        for model in self.models:
            if key in model.model_fields:
                value = _own_default(model.model_fields[key])
                return value.model_dump(mode="json") if isinstance(value, BaseModel) else {}
        return {}

    def _mapping_values(self) -> list[Any]:
        return [get_args(m)[1] for m in self.members if _is_mapping(m)]


def written_path(spec: Model, loc: Sequence[str | int]) -> tuple[tuple[str, ...], Place]:
    """A pydantic location as its author wrote it, and the place of what holds its last part.

    Pydantic puts the alternative it tried behind every key that has several: those are left out.
    """
    place = holder = Place((spec,))
    path: list[str] = []
    for part in loc:
        if len(place.members) > 1:
            place = place.narrow(part)
            continue
        path.append(str(part))
        holder, place = place, place.child(part)
    return tuple(path), holder


def split_path(spec: Model, dotted: str) -> tuple[str, ...]:
    """The keys of a dotted path. In a mapping of plain values the rest is one key."""
    place, path, rest = Place((spec,)), [], dotted.split(".")
    while rest:
        part = ".".join(rest) if place.takes_one_key else rest[0]
        path.append(part)
        place = place.child(part)
        rest = [] if part != rest[0] or len(rest) == 1 else rest[1:]
    return tuple(path)


@dataclass(frozen=True)
class Key:
    """One setting of a spec."""

    path: str
    field: FieldInfo
    place: Place
    default: Any
    """The value it has when nothing is said; meaningless where the field is required."""
    choice: str | None
    """The `name` that its section must have for the key to exist; None where it always does."""


def list_keys(
    spec: Model, above: str = "", section: BaseModel | None = None, choice: str | None = None
) -> Iterator[Key]:
    """Every setting of a spec, in the order of declaration, sections before what they hold.

    Args:
        spec: the model.
        above: dotted path of the section that the model describes, with a `.` behind.
        section: what that section holds by default, where it is a `spec`.
        choice: see `Key`.
    """
    for name, field in spec.model_fields.items():
        path, place = f"{above}{name}", Place.of(field.annotation)
        default = getattr(section, name) if isinstance(section, spec) else _own_default(field)
        yield Key(path, field, place, default, choice)
        for model in place.models:
            chosen = _literal_names(model) if len(place.models) > 1 else ()
            inside = default if isinstance(default, model) else None
            yield from list_keys(model, f"{path}.", inside, chosen[0] if chosen else choice)


def merge(place: Place, lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`upper` laid over `lower`, section by section; neither is changed.

    A section that `lower` does not mention starts from its field's default. One whose `name`
    chooses what it is, and which gets another name, starts anew: a tube mask keeps nothing of a box
    mask. An empty mapping empties one whose keys are free, which nothing else could.
    """
    if place.names:
        name = upper.get("name", lower.get("name"))
        lower = {} if name != lower.get("name") else lower
        place = place.narrow(name)
    merged = dict(lower)
    for key, value in upper.items():
        if isinstance(value, Mapping) and not value and place.child(key).is_free:
            merged[key] = {}
        elif isinstance(value, Mapping):
            below = merged.get(key)
            below = below if isinstance(below, Mapping) else place.default(key)
            merged[key] = merge(place.child(key), below, value)
        else:
            merged[key] = value
    return merged


def _own_default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})


def _members(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [] if annotation in (None, NoneType) else [annotation]


def _is_mapping(member: Any) -> bool:
    origin = get_origin(member)
    return isinstance(origin, type) and issubclass(origin, Mapping) and len(get_args(member)) == 2


def _literal_names(model: Model) -> tuple[str, ...]:
    field = model.model_fields.get("name")
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()

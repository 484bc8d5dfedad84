"""Settings: frozen pydantic models, from a YAML file, its `base:` and `key.path=value` pairs."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from kinema import yaml_text
from kinema.errors import ConfigError
from kinema.schema import Place, list_keys, merge, split_path, written_path


class Config(BaseModel):
    """Base of all settings: unknown keys are errors, nothing changes after it was made."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, ser_json_inf_nan="constants"
    )


T = TypeVar("T", bound=BaseModel)
_Origins = dict[tuple[str, ...], str]
"""Where each key was written: `file:line`, or the command line."""
_LONGEST_SHOWN = 80
TO_VARY = "to vary"
"""Context of a dump that other settings are laid over: what a chosen preset fills in is left out,
or the preset could not be changed."""


def load(
    spec: type[T],
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
    default: str | Path | None = None,
) -> T:
    """Read settings: defaults of `spec` < the file's `base:` < the file < the overrides.

    A section is merged key by key, onto the default of its field; lists and plain values are
    replaced. A section whose `name` chooses what it is (a mask, a head) starts anew when a higher
    layer changes the name.

    Args:
        spec: the model the settings must fit.
        file: YAML file. Its `base:` names another one, relative to itself, and so on; or several,
            of which later ones count more.
        overrides: `key.path=value` with values in YAML: `mask.mask_ratio=0.75`, `sizes=[1, 2]`.
        default: the file used when `file` is None.

    Raises:
        ConfigError: with everything that is wrong, or the file that is missing or not YAML.
    """
    root = Place((spec,))
    tree: dict[str, Any] = {}
    origins: _Origins = {}
    problems: list[str] = []
    chosen = file if file is not None else default
    if chosen is not None:
        for layer, lines, found in _file_layers(Path(chosen), ()):
            tree = merge(root, tree, layer)
            origins |= lines
            problems += found
    changes, found = _override_layer(spec, overrides)
    tree = merge(root, tree, changes)
    origins |= dict.fromkeys(_paths(changes), "command line")
    problems += found
    source = str(chosen) if chosen is not None else "configuration"
    return _validate(spec, tree, origins, problems, source)


def vary(config: T, changes: Mapping[str, Any]) -> T:
    """A copy with dotted keys set to plain values, merged and checked like a file.

    Raises:
        ConfigError: a key is unknown or a value breaks a rule.
    """
    spec = type(config)
    layer: dict[str, Any] = {}
    for key, value in changes.items():
        _insert(layer, split_path(spec, key), value)
    tree = merge(Place((spec,)), config.model_dump(mode="json", context=TO_VARY), layer)
    source = ", ".join(f"{key}={value}" for key, value in changes.items())
    return _validate(spec, tree, {}, [], source or "configuration")


def given_keys(spec: type[BaseModel], overrides: Sequence[str]) -> list[str]:
    """Dotted keys that well-formed overrides set; within a given mapping each key of it."""
    layer, _ = _override_layer(spec, overrides)
    return list(flatten(layer))


def to_yaml(config: BaseModel) -> str:
    """The settings in full as YAML; `load` reads the same settings from it."""
    return yaml_text.dump(config.model_dump(mode="json"))


def fingerprint(*parts: object) -> str:
    """16 hex characters that name settings and plain data, the same in every process.

    Key order and the difference of tuple and list do not matter; that of 1 and 1.0 does, which a
    field's type settles in a Config.

    Raises:
        TypeError: a part holds anything but Configs, mappings, lists and plain values.
    """
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_as_plain)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def flatten(
    config: BaseModel | Mapping[str, Any],
) -> dict[str, str | int | float | bool | None]:
    """Dotted key -> value; a list becomes its JSON text, and so does an empty section."""
    tree = config.model_dump(mode="json") if isinstance(config, BaseModel) else config
    return dict(_flat_items(tree, ""))


def _flat_items(
    tree: Mapping[str, Any], above: str
) -> Iterator[tuple[str, str | int | float | bool | None]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat_items(value, f"{above}{key}.")
        elif isinstance(value, list | dict):
            yield f"{above}{key}", json.dumps(value)
        else:
            yield f"{above}{key}", value


def _as_plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"cannot fingerprint a {type(value).__name__}: give Configs and plain data")


def _file_layers(
    file: Path, chain: tuple[Path, ...]
) -> Iterator[tuple[dict[str, Any], _Origins, list[str]]]:
    """Mapping, origin of each key, and problems of a file's bases and the file, lowest first."""
    named_by = f" (the base of {chain[-1]})" if chain else ""
    resolved = file.resolve()
    if resolved in [earlier.resolve() for earlier in chain]:
        circle = " -> ".join(str(path) for path in (*chain, file))
        raise ConfigError([f"the files are each other's base: {circle}"], str(chain[0]))
    try:
        layer, lines, problems = yaml_text.parse_mapping(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError([f"no such file: {file}{named_by}"]) from error
    except OSError as error:
        raise ConfigError([f"cannot read {file}{named_by}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{file} is not UTF-8 text: {error.reason}"]) from error
    except (yaml.YAMLError, TypeError) as error:
        raise ConfigError([_yaml_problem(error)], str(file)) from error
    bases = layer.pop("base", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError([f"base must name a file or several, not {bases!r}"], str(file))
    for base in bases:
        yield from _file_layers(file.parent / base, (*chain, file))
    origins = {path: f"{file}:{line}" for path, line in lines.items()}
    yield layer, origins, [f"{file}, {problem}" for problem in problems]


def _yaml_problem(error: yaml.YAMLError | TypeError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', error)}"


def _override_layer(
    spec: type[BaseModel], overrides: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    layer: dict[str, Any] = {}
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            problems.append(f"'{override}' is not of the form key.path=value")
        elif not text.strip():
            problems.append(f"'{override}' has no value; write {key}=null for none")
        else:
            try:
                value = yaml_text.parse(text)
            except yaml.YAMLError as error:
                problems.append(f"the value of '{override}' is not YAML: {_yaml_problem(error)}")
            else:
                _insert(layer, split_path(spec, key), value)
    return layer, problems


def _insert(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *above, last = path
    for key in above:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[last] = value


def _paths(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from _paths(value, (*above, key))


def _validate(
    spec: type[T], tree: Mapping[str, Any], origins: _Origins, problems: list[str], source: str
) -> T:
    try:
        config = spec.model_validate(tree)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems = problems + [_describe(spec, dict(item), origins) for item in details]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), source)
    return config


def _describe(spec: type[BaseModel], item: dict[str, Any], origins: _Origins) -> str:
    """One line for one pydantic error: what is wrong, where it was written, what would be right."""
    is_key = item["loc"][-1:] == ("[key]",)
    path, holder = written_path(spec, item["loc"][:-1] if is_key else item["loc"])
    dotted = ".".join(path)
    context = item.get("ctx", {})
    match item["type"]:
        case "extra_forbidden":
            text = f"unknown key '{dotted}'{_nearest_key(spec, path, holder)}"
        case "missing":
            text = f"'{dotted}' is missing"
        case "union_tag_invalid":
            path = (*path, "name")
            known = ", ".join(holder.child(path[-2]).names)
            text = f"{dotted}.name: unknown name '{context['tag']}'; known: {known}"
        case "union_tag_not_found":
            text = f"{dotted}.name is missing; known: {', '.join(holder.child(path[-1]).names)}"
        case "value_error":
            text = f"{dotted}: {context['error']}" if dotted else str(context["error"])
        case "literal_error" if is_key:
            text = f"unknown key '{dotted}'; known: {context['expected']}"
        case _:
            text = f"{dotted} {item['msg'].removeprefix('Input ')}, not {_shown(item['input'])}"
    while path and path not in origins and path[-1].isdecimal():
        path = path[:-1]  # an item of a list stands where the list's key stands
    return f"{text} ({origins[path]})" if path in origins else text


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _nearest_key(spec: type[BaseModel], path: Sequence[str], holder: Place) -> str:
    """Advice on an unknown key: another choice's, a sibling like it, the same elsewhere, or all."""
    *above, key = path
    known = list(list_keys(spec))
    choices = [k.choice for k in known if k.path == ".".join(path) and k.choice]
    if choices:
        return f"; it belongs to {'.'.join(above)}.name={' or '.join(choices)}"
    elsewhere = [k.path for k in known if k.path.endswith(f".{key}")]
    if elsewhere and not difflib.get_close_matches(key, holder.keys, n=1):
        return f"; did you mean '{elsewhere[0]}'?"
    section = "".join(f"{part}." for part in above)
    beside = [k.path.removeprefix(section) for k in known if k.path.startswith(section)]
    close = difflib.get_close_matches(key, [*holder.keys, *beside], n=1)
    return (
        f"; did you mean '{section}{close[0]}'?" if close else f"; known: {', '.join(holder.keys)}"
    )

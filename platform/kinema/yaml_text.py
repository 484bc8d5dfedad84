"""YAML as experiments are written in it: the YAML 1.2 core schema, without surprises.

PyYAML follows YAML 1.1, where `1e-4` is a string, `no` is false, `1:30` is 90 and `010` is 8. Here
they are 0.0001, "no", "1:30" and "010". Settings of type bool still accept yes, no, on and off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

Path = tuple[str, ...]

_SEQUENCE = "tag:yaml.org,2002:seq"
_FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.inf$|\.nan$")
_CORE_SCHEMA = {
    "null": (re.compile(r"~$|null$|Null$|NULL$|$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (re.compile(r"[-+]?(0|[1-9]\d*)$|0x[0-9a-fA-F]+$"), list("-+0123456789")),
    "float": (_FLOAT, list("-+.0123456789")),
    "merge": (re.compile(r"<<$"), ["<"]),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # filled below, without what YAML 1.1 adds


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would read as something other than a string."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, indentless=False)


for _name, (_pattern, _first) in _CORE_SCHEMA.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Dumper.add_representer(
    # Only in double quotes does PyYAML escape Unicode's line breaks, which reading would fold.
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if set(text) & set("\x85\u2028\u2029") else None
    ),
)
_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence(_SEQUENCE, items, flow_style=True)
)


def parse(text: str) -> Any:
    """The value a YAML text stands for.

    Raises:
        yaml.YAMLError: the text is not YAML.
    """
    # A SafeLoader: it makes plain data only.
    return yaml.load(text, Loader=_Loader)


def parse_mapping(text: str) -> tuple[dict[str, Any], dict[Path, int], list[str]]:
    """A YAML mapping with the line of each key.

    Returns:
        The mapping; `{path of keys: line, from 1}`; one problem for each key that is given twice.

    Raises:
        yaml.YAMLError: the text is not YAML.
        TypeError: it is not a mapping.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        keys = list(_keys(node, ()))  # before construction, which rewrites `<<` in place
        value = None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()
    if value is None:
        return {}, {}, []
    if not isinstance(value, dict):
        raise TypeError(f"the top must be a mapping 'key: value', not a {type(value).__name__}")
    lines: dict[Path, int] = {}
    problems = []
    for path, line in keys:
        if path in lines:
            first = f"first on line {lines[path]}"
            problems.append(f"line {line}: key '{'.'.join(path)}' is given twice ({first})")
        else:
            lines[path] = line
    return value, lines, problems


def dump(value: Any) -> str:
    """YAML text in the order of `value`, lists on one line where they fit."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _keys(node: yaml.Node | None, above: Path) -> Iterator[tuple[Path, int]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        path = (*above, str(key.value))
        yield path, key.start_mark.line + 1
        yield from _keys(value, path)

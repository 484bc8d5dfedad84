"""What every job's command line does: settings in, messages for people out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NoReturn,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    runtime_checkable,
)

from pydantic import BaseModel

from kinema import storage
from kinema.config import flatten, given_keys, load, to_yaml
from kinema.errors import ConfigError, KinemaError
from kinema.schema import Key, Place, list_keys

T = TypeVar("T", bound=BaseModel)
_REPOSITORY = Path(__file__).resolve().parents[2]
_USAGE_ERROR = 2
_INTERRUPTED = 130
_NOT_READ = 141
"""What a shell reports of a program that writes to a closed pipe."""


@runtime_checkable
class NamesVideos(Protocol):
    """Settings that know whether the videos they are about are named."""

    def require_videos(self) -> None:
        """Raise ConfigError when they are not."""
        ...


def parse(
    spec: type[T],
    argv: Sequence[str] | None = None,
    *,
    default: str | None,
    description: str | None,
    positional: Sequence[str] = (),
    check: Callable[[T, Sequence[str]], object] | None = None,
) -> T:
    """Settings of a job from `[experiment.yaml] [key.path=value ...] [--help] [--dry-run]`.

    Prints the settings in full. `--help` and `--dry-run` print and end the program with status 0.

    Args:
        spec: the model of the settings.
        argv: arguments; those of the program by default.
        default: experiment to use when none is given, a path in the repository.
        description: what the job does, for `--help`.
        positional: keys whose values are given in this order without `key=`, in place of a file.
        check: called with the settings and the `given_keys`, before `--dry-run` ends the program;
            raises ConfigError for what the settings alone do not show.

    Raises:
        ConfigError: the arguments or the settings are wrong, or name no videos, or a manifest that
            does not exist; a dry run asks for none.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments or "-h" in arguments:
        _show(_help(spec, default, description, positional) + "\n")
        raise SystemExit(0)
    file, overrides = _split(arguments, positional)
    config = load(spec, file, overrides, _in_repository(default))
    if check is not None:
        check(config, given_keys(spec, overrides))
    if "--dry-run" in arguments:
        _show(to_yaml(config))
        raise SystemExit(0)
    if isinstance(config, NamesVideos):
        config.require_videos()
    _require_manifests(config)
    _show(to_yaml(config))
    return config


def _require_manifests(config: BaseModel) -> None:
    """What every job reads first, before its settings fill the screen."""
    named = {
        key: str(value)
        for key, value in flatten(config).items()
        if key.rpartition(".")[2] == "manifest" and value is not None
    }
    problems = [
        f"{key}: {uri} does not exist; make it with jobs/index_videos.py"
        for key, uri in named.items()
        if not storage.exists(storage.absolute(uri))
    ]
    if problems:
        raise ConfigError(problems)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a job and end the program with its status; None counts as 0.

    An error that its user can mend is printed without a traceback and ends the program with
    status 2. Any other exception is a bug and keeps its traceback.
    """
    try:
        status = main()
    except KinemaError as error:
        print(error, file=sys.stderr)
        raise SystemExit(_USAGE_ERROR) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is done", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from None
    raise SystemExit(status or 0)


def _show(text: str) -> None:
    """Print for a reader who may have seen enough (`--help | head`): that ends the program."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        # Python flushes it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(_NOT_READ) from None


def _split(arguments: Sequence[str], positional: Sequence[str]) -> tuple[str | None, list[str]]:
    """The experiment file and the overrides."""
    problems = []
    plain = []
    overrides = []
    for argument in arguments:
        if argument == "--dry-run":
            continue
        if argument.startswith("-"):
            problems.append(f"unknown option '{argument}'; options are --help and --dry-run")
        elif "=" in argument:
            overrides.append(argument)
        elif positional or "/" in argument or argument.endswith((".yaml", ".yml")):
            plain.append(argument)
        else:
            problems.append(
                f"'{argument}' is neither an experiment file (.yaml) nor of the form key.path=value"
            )
    if positional and len(plain) > len(positional):
        problems.append(f"give {_in_capitals(positional)}, not {' '.join(plain)}")
    elif not positional and len(plain) > 1:
        problems.append(f"give one experiment file, not {', '.join(plain)}")
    if problems:
        raise ConfigError(problems, "command line")
    if positional:
        named = [
            f"{key}={json.dumps(value)}" for key, value in zip(positional, plain, strict=False)
        ]
        return None, named + overrides
    return (plain[0] if plain else None), overrides


def _in_capitals(positional: Sequence[str]) -> str:
    return " ".join(key.upper() for key in positional)


def _in_repository(default: str | None) -> Path | None:
    """The default experiment seen from here, or in the checkout this package is installed from."""
    if default is None:
        return None
    path = Path(default)
    return path if path.exists() or path.is_absolute() else _REPOSITORY / path


def _help(
    spec: type[BaseModel],
    default: str | None,
    description: str | None,
    positional: Sequence[str],
) -> str:
    first = _in_capitals(positional) if positional else "[experiment.yaml]"
    lines = [
        f"usage: python {sys.argv[0]} {first} [key.path=value ...] [--help] [--dry-run]",
        "",
        (description or "").strip(),
        "",
        *([] if positional else [f"Without a file: {default or 'the defaults below'}."]),
        "--dry-run prints the settings in full and ends.",
        "",
        "Keys (type = default):",
    ]
    lines += [_key_line(key) for key in list_keys(spec) if not _names_a_choice(key)]
    return "\n".join(lines)


def _names_a_choice(key: Key) -> bool:
    """Whether the key is the `name` of one of several sections, which the section's line lists."""
    return key.choice is not None and key.choice == key.default and key.path.endswith(".name")


def _key_line(key: Key) -> str:
    indent = "  " * (key.path.count(".") + 1)
    where = f" [name={key.choice}]" if key.choice else ""
    about = f"  {key.field.description}" if key.field.description else ""
    return f"{indent}{key.path}{where}: {_type_name(key.place)}{_default(key)}{about}"


def _default(key: Key) -> str:
    if key.field.is_required():
        return " (required)"
    if isinstance(key.default, BaseModel):
        chosen = getattr(key.default, "name", None) if len(key.place.models) > 1 else None
        return f" = {chosen}" if chosen else ""
    if isinstance(key.default, tuple):
        return f" = {[*key.default]}"
    return f" = {'null' if key.default is None else key.default}"


def _type_name(place: Place) -> str:
    if place.names and len(place.models) > 1:
        return f"one of {' | '.join(place.names)}, by its name"
    names = [_member_name(member) for member in place.members]
    return " | ".join(names)


def _member_name(member: Any) -> str:
    """A type as one writes its values: `[float, ...]` for a list of numbers."""
    origin, inner = get_origin(member), get_args(member)
    if origin is Literal:
        return " | ".join(str(value) for value in inner)
    if origin is Annotated:
        return _member_name(inner[0])
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(_member_name(one) for one in inner))
    if origin is list:
        return f"[{_member_name(inner[0])}, ...]"
    if origin is tuple:
        return f"[{', '.join('...' if one is ... else _member_name(one) for one in inner)}]"
    if origin is dict:
        return f"{{{_member_name(inner[0])}: {_member_name(inner[1])}}}"
    if isinstance(member, type) and issubclass(member, BaseModel):
        return "section"
    return "any" if member is Any else str(member.__name__)

"""Loading settings: layers, choices, and messages that say where and what."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from kinema.config import Config, fingerprint, flatten, load, to_yaml, vary
from kinema.errors import ConfigError


class Tube(Config):
    name: Literal["tube"] = "tube"
    mask_ratio: float = Field(0.9, ge=0, le=1)


class Box(Config):
    name: Literal["motion_box"] = "motion_box"
    mask_ratio: float = 0.9
    inside_ratio: float = 0.75


class Encoder(Config):
    depth: int = 12
    embed_dim: int = 768


class Sweep(Config):
    axes: dict[str, list[Any]] = {}
    controls: dict[str, dict[str, Any]] = {}


class Study(Config):
    name: str = "study"
    mask: Annotated[Tube | Box, Field(discriminator="name")] = Tube(mask_ratio=0.8)
    second: Annotated[Tube | Box, Field(discriminator="name")] | None = None
    encoder: Encoder = Encoder(depth=4)
    teacher: Encoder | None = None
    sizes: list[int] = [1, 2]
    limit: int | list[int] = 1
    lr: float = 1e-3
    augment: bool = True
    path: str | None = None
    sweep: Sweep = Sweep()

    @model_validator(mode="after")
    def _fits(self) -> "Study":
        if self.encoder.embed_dim % 2:
            raise ValueError(f"encoder.embed_dim={self.encoder.embed_dim} must be even")
        return self


class Needy(Config):
    manifest: str
    mask: Annotated[Tube | Box, Field(discriminator="name")]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def problems(*overrides: str, file: Path | None = None, spec: type[Config] = Study) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(spec, file, overrides)
    return list(caught.value.problems)


def test_a_config_is_frozen_and_closed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Study().lr = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        Study(unknown=1)  # type: ignore[call-arg]


def test_without_a_file_the_defaults_hold() -> None:
    assert load(Study) == Study()


def test_a_section_keeps_the_rest_of_its_fields_default() -> None:
    study = load(Study, None, ["encoder.embed_dim=64", "mask.name=tube"])
    assert study.encoder == Encoder(depth=4, embed_dim=64)
    assert study.mask == Tube(mask_ratio=0.8)


def test_layers_file_over_base_over_base(tmp_path: Path) -> None:
    write(
        tmp_path,
        "shared/root.yaml",
        "lr: 1.0\nencoder: {depth: 1, embed_dim: 2}\nsizes: [9, 9, 9]\n",
    )
    write(tmp_path, "base.yaml", "base: shared/root.yaml\nencoder: {depth: 2}\nsizes: [5]\n")
    top = write(tmp_path, "deep/top.yaml", "base: ../base.yaml\nlr: 3\n")
    study = load(Study, top, ["encoder.embed_dim=8"])
    assert (study.lr, study.encoder, study.sizes) == (3.0, Encoder(depth=2, embed_dim=8), [5])


def test_the_default_file_is_used_only_without_another(tmp_path: Path) -> None:
    default, other = write(tmp_path, "a.yaml", "lr: 2"), write(tmp_path, "b.yaml", "name: b")
    assert load(Study, default=default).lr == 2
    assert load(Study, other, default=default) == Study(name="b")


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load(Study, write(tmp_path, "a.yaml", "# only a comment\n")) == Study()


def test_another_name_replaces_the_section(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "mask: {name: motion_box, mask_ratio: 0.5, inside_ratio: 0.1}")
    same = write(
        tmp_path, "same.yaml", "base: base.yaml\nmask: {name: motion_box, mask_ratio: 0.6}"
    )
    other = write(tmp_path, "other.yaml", "base: base.yaml\nmask: {name: tube}")
    assert load(Study, same).mask == Box(mask_ratio=0.6, inside_ratio=0.1)
    assert load(Study, other).mask == Tube()
    assert load(Study, same, ["mask.name=tube"]).mask == Tube()


def test_overrides_of_one_section_do_not_depend_on_their_order() -> None:
    changes = ["mask.inside_ratio=0.2", "mask.name=motion_box"]
    assert load(Study, None, changes).mask == load(Study, None, changes[::-1]).mask
    assert load(Study, None, changes).mask == Box(inside_ratio=0.2)


def test_a_plain_name_does_not_replace_what_stands_beside_it(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "name: first\nlr: 5\n")
    assert load(Study, write(tmp_path, "top.yaml", "base: base.yaml\nname: second\n")).lr == 5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2E3", -2000.0),
        ("3", 3.0),
        (".5", 0.5),
        ("1.", 1.0),
        (".inf", float("inf")),
    ],
)
def test_floats_as_people_write_them(text: str, value: float) -> None:
    assert load(Study, None, [f"lr={text}"]).lr == value
    assert load(Study, None, [f"sweep.axes.lr=[{text}]"]).sweep.axes["lr"] == [value]


@pytest.mark.parametrize("text", ["no", "1:30", "010", "2024-01-01", "s3://bucket/x", "1.2.3"])
def test_strings_that_yaml_1_1_would_change(text: str) -> None:
    assert load(Study, None, [f"path={text}"]).path == text


@pytest.mark.parametrize(("text", "value"), [("true", True), ("off", False), ("no", False)])
def test_bools(text: str, value: bool) -> None:
    assert load(Study, None, [f"augment={text}"]).augment is value


def test_values_of_overrides_are_yaml() -> None:
    study = load(Study, None, ["sizes=[3, 4]", "teacher={depth: 2}", "path=a=b", "second=null"])
    assert (study.sizes, study.teacher, study.path, study.second) == (
        [3, 4],
        Encoder(depth=2),
        "a=b",
        None,
    )
    assert load(Study, None, ["path=''"]).path == ""
    assert load(Study, None, ["lr=1", "lr=2"]).lr == 2


def test_free_keys_take_the_rest_of_the_path() -> None:
    study = load(
        Study, None, ["sweep.axes.mask.inside_ratio=[0, 1]", "sweep.controls.tube.mask.name=tube"]
    )
    assert study.sweep.axes == {"mask.inside_ratio": [0, 1]}
    assert study.sweep.controls == {"tube": {"mask.name": "tube"}}


def test_an_empty_mapping_empties_free_keys_and_no_section(tmp_path: Path) -> None:
    text = "encoder: {depth: 2}\nsweep: {axes: {lr: [1]}, controls: {tube: {lr: 2}}}\n"
    file = write(tmp_path, "x.yaml", text)
    assert load(Study, file, ["sweep.controls={}"]).sweep == Sweep(axes={"lr": [1]})
    assert load(Study, file, ["sweep.controls={other: {lr: 3}}"]).sweep.controls.keys() == {
        "tube",
        "other",
    }
    assert load(Study, file, ["encoder={}", "sweep={}"]) == load(Study, file)
    above = write(tmp_path, "y.yaml", "base: x.yaml\nsweep: {axes: {}}\n")
    assert load(Study, above).sweep.axes == {}


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    file = write(tmp_path, "x.yaml", "lr: fast\nmask:\n  name: motion_box\n  insde_ratio: 0.5\n")
    with pytest.raises(ConfigError) as caught:
        load(Study, file, ["sizes=[1, x]", "encoder.depth=", "foo", "a..b=1", "path=[", "zzz=1"])
    assert str(caught.value).splitlines() == [
        f"{file}: 8 problems",
        "  - 'encoder.depth=' has no value; write encoder.depth=null for none",
        "  - 'foo' is not of the form key.path=value",
        "  - 'a..b=1' is not of the form key.path=value",
        "  - the value of 'path=[' is not YAML: line 1, column 2: "
        "expected the node content, but found '<stream end>'",
        f"  - unknown key 'mask.insde_ratio'; did you mean 'mask.inside_ratio'? ({file}:4)",
        "  - sizes.1 should be a valid integer, unable to parse string as an integer, "
        "not 'x' (command line)",
        "  - lr should be a valid number, unable to parse string as a number, "
        f"not 'fast' ({file}:1)",
        "  - unknown key 'zzz'; known: name, mask, second, encoder, teacher, sizes, limit, lr, "
        "augment, path, sweep (command line)",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mask.name=tub", "mask.name: unknown name 'tub'; known: tube, motion_box (command line)"),
        ("second.mask_ratio=1", "second.name is missing; known: tube, motion_box (command line)"),
        (
            "mask.inside_ratio=1",
            "unknown key 'mask.inside_ratio'; it belongs to mask.name=motion_box (command line)",
        ),
        (
            "mask_ratio=1",
            "unknown key 'mask_ratio'; did you mean 'mask.mask_ratio'? (command line)",
        ),
        ("mask.mask_ratio=2", "mask.mask_ratio should be less than or equal to 1, not 2"),
        ("encoder.embed_dim=3", "encoder.embed_dim=3 must be even"),
        ("encoder=3", "encoder should be a valid dictionary or instance of Encoder, not 3"),
    ],
)
def test_messages(override: str, message: str) -> None:
    (problem,) = problems(override)
    assert problem.startswith(message)


def test_alternatives_of_a_plain_union_are_not_part_of_the_path() -> None:
    assert [p.split(" ")[0] for p in problems("limit=[a]")] == ["limit", "limit.0"]


def test_what_is_missing_is_named() -> None:
    assert problems(spec=Needy) == ["'manifest' is missing", "'mask' is missing"]


def test_long_values_are_cut() -> None:
    (problem,) = problems(f"lr={'x' * 500}")
    assert len(problem) < 220


def test_keys_given_twice_are_told_with_both_lines(tmp_path: Path) -> None:
    file = write(tmp_path, "x.yaml", "lr: 1\nencoder:\n  depth: 1\n  depth: 2\nlr: 2\n")
    assert problems(file=file) == [
        f"{file}, line 4: key 'encoder.depth' is given twice (first on line 3)",
        f"{file}, line 5: key 'lr' is given twice (first on line 1)",
    ]


def test_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    text = "encoder: &e {depth: 1, embed_dim: 2}\nteacher: {<<: *e, depth: 7}\n"
    assert load(Study, write(tmp_path, "x.yaml", text)).teacher == Encoder(depth=7, embed_dim=2)


def test_missing_files(tmp_path: Path) -> None:
    absent = tmp_path / "absent.yaml"
    assert problems(file=absent) == [f"no such file: {absent}"]
    top = write(tmp_path, "top.yaml", "base: absent.yaml")
    assert problems(file=top) == [f"no such file: {absent} (the base of {top})"]
    (problem,) = problems(file=tmp_path)
    assert problem == f"cannot read {tmp_path}: Is a directory"


def test_later_bases_are_laid_over_earlier_ones(tmp_path: Path) -> None:
    write(tmp_path, "table.yaml", "base: root.yaml\nlr: 1\nencoder: {depth: 2}\n")
    write(tmp_path, "root.yaml", "name: root\nencoder: {depth: 9, embed_dim: 64}\n")
    write(tmp_path, "small.yaml", "encoder: {embed_dim: 8}\nsizes: [5]\n")
    study = load(Study, write(tmp_path, "top.yaml", "base: [table.yaml, small.yaml]\nlr: 2\n"))
    assert (study.name, study.lr, study.sizes) == ("root", 2, [5])
    assert study.encoder == Encoder(depth=2, embed_dim=8)


def test_circles_of_bases(tmp_path: Path) -> None:
    first = write(tmp_path, "a.yaml", "base: b.yaml")
    write(tmp_path, "b.yaml", "base: ./a.yaml")
    (problem,) = problems(file=first)
    assert problem == (
        f"the files are each other's base: {first} -> {tmp_path}/b.yaml -> {tmp_path}/a.yaml"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "line 1, column 6: expected ',' or ']', but got '<stream end>'"),
        ("- 1\n", "the top must be a mapping 'key: value', not a list"),
        ("base: {a: b}", "base must name a file or several, not {'a': 'b'}"),
        ("lr: !!python/object:os.system 1", "line 1, column 5: could not determine a constructor"),
    ],
)
def test_files_that_are_not_settings(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, "x.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load(Study, file)
    assert str(caught.value).startswith(f"{file}: 1 problem\n  - {message}")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    assert problems(file=file)[0].startswith(f"{file} is not UTF-8 text")


def test_vary_follows_the_same_rules() -> None:
    study = Study(mask=Box(inside_ratio=0.1), lr=2)
    varied = vary(study, {"mask.mask_ratio": 0.5, "encoder.depth": 1, "name": "other"})
    assert varied == Study(
        mask=Box(inside_ratio=0.1, mask_ratio=0.5), lr=2, encoder=Encoder(depth=1), name="other"
    )
    assert vary(study, {"mask.name": "tube"}).mask == Tube()
    with pytest.raises(ConfigError, match=r"mask.insde=3: 1 problem\n.*unknown key 'mask.insde'"):
        vary(study, {"mask.insde": 3})


@example(name="\x85", lr=0.0, path="\u2028", sizes=[], mask=Tube())
@given(
    name=st.text(max_size=20),
    lr=st.floats(allow_nan=False),
    path=st.none()
    | st.text(max_size=20)
    | st.sampled_from(["1e-4", "no", "~", "010", "1:30", "<<"]),
    sizes=st.lists(st.integers(), max_size=3),
    mask=st.sampled_from([Tube(), Box(inside_ratio=1e-7)]),
)
def test_to_yaml_reads_back(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    lr: float,
    path: str | None,
    sizes: list[int],
    mask: Tube | Box,
) -> None:
    study = Study(name=name, lr=lr, path=path, sizes=sizes, mask=mask, second=mask)
    file = tmp_path_factory.getbasetemp() / "round.yaml"
    file.write_text(to_yaml(study), encoding="utf-8")
    assert load(Study, file) == study


def test_to_yaml_is_easy_to_read() -> None:
    assert to_yaml(Study()).splitlines()[:6] == [
        "name: study",
        "mask:",
        "  name: tube",
        "  mask_ratio: 0.8",
        "second: null",
        "encoder:",
    ]
    assert "sizes: [1, 2]\n" in to_yaml(Study())


def test_flatten() -> None:
    flat = flatten(Study(sweep=Sweep(axes={"mask.mask_ratio": [0.5]})))
    assert flat["encoder.depth"] == 4
    assert flat["second"] is None
    assert flat["augment"] is True
    assert flat["sizes"] == "[1, 2]"
    assert flat["sweep.axes.mask.mask_ratio"] == "[0.5]"
    assert flat["sweep.controls"] == "{}"


def test_fingerprint_depends_on_content_only() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": (1, 2), "a": 1})
    assert fingerprint(Study()) == fingerprint(Study().model_dump(mode="json"))
    assert len(fingerprint()) == 16
    distinct = [
        Study(),
        Study(lr=1),
        [Study()],
        {"a": Study()},
        1,
        1.0,
        "1",
        True,
        None,
        "a",
        ["a"],
    ]
    assert len({fingerprint(part) for part in distinct}) == len(distinct)
    assert fingerprint("a", "b") != fingerprint("ab")


def test_fingerprint_is_the_same_in_every_process() -> None:
    code = "from kinema.config import fingerprint; print(fingerprint({'b': 1, 'a': [1e-4, None]}))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "platform"},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {fingerprint({"b": 1, "a": [1e-4, None]})}


def test_fingerprint_refuses_what_has_no_canonical_form() -> None:
    with pytest.raises(TypeError, match="cannot fingerprint a set"):
        fingerprint({1, 2})

"""Command lines of jobs: arguments, help, dry runs and exit codes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from kinema import cli
from kinema.config import Config
from kinema.errors import ConfigError, StorageError


class Tube(Config):
    name: Literal["tube"] = "tube"
    mask_ratio: float = Field(0.9, description="share of tokens that is hidden")


class Frame(Config):
    name: Literal["frame"] = "frame"
    num_frames: int = 2


class Encoder(Config):
    depth: int = 12


class Study(Config):
    table: str = Field(description="Parquet table, path or URI")
    mask: Annotated[Tube | Frame, Field(discriminator="name")] = Tube()
    encoder: Encoder = Encoder(depth=4)
    precision: Literal["fp32", "bf16"] = "fp32"
    limit: int | None = None


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    path = tmp_path / "experiment.yaml"
    path.write_text("table: videos.parquet\n")
    return str(path)


def parse(*argv: str, default: str | None = None) -> Study:
    return cli.parse(Study, argv, default=default, description="Does something.")


def test_file_and_overrides_in_any_order(
    experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = parse("limit=3", experiment, "encoder.depth=2")
    assert study == Study(table="videos.parquet", limit=3, encoder=Encoder(depth=2))
    assert capsys.readouterr().out.splitlines() == [
        "table: videos.parquet",
        "mask:",
        "  name: tube",
        "  mask_ratio: 0.9",
        "encoder:",
        "  depth: 2",
        "precision: fp32",
        "limit: 3",
    ]


def test_arguments_come_from_the_program_by_default(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", experiment, "limit=9"])
    assert cli.parse(Study, default=None, description=None).limit == 9


def test_the_default_experiment(experiment: str, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("table: other.parquet\n")
    assert parse(default=experiment).table == "videos.parquet"
    assert parse(str(other), default=experiment).table == "other.parquet"


def test_the_default_experiment_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_REPOSITORY", tmp_path)
    (tmp_path / "in_repository.yaml").write_text("table: found\n")
    monkeypatch.chdir("/")
    assert parse(default="in_repository.yaml").table == "found"
    with pytest.raises(ConfigError, match=rf"no such file: {tmp_path}/absent.yaml"):
        parse(default="absent.yaml")


def test_dry_run_prints_and_ends(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(experiment, "--dry-run")
    assert ended.value.code == 0
    assert "table: videos.parquet\n" in capsys.readouterr().out


class Data(Config):
    manifest: str | None = None


class Run(Config):
    data: Data = Data()
    others: dict[str, dict[str, str]] = {}


def test_a_manifest_that_is_missing_is_told_before_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*argv: str) -> Run:
        return cli.parse(Run, argv, default=None, description=None)

    missing = [f"data.manifest={tmp_path}/a.parquet", "others={b: {data.manifest: b.parquet}}"]
    with pytest.raises(ConfigError) as caught:
        run(*missing)
    assert caught.value.problems == (
        f"data.manifest: {tmp_path}/a.parquet does not exist; make it with jobs/index_videos.py",
        "others.b.data.manifest: b.parquet does not exist; make it with jobs/index_videos.py",
    )
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit):
        run(*missing, "--dry-run")
    (tmp_path / "a.parquet").touch()
    assert run(missing[0]).data.manifest == f"{tmp_path}/a.parquet"
    assert run() == Run()


def test_dry_run_finds_problems() -> None:
    with pytest.raises(ConfigError, match="'table' is missing"):
        parse("--dry-run")


def test_wrong_arguments_are_told_at_once(experiment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(experiment, "again.yaml", "--fast")
    assert caught.value.problems == (
        "unknown option '--fast'; options are --help and --dry-run",
        f"give one experiment file, not {experiment}, again.yaml",
    )


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_every_key(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(option, "no such file", default="experiments/x.yaml")
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("[experiment.yaml] [key.path=value ...] [--help] [--dry-run]")
    assert "Does something." in lines
    assert "Without a file: experiments/x.yaml." in lines
    assert lines[lines.index("Keys (type = default):") + 1 :] == [
        "  table: str (required)  Parquet table, path or URI",
        "  mask: one of tube | frame, by its name = tube",
        "    mask.mask_ratio [name=tube]: float = 0.9  share of tokens that is hidden",
        "    mask.num_frames [name=frame]: int = 2",
        "  encoder: section",
        "    encoder.depth: int = 4",
        "  precision: fp32 | bf16 = fp32",
        "  limit: int = null",
    ]


def test_help_names_types_as_one_writes_values(capsys: pytest.CaptureFixture[str]) -> None:
    class Spec(Config):
        sizes: tuple[Annotated[int, Field(gt=0)], ...] = (1, 2)
        betas: tuple[float, float] = (0.9, 0.95)
        axes: dict[str, list[Any]] = {}
        skip: list[dict[Literal["row", "column"], str]] = []
        parts: list[Annotated[Tube | Frame, Field(discriminator="name")]] = []
        share: float | Literal["all"] | None = None

    with pytest.raises(SystemExit):
        cli.parse(Spec, ["--help"], default=None, description="d")
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("Keys (type = default):") + 1 :] == [
        "  sizes: [int, ...] = [1, 2]",
        "  betas: [float, float] = [0.9, 0.95]",
        "  axes: {str: [any, ...]} = {}",
        "  skip: [{row | column: str}, ...] = []",
        "  parts: [section, ...] = []",
        "  share: float | all = null",
    ]


def test_run_ends_with_the_status_of_main() -> None:
    for status, code in ((None, 0), (0, 0), (3, 3)):
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda status=status: status)
        assert ended.value.code == code


def test_errors_of_users_have_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise StorageError("x does not exist")

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "x does not exist\n"
    assert ended.value.__cause__ is None


def test_an_interrupted_job_says_how_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from what is done\n"


def test_bugs_keep_their_traceback() -> None:
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(main)


ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[1] / "platform")}


def write_job(folder: Path, work: str) -> Path:
    """A program with a key `depth`, as `jobs/` has them, that evaluates `work`."""
    job = folder / "job.py"
    job.write_text(
        "from kinema.cli import parse, run\n"
        "from kinema.config import Config\n"
        "class Spec(Config):\n"
        "    depth: float = 1\n"
        f"run(lambda: {work})\n"
    )
    return job


def test_a_program_from_outside(tmp_path: Path) -> None:
    job = write_job(tmp_path, "print(parse(Spec, default=None, description='d').depth)")

    def start(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(job), *argv],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )

    good = start("depth=1e-4")
    assert (good.returncode, good.stdout, good.stderr) == (0, "depth: 0.0001\n0.0001\n", "")
    bad = start("dpeth=1e-4")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == (
        "configuration: 1 problem\n  - unknown key 'dpeth'; did you mean 'depth'? (command line)\n"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--dry-run"], []])
def test_a_reader_who_has_seen_enough_gets_no_traceback(
    arguments: list[str], tmp_path: Path
) -> None:
    job = write_job(tmp_path, "parse(Spec, default=None, description='d') and None")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, str(job), *arguments],
        env=ENVIRONMENT,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


class Pair(Config):
    """What a job takes that compares two things."""

    first: str
    second: str
    third: int = 3


def test_positional_arguments_fill_keys_in_order() -> None:
    def pair(*arguments: str) -> Pair:
        return cli.parse(
            Pair, arguments, default=None, description=None, positional=("first", "second")
        )

    assert pair("a: [b", "third=4", "0123") == Pair(first="a: [b", second="0123", third=4)
    assert pair("a", "second=b") == Pair(first="a", second="b")
    with pytest.raises(ConfigError, match="'second' is missing"):
        pair("a")
    with pytest.raises(ConfigError, match="give FIRST SECOND, not a b c"):
        pair("a", "b", "c")

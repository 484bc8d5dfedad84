"""What the documents promise: commands that parse, files, targets and links that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from job_runner import REPOSITORY, call

DOCUMENTS = [
    *REPOSITORY.glob("*.md"),
    *REPOSITORY.glob("docs/*.md"),
    REPOSITORY / "experiments/README.md",
]
JOBS = [path for path in REPOSITORY.glob("jobs/*.py") if path.name != "demo.py"]
EXPERIMENTS = sorted(REPOSITORY.glob("experiments/*/*.yaml"))
COMMAND = re.compile(r"python (jobs/\w+\.py[^`#|\n]*)")


def commands(file: Path) -> list[str]:
    """`jobs/x.py argument ...` of every command in a document or in a YAML file's head."""
    text = re.sub(r"\\\n#?\s*", "", file.read_text())
    if file.suffix == ".yaml":
        head = [line for line in text.splitlines() if line.startswith("#")]
        text = "\n".join(line.split("  or  ")[-1] for line in head)
    return [match.strip() for match in COMMAND.findall(text)]


QUOTED = [
    pytest.param(command, id=f"{file.relative_to(REPOSITORY)}: {command}")
    for file in [*DOCUMENTS, *JOBS, *EXPERIMENTS]
    for command in commands(file)
]


@pytest.mark.parametrize("command", QUOTED)
def test_quoted_command_is_a_valid_one(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    job, *arguments = shlex.split(command)
    assert call(job.removeprefix("jobs/"), [*arguments, "--dry-run"]) == 0


def test_commands_are_found() -> None:
    assert len(QUOTED) > 20


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_named_files_targets_and_links_exist(file: Path) -> None:
    text = file.read_text()
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
        assert target in targets, target
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (file.parent / link).exists(), link
    for path in re.findall(r"\b(?:experiments|clusters|jobs)/[\w/]+\.(?:yaml|py)\b", text):
        assert (REPOSITORY / path).exists(), path


FIDELITY = (REPOSITORY / "docs/fidelity.md").read_text()
ROWS = [line.split(" | ") for line in FIDELITY.splitlines() if re.search(r"`.*\.py`", line)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("| ")[:60])
def test_fidelity_names_modules_and_tests_that_exist(row: list[str]) -> None:
    assert len(row) == 4
    module, (file, name) = row[1].strip(" `"), row[2].strip(" `").split("::")
    assert (REPOSITORY / "platform/kinema" / module).is_file(), module
    test = REPOSITORY / "tests" / file
    assert test.is_file(), file
    assert re.search(rf"^def {name}\(", test.read_text(), re.MULTILINE), name


def test_fidelity_has_a_row_of_every_paper() -> None:
    assert len(ROWS) > 70
    for paper in ("VideoMAE", "MOFO", "MGM", "MME"):
        assert f"\n## {paper}\n" in FIDELITY


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_every_experiment_is_listed_and_says_how_to_run_it(file: Path) -> None:
    name = file.relative_to(REPOSITORY / "experiments")
    assert f"`{name}`" in (REPOSITORY / "experiments/README.md").read_text()
    assert commands(file)

"""The house rules that no other tool enforces."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_platform_is_not_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()


@pytest.mark.parametrize("path", ["platform", "."])
def test_the_standard_librarys_platform_is_reachable(path: str) -> None:
    code = "import uuid, platform; print(platform.__file__, platform.system())"
    file, system = python(code, PYTHONPATH=str(ROOT / path)).split()
    assert not Path(file).is_relative_to(ROOT)
    assert system


def test_importing_kinema_loads_nothing_heavy() -> None:
    code = "import sys, json, kinema; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(python(code, PYTHONPATH="platform")))
    assert not loaded & {"numpy", "torch", "ray", "mlflow", "deepspeed", "pydantic", "pyarrow"}


def test_every_package_has_an_init() -> None:
    folders = {file.parent for file in (ROOT / "platform" / "kinema").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_one_version() -> None:
    assert python("import kinema; print(kinema.__version__)", PYTHONPATH="platform") == "0.1.0"
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def requirement_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_every_dependency_is_pinned_where_it_was_tested() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line
    )
    pinned = {requirement_name(name) for name in pins}
    project = PROJECT["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert {requirement_name(item) for item in needed} <= pinned
    assert "kinema" not in pinned


def test_constraints_name_versions_only() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!-]+", line), line


def test_dependencies_are_ranges() -> None:
    for requirement in PROJECT["project"]["dependencies"]:
        assert "==" not in requirement
        assert "://" not in requirement


def test_there_is_one_opencv() -> None:
    found = {name.lower() for dist in metadata.distributions() if (name := dist.name)}
    assert {name for name in found if name.startswith("opencv")} == {
        "opencv-contrib-python-headless"
    }


def test_hooks_download_nothing() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    commands = {tuple(hook["entry"].split()[:2]) for hook in hooks}
    assert {("ruff", "check"), ("ruff", "format"), ("mypy",), ("lint-imports",)} <= commands


def test_the_gate_is_what_developers_run() -> None:
    gate = ROOT / ".ci" / "run"
    assert os.access(gate, os.X_OK)
    commands = [line for line in gate.read_text().splitlines() if line.startswith("make ")]
    assert commands == ["make check", "make test"]


def test_make_lists_its_targets() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    targets = {line.split()[1] for line in done.stdout.splitlines()}
    assert targets >= {"demo", "test", "check", "cluster-up", "cluster-down", "mlflow-ui", "clean"}


def dry(*arguments: str) -> list[str]:
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": "/home/someone"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_make_test_leaves_out_gpus_only() -> None:
    command = ".venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder"
    assert dry("test")[-1] == f'OMP_NUM_THREADS=1 {command} -m "not gpu"'


def test_make_says_token_authentication() -> None:
    done = subprocess.run(
        ["make", "--print-data-base", "--dry-run", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "export RAY_AUTH_MODE := token" in done.stdout or "RAY_AUTH_MODE := token" in done.stdout


def test_mlflow_shows_the_storage_root_on_the_loopback() -> None:
    (server,) = [line for line in dry("mlflow-ui") if "mlflow server" in line]
    assert "--host 127.0.0.1" in server
    text = " ".join(dry("mlflow-ui", "KINEMA_STORAGE=/data/kinema"))
    assert '"sqlite:////data/kinema/mlflow.db"' in text
    assert "sqlite:////home/someone/.kinema/mlflow.db" in " ".join(dry("mlflow-ui"))


def test_clean_keeps_what_took_time() -> None:
    removed = " ".join(dry("clean"))
    for precious in (".venv", ".cluster", "$HOME", "/home", "experiments"):
        assert precious not in removed


def test_nothing_ends_processes_by_name() -> None:
    files = [ROOT / "Makefile", ROOT / ".ci" / "run", *(ROOT / "clusters").glob("*.py")]
    files += [*(ROOT / "jobs").glob("*.py"), *(ROOT / "platform").rglob("*.py")]
    for file in files:
        text = file.read_text()
        for command in ("pkill", "killall", "ray stop", "ray.scripts stop"):
            assert command not in text, file


def test_ray_ships_the_code_and_little_else() -> None:
    ignored = (ROOT / ".rayignore").read_text().splitlines()
    for needed in ("platform", "jobs", "experiments", "clusters"):
        assert not any(needed in line for line in ignored)
    assert "/tests/" in ignored

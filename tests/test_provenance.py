"""Commit, versions and packages as they are recorded with a run."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import kinema
from kinema.provenance import environment, git_state, installed_packages, standard_tags


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("KINEMA_GIT_COMMIT", raising=False)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@example.org")
    git(tmp_path, "init", "-q")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_commit_and_dirty(repository: Path) -> None:
    assert git_state(repository) is None  # no commit yet
    file = repository / "a.txt"
    file.write_text("1")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "first")
    state = git_state(repository)
    assert state is not None
    assert (state.commit, state.dirty) == (git(repository, "rev-parse", "HEAD"), False)
    (repository / "untracked.txt").write_text("")
    assert git_state(repository) == state
    file.write_text("2")
    state = git_state(repository)
    assert state is not None
    assert state.dirty


def test_an_environment_within_somebodys_repository_is_not_theirs(repository: Path) -> None:
    (repository / "a.txt").write_text("1")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "first")
    package = repository / ".venv/kinema"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert git_state(repository) is not None
    assert git_state(package) is None


def test_the_commit_is_that_of_the_code_wherever_one_stands(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KINEMA_GIT_COMMIT", raising=False)
    (repository / "a.txt").write_text("1")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "first")
    here = git_state()
    monkeypatch.chdir(repository)
    assert git_state() == here == git_state(Path(str(kinema.__file__)).parent)


def test_no_repository_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KINEMA_GIT_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    tags = standard_tags(method="mofo", folder=tmp_path)
    assert tags == {"git.commit": "unknown", "git.dirty": "unknown", "method": "mofo"}


def test_variable_names_the_commit_of_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINEMA_GIT_COMMIT", "abc123-dirty")
    tags = standard_tags(method="mofo", paper="Fig. 3", manifest_digest="m", store_digest="s")
    assert tags["git.commit"] == tags["mlflow.source.git.commit"] == "abc123"
    assert tags["git.dirty"] == "true"
    assert (tags["paper"], tags["digest.manifest"], tags["digest.store"]) == ("Fig. 3", "m", "s")
    assert "ray.job_id" not in tags


def test_environment_and_packages_name_versions() -> None:
    found = environment()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["version.numpy"] == version("numpy")
    assert int(found["hardware.cpus"]) >= 1
    assert float(found["hardware.memory_gib"]) > 0
    lines = installed_packages().splitlines()
    assert f"numpy=={version('numpy')}" in lines
    assert lines == sorted(lines, key=str.lower)

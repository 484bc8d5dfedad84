"""Where a result came from: commit, versions, hardware, packages."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_TIMEOUT_S = 10
_CODE = Path(__file__).resolve().parent
_VERSIONS = ("ray", "torch", "deepspeed", "mlflow", "opencv-contrib-python-headless", "av", "numpy")
COMMIT_VARIABLE = "KINEMA_GIT_COMMIT"
"""Set where a job runs on a copy without `.git`: the commit, `-dirty` appended when it was so."""


@dataclass(frozen=True)
class GitState:
    """A commit and whether tracked files differ from it."""

    commit: str
    dirty: bool


def git_state(folder: str | Path = _CODE) -> GitState | None:
    """Commit of the working tree whose files `folder` holds: this package's, by default.

    None where there is no git or no commit, also where the folder only lies in somebody's tree, as
    an environment does. Ray ships a job's working directory without `.git`, so `KINEMA_GIT_COMMIT`
    may name it instead.
    """
    named = os.environ.get(COMMIT_VARIABLE)
    if named:
        return GitState(named.removesuffix("-dirty"), named.endswith("-dirty"))
    commit = _output(["git", "-C", str(folder), "rev-parse", "--verify", "HEAD"])
    if commit is None or not _output(["git", "-C", str(folder), "ls-files"]):
        return None
    changes = _output(["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"])
    return GitState(commit, dirty=bool(changes))


def environment() -> dict[str, str]:
    """Versions and hardware of this machine, by dotted names that read well as run tags."""
    found = {"python": platform.python_version(), "os": platform.platform()}
    for name in _VERSIONS:
        try:
            found[f"version.{name}"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[f"version.{name}"] = "not installed"
    found["hardware.cpus"] = str(os.cpu_count())
    pages, page_size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    found["hardware.memory_gib"] = f"{pages * page_size / 2**30:.1f}"
    found["hardware.gpus"] = ", ".join(_gpu_names()) or "none"
    return found


def installed_packages() -> str:
    """Every installed distribution as sorted `name==version` lines, like `pip freeze`."""
    pairs = {(dist.name, dist.version) for dist in metadata.distributions()}
    lines = (f"{name}=={version}\n" for name, version in pairs if name)
    return "".join(sorted(lines, key=str.lower))


def standard_tags(
    *,
    method: str,
    paper: str | None = None,
    manifest_digest: str | None = None,
    store_digest: str | None = None,
    ray_job_id: str | None = None,
    folder: str | Path = _CODE,
) -> dict[str, str]:
    """The tags every run carries; what does not apply is left out.

    `git.commit` is "unknown" where the code runs outside a git working tree.
    """
    state = git_state(folder)
    tags = {
        "git.commit": state.commit if state else "unknown",
        "git.dirty": str(state.dirty).lower() if state else "unknown",
        "method": method,
    }
    if state is not None:
        tags["mlflow.source.git.commit"] = state.commit
    optional = {
        "paper": paper,
        "digest.manifest": manifest_digest,
        "digest.store": store_digest,
        "ray.job_id": ray_job_id,
    }
    return tags | {name: value for name, value in optional.items() if value is not None}


def _gpu_names() -> list[str]:
    listing = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return listing.splitlines() if listing else []


def _output(command: Sequence[str]) -> str | None:
    """What a command prints, or None when it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()

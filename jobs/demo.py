"""The whole way in minutes: start a Ray cluster here, submit the inside-ratio sweep to it, end it.

make demo      or      python jobs/demo.py [key.path=value ...]
"""

import signal
import subprocess
import sys
from pathlib import Path

from kinema.cli import run
from kinema.pipelines.local_cluster import local_cluster

ROOT = Path(__file__).resolve().parent.parent
JOB = ["python", "jobs/sweep_mask_ratio.py"]


def main() -> int:
    """Submit the job the way a user does; its exit code is ours."""
    if {"--help", "-h", "--dry-run"} & set(sys.argv):  # which need no cluster
        script = [sys.executable, str(ROOT / JOB[1]), *sys.argv[1:]]
        return subprocess.run(script, cwd=ROOT, check=False).returncode
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the cluster has to end with us
    with local_cluster(working_dir=ROOT) as cluster:
        print(f"Ray dashboard: {cluster.dashboard} (while this runs)", flush=True)
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--", *JOB]
        print("ray job submit --", *JOB, *sys.argv[1:], flush=True)
        done = subprocess.run(
            [*command, *sys.argv[1:]], cwd=ROOT, env=dict(cluster.environment), check=False
        )
    return done.returncode


if __name__ == "__main__":
    run(main)

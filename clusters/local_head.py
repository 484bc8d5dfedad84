"""A Ray head for this checkout: loopback only, own ports and token, ended by its process id.

python clusters/local_head.py up      # starts it and says how to reach it
python clusters/local_head.py down    # ends it and nothing else
"""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from kinema.cli import run
from kinema.errors import ClusterError
from kinema.pipelines.local_cluster import local_cluster

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / ".cluster"
PID, ENV, LOG = FOLDER / "pid", FOLDER / "env", FOLDER / "log"
STOP_TIMEOUT_S = 60


def up() -> None:
    """Start the head in the background and wait until it takes jobs."""
    if is_running():
        print(f"A head is running already. In each shell that uses it: source {ENV}")
        return
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    ENV.unlink(missing_ok=True)
    command = [sys.executable, __file__, "hold"]
    with LOG.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while not ENV.exists():
        if process.poll() is not None:
            raise ClusterError(f"the head did not start:\n{LOG.read_text(errors='replace')}")
        time.sleep(0.2)
    print(f"Ray is up. In each shell that uses it: source {ENV}")


def down() -> None:
    """End the head that `up` started."""
    if not is_running():
        print("No head of this checkout is running.")
        return
    os.kill(int(PID.read_text()), signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while is_running():
        if time.monotonic() > deadline:
            raise ClusterError(f"process {PID.read_text()} does not end; its log is {LOG}")
        time.sleep(0.2)
    print("Ended.")


def hold() -> None:
    """Keep the head alive until this process is told to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with PID.open("w") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked.write(str(os.getpid()))
        locked.flush()
        try:
            with local_cluster(working_dir=REPOSITORY) as cluster:
                write_environment(cluster.environment)
                print(f"dashboard {cluster.dashboard}", flush=True)
                cluster.process.wait()
        finally:
            ENV.unlink(missing_ok=True)


def write_environment(environment: dict[str, str]) -> None:
    """What a shell has to `source` to reach the head; only its owner may read it: the token."""
    names = ["PATH", *sorted(name for name in environment if name.startswith("RAY_"))]
    lines = [f"export {name}={shlex.quote(environment[name])}\n" for name in names]
    partial = ENV.with_suffix(".part")
    partial.touch(mode=0o600)
    partial.write_text("".join(lines))
    partial.rename(ENV)


def is_running() -> bool:
    """Whether the process in the pid file lives: it holds a lock, so a reused id cannot deceive."""
    if not PID.exists():
        return False
    with PID.open() as held:
        try:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def main() -> int:
    """Do what the first argument says."""
    actions = {"up": up, "down": down, "hold": hold}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        print(__doc__, file=sys.stderr)
        return 2
    actions[sys.argv[1]]()
    return 0


if __name__ == "__main__":
    run(main)

"""Send MLflow what it missed while it did not answer; no run of the storage root may be going on.

python jobs/replay_tracking.py

Start it where the runs were started from: of a storage root in the cloud the journals lie there.
Nothing is sent twice. Ends with status 1 where the server still lacks something.
"""

from kinema.cli import parse, run
from kinema.tracking import ReplayConfig, replay


def main() -> int:
    """Send, and say whether that was all."""
    config = parse(ReplayConfig, default=None, description=__doc__)
    incomplete = replay(config.root, config.tracking_uri)
    if not incomplete:
        print("MLflow has everything.")
        return 0
    runs = f"{incomplete} run{'s' if incomplete != 1 else ''}"
    print(f"MLflow still lacks something of {runs}; start this again when it answers.")
    return 1


if __name__ == "__main__":
    run(main)

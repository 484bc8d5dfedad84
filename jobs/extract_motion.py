"""Find motion boxes in every video of a manifest; Parquet in, Parquet out, resumable.

python jobs/extract_motion.py                                      # known-answer set
python jobs/extract_motion.py experiments/mofo/ssv2.yaml data.manifest=ssv2.parquet
"""

from kinema.cli import parse, run
from kinema.experiment import Experiment
from kinema.pipelines.prepare import prepare, start


def main() -> int:
    """Extract what is missing."""
    experiment = parse(Experiment, default="experiments/demo/base.yaml", description=__doc__)
    start(experiment)
    prepare([experiment.resolved()], reads_motion=lambda _: True)
    return 0


if __name__ == "__main__":
    run(main)

"""Make the known-answer set: clips whose classes differ by motion alone, the truth beside them.

python jobs/make_synthetic.py
python jobs/make_synthetic.py experiments/demo/base.yaml data.synthetic.size=128
"""

from kinema.cli import parse, run
from kinema.experiment import Experiment
from kinema.pipelines.prepare import prepare_manifest


def main() -> int:
    """Make the set and print where its manifest lies."""
    experiment = parse(Experiment, default="experiments/demo/base.yaml", description=__doc__)
    print(prepare_manifest(experiment.resolved()))
    return 0


if __name__ == "__main__":
    run(main)

"""Classify clips by their motion boxes alone, without a pixel: what do the boxes give away?

python jobs/boxes_only.py                                          # demo size, known-answer set
python jobs/boxes_only.py experiments/real/iri_gesture.yaml data.manifest=iri.parquet \\
    control.protocol=leave_one_group_out
"""

from kinema.cli import parse, run
from kinema.pipelines.boxes_only import BoxesOnlyExperiment, classify_boxes


def main() -> int:
    """Extract what is missing, train and test, and print the accuracy beside chance."""
    experiment = parse(
        BoxesOnlyExperiment,
        default="experiments/demo/base.yaml",
        description=__doc__,
        check=BoxesOnlyExperiment.check_given,
    )
    classify_boxes(experiment)
    return 0


if __name__ == "__main__":
    run(main)

"""Compare motion boxes with annotated ones: IoU overall, by class, and the best and worst videos.

python jobs/evaluate_boxes.py                                      # known-answer set
python jobs/evaluate_boxes.py experiments/mofo/ssv2.yaml data.manifest=ssv2.parquet \\
    boxes=boxes.parquet
"""

from kinema.cli import parse, run
from kinema.pipelines.boxes import BoxAgreementExperiment, evaluate_boxes


def main() -> int:
    """Extract what is missing, compare, and print the agreement with its interval."""
    experiment = parse(
        BoxAgreementExperiment,
        default="experiments/demo/base.yaml",
        description=__doc__,
        check=BoxAgreementExperiment.check_given,
    )
    evaluate_boxes(experiment)
    return 0


if __name__ == "__main__":
    run(main)

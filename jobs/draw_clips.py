"""Draw clips as pretraining sees them: frames and box, motion, what is hidden, what is predicted.

python jobs/draw_clips.py                                          # demo size, known-answer set
python jobs/draw_clips.py experiments/mgm/ssv2.yaml data.manifest=ssv2.parquet output=pictures
"""

from kinema.cli import parse, run
from kinema.pipelines.draw import DrawExperiment, draw


def main() -> int:
    """Draw some clips; what their motion needs is extracted first."""
    draw(
        parse(
            DrawExperiment,
            default="experiments/demo/motion.yaml",
            description=__doc__,
            check=DrawExperiment.check_given,
        )
    )
    return 0


if __name__ == "__main__":
    run(main)

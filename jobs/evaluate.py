"""Test a finetuned classifier: several views of every test video, each video exactly once.

python jobs/evaluate.py                                # the demo run of jobs/finetune.py
python jobs/evaluate.py experiments/mofo/ssv2.yaml data.manifest=ssv2.parquet \\
    checkpoint=best.safetensors evaluation.num_clips=5
"""

from kinema.cli import parse, run
from kinema.pipelines.evaluate import EvaluateExperiment, evaluate


def main() -> int:
    """Test; the exit code tells whether every video could be read."""
    return evaluate(
        parse(
            EvaluateExperiment,
            default="experiments/demo/base.yaml",
            description=__doc__,
            check=EvaluateExperiment.check_given,
        )
    )


if __name__ == "__main__":
    run(main)

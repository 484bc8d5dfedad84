"""Sweep the inside mask ratio: pretrain, finetune and test once per ratio (MOFO, Fig. 3).

python jobs/sweep_mask_ratio.py                                    # demo size, known-answer set
python jobs/sweep_mask_ratio.py experiments/mofo/sweep_inside_ratio.yaml data.manifest=epic.parquet
"""

from kinema.cli import parse, run
from kinema.experiment import SweepExperiment
from kinema.pipelines.sweep import check_sweep, sweep


def main() -> int:
    """Run the sweep; the exit code tells whether every trial has a result."""
    return sweep(
        parse(
            SweepExperiment,
            default="experiments/demo/sweep_mask_ratio.yaml",
            description=__doc__,
            check=check_sweep,
        )
    )


if __name__ == "__main__":
    run(main)

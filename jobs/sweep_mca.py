"""Sweep heads and depth of the multi-cross attention on one pretrained encoder (MOFO, appendix).

python jobs/sweep_mca.py                                           # demo size, known-answer set
python jobs/sweep_mca.py experiments/mofo/sweep_mca.yaml data.manifest=epic.parquet
"""

from kinema.cli import parse, run
from kinema.experiment import SweepExperiment
from kinema.pipelines.sweep import check_sweep, sweep


def main() -> int:
    """Run the sweep; the exit code tells whether every trial has a result."""
    return sweep(
        parse(
            SweepExperiment,
            default="experiments/demo/sweep_mca.yaml",
            description=__doc__,
            check=check_sweep,
        )
    )


if __name__ == "__main__":
    run(main)

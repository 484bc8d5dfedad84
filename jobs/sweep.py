"""Run a paper's table: pretrain, finetune and test every variant, and compare them.

python jobs/sweep.py                                         # MGM's Table 4e at demo size
python jobs/sweep.py experiments/mgm/table_4e.yaml data.manifest=ssv2.parquet
"""

from kinema.cli import parse, run
from kinema.experiment import SweepExperiment
from kinema.pipelines.sweep import check_sweep, sweep


def main() -> int:
    """Run the sweep; the exit code tells whether every trial has a result."""
    return sweep(
        parse(
            SweepExperiment,
            default="experiments/demo/mgm_table_4e.yaml",
            description=__doc__,
            check=check_sweep,
        )
    )


if __name__ == "__main__":
    run(main)

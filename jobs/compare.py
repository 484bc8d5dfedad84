"""Compare two tested runs video by video: a paired test, and what one gets right alone.

python jobs/compare.py RUN_A RUN_B
python jobs/compare.py 1f0c2d9a runs/other/predictions.parquet output=here

A run is its key, its MLflow run id, its folder or its predictions.parquet.
"""

from kinema.cli import parse, run
from kinema.pipelines.compare import CompareConfig, compare_runs


def main() -> int:
    """Compare and print."""
    positional = ("run_a", "run_b")
    compare_runs(parse(CompareConfig, default=None, description=__doc__, positional=positional))
    return 0


if __name__ == "__main__":
    run(main)

"""The transfer matrix: encoders of several sources on several targets, by several protocols.

python jobs/transfer.py                                            # demo size, known-answer sets
python jobs/transfer.py experiments/mofo/table_3.yaml transfer.targets.SSv2.data.manifest=b.parquet
"""

from kinema.cli import parse, run
from kinema.pipelines.transfer import transfer
from kinema.pipelines.transfer_plan import TransferExperiment


def main() -> int:
    """Fill the matrix; the exit code tells whether every cell has a result."""
    return transfer(
        parse(TransferExperiment, default="experiments/demo/transfer.yaml", description=__doc__)
    )


if __name__ == "__main__":
    run(main)

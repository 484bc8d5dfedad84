"""Pretrain an encoder, without labels.

python jobs/pretrain.py                                            # demo size, known-answer set
python jobs/pretrain.py experiments/mofo/ssv2.yaml data.manifest=ssv2.parquet
"""

from kinema.cli import parse, run
from kinema.experiment import AnyExperiment
from kinema.pipelines.single import run_experiment


def main() -> int:
    """Pretrain and print where the encoder lies."""
    experiment = parse(
        AnyExperiment,
        default="experiments/demo/base.yaml",
        description=__doc__,
        check=AnyExperiment.check_given,
    )
    return run_experiment(experiment.plain().varied({"finetune": None}), experiment.label)


if __name__ == "__main__":
    run(main)

"""Finetune an encoder on labels and test it; pretrains it first when it does not exist yet.

python jobs/finetune.py                                            # demo size, known-answer set
python jobs/finetune.py experiments/mofo/ssv2.yaml data.manifest=ssv2.parquet head.name=mca
python jobs/finetune.py experiments/mofo/ssv2.yaml pretrain=null encoder=path/encoder.safetensors
python jobs/finetune.py experiments/mofo/table_1.yaml variant=MOFO-dagger  # a row of a sweep
"""

from kinema.cli import parse, run
from kinema.experiment import AnyExperiment
from kinema.pipelines.single import run_experiment


def main() -> int:
    """Finetune, test, and print the accuracy with its interval."""
    experiment = parse(
        AnyExperiment,
        default="experiments/demo/base.yaml",
        description=__doc__,
        check=AnyExperiment.check_given,
    )
    return run_experiment(experiment.plain(), experiment.label)


if __name__ == "__main__":
    run(main)

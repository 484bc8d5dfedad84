"""Probe a frozen encoder with labels: linear, nearest neighbours, attentive.

python jobs/probe.py                                               # demo size, known-answer set
python jobs/probe.py experiments/mme/ssv2.yaml data.manifest=ssv2.parquet probe.name=knn
python jobs/probe.py experiments/mgm/k400.yaml data.manifest=ucf101.parquet \\
    pretrain=null encoder=path/encoder.safetensors probe.optimizer.name=lbfgs
python jobs/probe.py pretrain=null                                 # random weights, the control
"""

from kinema.cli import parse, run
from kinema.pipelines.probe import ProbeExperiment, probe_experiment


def main() -> int:
    """Read features, fit the probe, and print the accuracy with its interval."""
    return probe_experiment(
        parse(
            ProbeExperiment,
            default="experiments/demo/base.yaml",
            description=__doc__,
            check=ProbeExperiment.check_given,
        )
    )


if __name__ == "__main__":
    run(main)

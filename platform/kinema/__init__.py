"""Motion-focused self-supervised video learning as repeatable experiments on Ray.

The way a clip goes, each step one package or module, each importing only what stands below it:

    jobs/            one file a stage: parse settings, run, print the result
    kinema.cli       file + overrides -> settings; errors of users without a traceback
    kinema.pipelines Ray: cluster, extraction, training, sweeps (the only importer of ray)
    kinema.figures   pictures and tables out of results
    kinema.experiment  the knobs of a whole run
    kinema.tracking  the only importer of mlflow
    kinema.evaluation  views, metrics, statistics
    kinema.training  data, optimisation, loop, stages (engine: the only importer of deepspeed)
    kinema.models    ViT, masked autoencoder, targets, heads, weights
    kinema.masking   token grids and every mask
    kinema.motion    flow, boxes, motion store
    kinema.video     manifests, decoding, sampling, augmentation
    kinema.geometry  boxes and the one spatial transform of frames, boxes and fields
    kinema.config, storage, randomness, errors: settings, files, generators, messages

Importing kinema starts nothing and loads nothing heavy.
"""

__version__ = "0.1.0"

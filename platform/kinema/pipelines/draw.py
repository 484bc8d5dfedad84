"""Pictures of the clips of an experiment, as its pretraining would see them."""

from __future__ import annotations

import io
from dataclasses import replace

from pydantic import Field, PositiveInt

from kinema import storage
from kinema.errors import ConfigError
from kinema.experiment import AnyExperiment
from kinema.figures.clips import clip_figure
from kinema.motion.flow import AnnotatedBoxes, CodecVectors
from kinema.pipelines.prepare import extract_motion, prepare_manifest, start
from kinema.training.data import ClipSource, TrainingClips
from kinema.training.frames import FrameCache
from kinema.training.order import SampleKey
from kinema.trial import open_motion
from kinema.video.manifest import Manifest

DPI = 110


class DrawExperiment(AnyExperiment):
    """An experiment, and which of its clips to draw."""

    num_clips: PositiveInt = Field(4, description="clips to draw, spread over the training split")
    output: str = Field("clips", description="folder or URI for the pictures")


def draw(experiment: DrawExperiment) -> list[str]:
    """Extract the drawn clips' motion where it is missing, draw, and return the pictures' URIs.

    Raises:
        ConfigError: the experiment does not pretrain, or there is nothing to draw.
    """
    if experiment.pretrain is None:
        raise ConfigError(["pretrain: null; only pretraining's clips are drawn"])
    chosen = experiment.resolved()
    start(chosen, experiment.output)
    uri = prepare_manifest(chosen)
    manifest = Manifest.read(uri)
    entries = manifest.select("train").rows() or manifest.rows()
    step = max(1, len(entries) // experiment.num_clips)
    entries = entries[::step][: experiment.num_clips]
    if chosen.motion is not None:
        extract_motion(uri, chosen.motion, chosen, only={entry.id for entry in entries})
    assert chosen.pretrain is not None
    fields = chosen.motion.fields if chosen.motion else None
    source = ClipSource(
        entries,
        chosen.model,
        chosen.pretrain.sampling,
        chosen.data.reduce,
        open_motion(chosen, entries, manifest.digest),
        FrameCache(0),
        stride=fields.stride if fields else 1,
    )
    clips = TrainingClips(
        source,
        chosen.pretrain.augment,
        chosen.seed,
        mask=chosen.mask,
        requests=chosen.target.requests(chosen.model),
        shuffle=chosen.pretrain.shuffle_frames,
    )
    flow = None if chosen.motion is None else chosen.motion.flow
    estimator = None
    if flow is not None and not isinstance(flow, CodecVectors | AnnotatedBoxes):
        estimator = flow.estimator()
    reads_boxes = "boxes" in chosen.mask.needs | chosen.head.needs
    pictures = []
    for index, entry in enumerate(entries):
        sample, seen = clips.draw(SampleKey(0, index, 0))
        if not reads_boxes:
            seen = replace(seen, boxes=None)
        figure = clip_figure(sample, seen, chosen.target, chosen.model, estimator)
        picture = io.BytesIO()
        figure.savefig(picture, dpi=DPI, format="png")
        uri = storage.join(storage.absolute(experiment.output), f"{index:03d}.png")
        storage.write_bytes(uri, picture.getvalue())
        pictures.append(uri)
        print(f"{uri}: {entry.id}", flush=True)
    return pictures

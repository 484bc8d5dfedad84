"""Motion extraction of a whole manifest with Ray Data into the motion store.

The driver decides what is to do: a video whose row carries the digest of its bytes, the parameters
and the extractor's version is done. `over_videos` does the rest.
"""

from __future__ import annotations

from functools import partial

from kinema.motion.extractor import MotionConfig
from kinema.motion.flow import AnnotatedBoxes, CodecVectors
from kinema.motion.store import MotionStore, row_digest
from kinema.pipelines.cluster import require
from kinema.pipelines.isolation import Packed
from kinema.pipelines.one_video import extract_one, located, motion_digest
from kinema.pipelines.over_videos import VideoJob, judge, outdated, run_over
from kinema.storage import absolute
from kinema.video.manifest import Entry, Manifest


def extract(
    manifest_uri: str,
    motion_config: MotionConfig,
    storage_root: str,
    *,
    num_cpus: int | None = None,
    timeout_s: float = 600.0,
    max_failure_ratio: float = 0.0,
) -> MotionStore:
    """Bring the motion store up to date with a manifest, on the connected cluster.

    A row of a video whose bytes changed is dropped and made again. Videos that fail are listed in
    the store's `failures.parquet`, and tried again the next time.

    Args:
        num_cpus: cores to use; all that the cluster has or can have by default.
        timeout_s: limit per video.
        max_failure_ratio: share of the manifest's videos that may fail.

    Raises:
        KinemaError: more failed, after everything that worked was stored.
        ClusterError: the cluster has no core.
    """
    if not isinstance(motion_config.flow, CodecVectors | AnnotatedBoxes):
        motion_config.flow.estimator()  # an OpenCV without it says so here, not once per video
    require([{"CPU": 1}], "motion extraction")
    entries = Manifest.read(manifest_uri).rows()
    storage_root = absolute(storage_root)
    store = MotionStore(storage_root, motion_config)
    work = located(motion_config, manifest_uri)
    digest = partial(_digest, config=motion_config, work=work)
    todo, changed = outdated(entries, store.existing(), digest)
    store.drop(changed)
    job = VideoJob(Packed.of(extract_one, work), store.write_part, timeout_s)
    failures = run_over("motion", len(entries), todo, job, num_cpus)
    if todo:
        store.write_failures(failures)
    listed_in = f"{store.uri}/failures.parquet"
    key = "extraction.max_failure_ratio"
    judge("motion extraction", failures, len(entries), max_failure_ratio, listed_in, key)
    return store


def _digest(entry: Entry, config: MotionConfig, work: MotionConfig) -> str:
    return row_digest(motion_digest(entry, work), config)

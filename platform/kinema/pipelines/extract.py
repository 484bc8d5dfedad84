"""Motion extraction of a whole manifest with Ray Data into the motion store.

The driver decides what is to do: a video with a row that carries the digest of its bytes, the
parameters and the extractor's version is done. `over_videos` does the rest.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from kinema.errors import StoreError
from kinema.motion.annotated import located
from kinema.motion.extractor import MotionConfig
from kinema.motion.flow import AnnotatedBoxes, CodecVectors
from kinema.motion.parts import row_digest
from kinema.motion.store import MotionStore
from kinema.pipelines.cluster import require
from kinema.pipelines.isolation import Packed
from kinema.pipelines.one_video import extract_one, motion_digest
from kinema.pipelines.over_videos import VideoJob, digests, judge, run_over
from kinema.storage import absolute
from kinema.video.manifest import Entry, Manifest


def extract(
    manifest_uri: str,
    motion_config: MotionConfig,
    storage_root: str,
    *,
    only: Collection[str] | None = None,
    num_cpus: int | None = None,
    timeout_s: float = 600.0,
    max_failure_ratio: float = 0.0,
) -> MotionStore:
    """Bring the motion store up to date with a manifest, on the connected cluster.

    A row of a video whose bytes changed is made again; the old one goes, unless it is that of a
    video of another manifest. Videos that fail are listed, and tried again the next time.

    Args:
        only: ids of the videos to see to, where others wait and stay listed as they are; all by
            default.
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
    manifest = Manifest.read(manifest_uri)
    entries = manifest.rows()
    store = MotionStore(absolute(storage_root), motion_config, manifest.digest)
    work = located(motion_config, manifest_uri)
    digest = partial(_digest, config=motion_config, work=work)
    before = store.existing()
    current = digests([entry for entry in entries if entry.id in before], digest)
    done = {id: made for id, made in current.items() if made is not None and made in before[id]}
    total, waiting = len(entries), []
    if only is not None:
        earlier = store.failures()
        waiting = [
            (id, error.path, error.why)
            for id, error in earlier.items()
            if id not in only and id not in done
        ]
        entries = [entry for entry in entries if entry.id in only]
    todo = [entry for entry in entries if entry.id not in done]
    job = VideoJob(Packed.of(extract_one, work), store.write_part, timeout_s)
    failures = run_over("motion", len(entries), todo, job, num_cpus)
    failed = {id for id, _, _ in failures}
    after = store.existing() if todo else before
    made = {
        e.id: after.get(e.id, set()) - before.get(e.id, set()) for e in todo if e.id not in failed
    }
    store.write_index(done | {id: _only(id, new) for id, new in made.items()})
    store.write_failures([*waiting, *failures])
    store.drop((id, old) for id in made for old in before.get(id, ()))
    key = "extraction.max_failure_ratio"
    judge("motion extraction", failures, total, max_failure_ratio, store.failures_uri, key)
    return store


def _only(id: str, digests: set[str]) -> str:
    if len(digests) != 1:
        raise StoreError(f"{id}: another job extracted its motion meanwhile; run this one again")
    return next(iter(digests))


def _digest(entry: Entry, config: MotionConfig, work: MotionConfig) -> str:
    return row_digest(motion_digest(entry, work), config)

"""The jobs over whole data sets: what they take, and what they print. Their work is elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from kinema import storage
from kinema.config import fingerprint
from kinema.experiment import DataConfig, ExtractionConfig
from kinema.figures.table import TextTable
from kinema.motion.annotated import boxes_by_frame
from kinema.pipelines.annotations import boxes_of, find_boxes
from kinema.pipelines.prepare import prepare_manifest, start
from kinema.pipelines.reencode import reencode_all
from kinema.pipelines.report import report
from kinema.video.encode import ENCODER_VERSION, EncodeConfig
from kinema.video.manifest import Manifest
from kinema.video.synthetic import SyntheticConfig
from kinema.wording import counted


class VideosConfig(ExtractionConfig):
    """Which videos, and where results go."""

    data: DataConfig = DataConfig(synthetic=SyntheticConfig())
    output: str | None = Field(
        None, description="folder or URI to write to; default: under storage, named after the work"
    )
    storage: str | None = Field(None, description="root of everything durable; $KINEMA_STORAGE")

    @property
    def root(self) -> str:
        """Absolute storage root."""
        return storage.absolute(self.storage or storage.default_root())


class ReencodeConfig(VideosConfig):
    """Which videos to re-encode, how, and where to."""

    encode: EncodeConfig = EncodeConfig()


class ReportConfig(VideosConfig):
    """Which videos to report on."""

    boxes: str | None = Field(
        None,
        description="Parquet of annotated boxes for the saliency score: id, frame (of the file,"
        " from 0), left, top, right, bottom (pixels); the known-answer set has its own",
    )


def reencode_videos(config: ReencodeConfig) -> str:
    """Re-encode on a cluster; returns the new manifest's URI. See `reencode_all`."""
    start(config, config.output)
    uri = prepare_manifest(config)
    name = fingerprint(Manifest.read(uri).digest, config.encode, ENCODER_VERSION)
    return reencode_all(
        uri,
        config.encode,
        storage.absolute(config.output or storage.join(config.root, "prepared", name)),
        num_cpus=config.num_cpus,
        timeout_s=config.timeout_s,
        max_failure_ratio=config.max_failure_ratio,
    )


def report_videos(config: ReportConfig) -> dict[str, Any]:
    """Report on a cluster and print it; returns what `report.json` says.

    Raises:
        ManifestError: the boxes are malformed, or none of them is of these videos.
        KinemaError: too many videos failed, after everything that worked was stored.
    """
    start(config, config.output)
    uri = prepare_manifest(config)
    digest = Manifest.read(uri).digest
    output = storage.absolute(config.output or storage.join(config.root, "reports", digest))
    boxes_uri = find_boxes(config.boxes, config.data.manifest, uri)
    annotated = {} if boxes_uri is None else boxes_of(uri, boxes_uri)
    found = report(
        uri,
        {id: boxes_by_frame(rows) for id, rows in annotated.items()},
        output,
        num_cpus=config.num_cpus,
        timeout_s=config.timeout_s,
        max_failure_ratio=config.max_failure_ratio,
    )
    print(text_of(found))
    print(f"per video: {storage.join(output, 'videos.parquet')}")
    return found


def text_of(found: Mapping[str, Any]) -> str:
    """A report for the terminal."""
    rows = []
    for codec, row in found["codecs"].items():
        low, middle, high = row["gop"] or (None, None, None)
        rows.append(
            [
                codec,
                str(row["videos"]),
                str(row["frames"]),
                "-" if middle is None else f"{middle:g} ({low} to {high})",
                f"{row['share_b']:.1%}",
                f"{row['share_with_vectors']:.1%}",
                str(row["exact"]),
            ]
        )
    header = ["codec", "videos", "frames", "GOP", "B-frames", "with vectors", "exact videos"]
    lines = [TextTable(header, rows, [False] + [True] * 6).text()]
    score = found["saliency"]
    if score is None:
        lines.append("saliency score: none, no annotated boxes with motion around them (boxes=...)")
    else:
        lines.append(
            f"saliency score (motion inside / outside of boxes): {score['value']:.2f}"
            f" [{score['low']:.2f}, {score['high']:.2f}], {counted(score['videos'], 'video')}"
        )
    return "\n".join(lines)

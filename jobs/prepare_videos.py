"""Re-encode a data set as H.264 with one reference and no B-frames: small, and with exact vectors.

python jobs/prepare_videos.py                                      # known-answer set
python jobs/prepare_videos.py data.manifest=ssv2.parquet output=ssv2 encode.short_side=240
"""

from kinema.cli import parse, run
from kinema.pipelines.videos import ReencodeConfig, reencode_videos


def main() -> int:
    """Re-encode what is missing and write the manifest of the result."""
    config = parse(ReencodeConfig, default=None, description=__doc__)
    reencode_videos(config)
    return 0


if __name__ == "__main__":
    run(main)

"""What a data set's videos offer to methods that read motion vectors, and its saliency score.

python jobs/report_videos.py                                       # known-answer set
python jobs/report_videos.py data.manifest=ssv2.parquet boxes=boxes.parquet
"""

from kinema.cli import parse, run
from kinema.pipelines.videos import ReportConfig, report_videos


def main() -> int:
    """Report codec, key frames, vectors and saliency."""
    config = parse(ReportConfig, default=None, description=__doc__)
    report_videos(config)
    return 0


if __name__ == "__main__":
    run(main)

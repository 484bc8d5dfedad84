"""Write the manifest of a data set: from VideoMAE lists, class folders, or an existing manifest.

python jobs/index_videos.py format=folders source=path/to/videos output=path/to/manifest.parquet
python jobs/index_videos.py format=list lists.train=train.csv lists.test=test.csv output=all.parquet
"""

from kinema.cli import parse, run
from kinema.video.manifest import IndexConfig, index


def main() -> int:
    """Index the videos; unreadable ones go to a failures table beside the manifest."""
    return index(parse(IndexConfig, default=None, description=__doc__))


if __name__ == "__main__":
    run(main)

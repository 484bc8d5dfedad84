r"""Write the manifest of a data set: of lists, class folders, a table, or official annotations.

python jobs/index_videos.py dataset.name=folders dataset.source=path/to/videos output=all.parquet
python jobs/index_videos.py dataset.name=list dataset.lists.train=train.csv output=all.parquet
python jobs/index_videos.py dataset.name=ucf101 dataset.annotations=lists dataset.videos=videos \\
  dataset.fold=1 output=ucf101.parquet
"""

from kinema.cli import parse, run
from kinema.video.index import IndexConfig, index


def main() -> int:
    """Index the videos; what is missing, unreadable or doubtful goes to tables beside it."""
    return index(parse(IndexConfig, default=None, description=__doc__))


if __name__ == "__main__":
    run(main)

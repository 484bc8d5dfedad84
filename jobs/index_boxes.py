"""Make the table of annotated boxes of a data set out of its published annotation.

python jobs/index_boxes.py annotation.name=something_else files=[part1.json,part2.json] \\
    manifest=ssv2.parquet output=boxes.parquet
python jobs/index_boxes.py annotation.name=epic_objects files=[EPIC_train_object_labels.csv] \\
    manifest=epic.parquet size=[1920,1080] min_matched=0.2 output=boxes.parquet
"""

from kinema.cli import parse, run
from kinema.pipelines.annotations import IndexBoxesConfig, index_boxes


def main() -> int:
    """Index the boxes and say how many of the manifest's videos have some."""
    return index_boxes(parse(IndexBoxesConfig, default=None, description=__doc__))


if __name__ == "__main__":
    run(main)

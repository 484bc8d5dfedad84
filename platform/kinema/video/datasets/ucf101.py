"""UCF101 by its official lists: classInd.txt, trainlist0N.txt and testlist0N.txt."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from kinema import storage
from kinema.errors import ManifestError
from kinema.video.datasets.annotations import Places, class_index, each, whole_number
from kinema.video.datasets.rule import DatasetRule
from kinema.video.sources import Listing, Source, Split, locate, read_lines

_GROUP = re.compile(r"v_(.+_g\d+)_c\d+\.\w+")


class UCF101(DatasetRule):
    """UCF101 (Soomro et al. 2012), 101 classes; clips of one group were cut from one recording."""

    name: Literal["ucf101"] = "ucf101"
    annotations: str = Field(
        description="folder of classInd.txt, trainlist0N.txt and testlist0N.txt"
    )
    videos: str = Field(description="folder of the class folders")
    fold: int = Field(1, ge=1, le=3, description="official split of train and test")

    def read(self) -> Listing:
        """The fold's training and test lists. Ids are the lists' paths."""
        labels = _read_classes(storage.join(self.annotations, "classInd.txt"))
        places = Places()
        lists: dict[Split, str] = {
            "train": f"trainlist{self.fold:02}.txt",
            "test": f"testlist{self.fold:02}.txt",
        }
        sources = [
            source
            for split, name in lists.items()
            for source in self._read(storage.join(self.annotations, name), split, labels, places)
        ]
        return Listing(sources, tuple(labels), {"dataset.videos": storage.absolute(self.videos)})

    def _read(
        self, file: str, split: Split, labels: dict[str, int], places: Places
    ) -> list[Source]:
        """Lines `Class/v_Class_gNN_cNN.avi number`, numbers from 1; the test list has none."""
        root = storage.absolute(self.videos)

        def read(where: str, line: str) -> Source:
            path, _, number = line.strip().partition(" ")
            id, located = locate(root, path, where)
            class_name = id.partition("/")[0]
            label = class_index(class_name, labels, where)
            stated = number if split == "train" or number else str(label + 1)
            if whole_number(stated, "class number", where) != label + 1:
                raise ManifestError(
                    f"{where}: class number {number}, but {class_name} is {label + 1}"
                    " in classInd.txt"
                )
            places.add(id, where)
            group = group_of(id, where)
            return Source(id, located, split, label, class_name, group)

        found = each(read_lines(file), read)
        if not found:
            raise ManifestError(f"{file}: lists no videos")
        return found


def group_of(id: str, where: str) -> str:
    """Class and number of the group: `Archery/v_Archery_g07_c01.avi` is of `Archery_g07`.

    Raises:
        ManifestError: the name is not of this form.
    """
    match = _GROUP.fullmatch(id.rpartition("/")[2])
    if match is None:
        raise ManifestError(f"{where}: expected Class/v_Class_gNN_cNN.avi, got {id!r}")
    return match[1]


def _read_classes(file: str) -> dict[str, int]:
    """Label by class; lines `number name`, numbered from 1."""
    labels: dict[str, int] = {}
    for where, line in read_lines(file):
        number, _, name = line.strip().partition(" ")
        if whole_number(number, "class number", where) != len(labels) + 1 or not name.strip():
            raise ManifestError(
                f"{where}: expected '{len(labels) + 1} Class', got {line.strip()!r}"
            )
        if name.strip() in labels:
            raise ManifestError(f"{where}: class {name.strip()!r} is there already")
        labels[name.strip()] = len(labels)
    if not labels:
        raise ManifestError(f"{file}: names no classes")
    return labels

"""Something-Something V2 by its official JSON files."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from kinema import storage
from kinema.errors import ManifestError
from kinema.video.datasets.annotations import (
    Places,
    class_index,
    each,
    read_entries,
    read_json,
    whole_number,
)
from kinema.video.datasets.rule import DatasetRule
from kinema.video.sources import Listing, Source, Split, locate

_BRACKETS = re.compile(r"[\[\]]")


class SSv2(DatasetRule):
    """Something-Something V2 (Goyal et al. 2017): 174 templates, such as "Closing something"."""

    name: Literal["ssv2"] = "ssv2"
    annotations: str = Field(
        description="folder of something-something-v2-train.json, -validation.json, -labels.json"
    )
    videos: str = Field(description="folder of the files")
    splits: list[Split] = Field(
        ["train", "validation"], min_length=1, description="to index; test has no labels"
    )
    suffix: str = Field(".webm", description="of the files; .mp4 for a re-encoded copy")
    prefix: str = Field("something-something-v2-", description="of the annotation files' names")

    def read(self) -> Listing:
        """The splits asked for. Ids are the data set's numbers, whatever the files' suffix."""
        labels = _read_labels(self._file("labels"))
        places = Places()
        sources = [source for split in self.splits for source in self._read(split, labels, places)]
        roots = {"dataset.videos": storage.absolute(self.videos)}
        return Listing(sources, tuple(sorted(labels, key=labels.__getitem__)), roots)

    def _file(self, what: str) -> str:
        return storage.join(self.annotations, f"{self.prefix}{what}.json")

    def _read(self, split: Split, labels: dict[str, int], places: Places) -> list[Source]:
        file = self._file(split)
        if not storage.exists(file):
            raise ManifestError(
                f"{file} does not exist; put it there, or leave split '{split}' out with"
                f" dataset.splits=[{', '.join(other for other in self.splits if other != split)}]"
            )
        root = storage.absolute(self.videos)
        keys = ("id",) if split == "test" else ("id", "template")

        def read(where: str, entry: dict[str, str]) -> Source:
            id, path = locate(root, entry["id"] + self.suffix, where)
            id = id.removesuffix(self.suffix)
            places.add(id, where)
            name = None if split == "test" else _BRACKETS.sub("", entry["template"])
            label = None if name is None else class_index(name, labels, where)
            return Source(id, path, split, label, name)

        return each(read_entries(file, dict.fromkeys(keys, str)), read)


def _read_labels(file: str) -> dict[str, int]:
    """Label by template without brackets; the file has numbers as strings."""
    named = read_json(file)
    if not isinstance(named, dict) or not all(isinstance(value, str) for value in named.values()):
        raise ManifestError(f"{file}: expected an object of label numbers in quotes, by template")
    labels = {
        name: whole_number(number, f"label of {name!r}", file) for name, number in named.items()
    }
    if sorted(labels.values()) != list(range(len(labels))):
        raise ManifestError(f"{file}: the labels are not the numbers 0 to {len(labels) - 1}")
    return labels

"""HMDB51 by its official lists: one file per class and split."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from kinema import storage
from kinema.errors import ManifestError
from kinema.video.datasets.annotations import Places, each
from kinema.video.datasets.rule import DatasetRule
from kinema.video.sources import Listing, Source, Split, locate, read_lines

NUM_CLASSES = 51

_LINE = re.compile(r"\s*(\S.*?)\s+([012])\s*")
_SPLITS: dict[str, Split] = {"1": "train", "2": "test"}
"""0 = not used in this split."""


class HMDB51(DatasetRule):
    """HMDB51 (Kuehne et al. 2011). Names hold `!`, `(`, `[`, `+`, `#`, `&` and `;`."""

    name: Literal["hmdb51"] = "hmdb51"
    annotations: str = Field(description="folder of the files CLASS_test_splitN.txt")
    videos: str = Field(description="folder of the class folders")
    fold: int = Field(1, ge=1, le=3, description="official split of train and test")

    def read(self) -> Listing:
        """The fold's videos, class by class. Ids are `class/file`, groups the film cut from."""
        ending = f"_test_split{self.fold}.txt"
        files = {
            file.rpartition("/")[2].removesuffix(ending): file
            for file in storage.list_files(self.annotations, ending)
        }
        if len(files) != NUM_CLASSES:
            raise ManifestError(
                f"{self.annotations} has files *{ending} of {len(files)} classes, not of the"
                f" {NUM_CLASSES} of HMDB51; unpack test_train_splits.rar there"
            )
        classes, places = sorted(files), Places()
        sources = [
            source
            for label, class_name in enumerate(classes)
            for source in self._read(files[class_name], label, class_name, places)
        ]
        return Listing(sources, tuple(classes), {"dataset.videos": storage.absolute(self.videos)})

    def _read(self, file: str, label: int, class_name: str, places: Places) -> list[Source]:
        root = storage.absolute(self.videos)

        def read(where: str, line: str) -> Source | None:
            match = _LINE.fullmatch(line)
            if match is None:
                raise ManifestError(f"{where}: expected 'name.avi 0', 1 or 2, got {line.strip()!r}")
            name, use = match.groups()
            id, located = locate(root, f"{class_name}/{name}", where)
            places.add(id, where)
            group = film_of(name, class_name, where)
            if use not in _SPLITS:
                return None
            return Source(id, located, _SPLITS[use], label, class_name, group)

        return [source for source in each(read_lines(file), read) if source is not None]


def film_of(name: str, class_name: str, where: str) -> str:
    """What a clip was cut from: the part of its file's name before `_class_`.

    Raises:
        ManifestError: the name does not hold its class.
    """
    film, found, _ = name.rpartition(f"_{class_name}_")
    if not found or not film:
        raise ManifestError(f"{where}: expected FILM_{class_name}_...avi, got {name!r}")
    return film

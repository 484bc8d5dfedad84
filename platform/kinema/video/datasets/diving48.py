"""Diving48 by its official files of version 2."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field

from kinema import storage
from kinema.errors import ManifestError
from kinema.video.datasets.annotations import Places, each, in_range, read_entries, read_json
from kinema.video.datasets.rule import DatasetRule
from kinema.video.sources import Listing, Source, Split, locate

_KINDS = {"vid_name": str, "label": int, "start_frame": int, "end_frame": int}


class Diving48(DatasetRule):
    """Diving48 (Li et al. 2018), version 2: 48 classes are defined and 47 have videos."""

    name: Literal["diving48"] = "diving48"
    annotations: str = Field(
        description="folder of Diving48_V2_train.json, Diving48_V2_test.json, Diving48_vocab.json"
    )
    videos: str = Field(description="folder of the files")
    suffix: str = Field(".mp4", description="of the files")

    def read(self) -> Listing:
        """Both splits. The group is the competition that a dive was cut from."""
        classes = _read_classes(storage.join(self.annotations, "Diving48_vocab.json"))
        places = Places()
        splits: tuple[Split, ...] = ("train", "test")
        sources = [source for split in splits for source in self._read(split, classes, places)]
        return Listing(sources, classes, {"dataset.videos": storage.absolute(self.videos)})

    def _read(self, split: Split, classes: tuple[str, ...], places: Places) -> list[Source]:
        file = storage.join(self.annotations, f"Diving48_V2_{split}.json")
        root = storage.absolute(self.videos)

        def read(where: str, entry: dict[str, Any]) -> Source:
            id, label = entry["vid_name"], in_range(entry["label"], classes, where)
            places.add(id, where)
            competition = re.fullmatch(r"(.+)_\d+", id)
            if competition is None:
                raise ManifestError(f"{where}: expected a vid_name VIDEO_NUMBER, got {id!r}")
            if entry["start_frame"] != 0 or entry["end_frame"] < 1:
                raise ManifestError(
                    f"{where}: frames {entry['start_frame']} to {entry['end_frame']}; a dive is a"
                    " file of its own, from frame 0 on"
                )
            return Source(
                id=id,
                path=locate(root, id + self.suffix, where)[1],
                split=split,
                label=label,
                label_name=classes[label],
                group=competition[1],
                claimed_frames=entry["end_frame"],
            )

        return each(read_entries(file, _KINDS), read)


def _read_classes(file: str) -> tuple[str, ...]:
    """Takeoff, somersaults, twists and position of each dive, in a line."""
    dives = read_json(file)
    if not isinstance(dives, list) or not all(
        isinstance(dive, list) and all(isinstance(part, str) for part in dive) for dive in dives
    ):
        raise ManifestError(f"{file}: expected a list of lists of words")
    return tuple(" ".join(dive) for dive in dives)

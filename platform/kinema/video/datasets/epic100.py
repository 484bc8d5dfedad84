"""EPIC-KITCHENS-100 by its official CSV files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from kinema import storage
from kinema.errors import ManifestError
from kinema.video.datasets.annotations import (
    Places,
    check_pattern,
    each,
    in_range,
    read_csv,
    whole_number,
)
from kinema.video.datasets.rule import DatasetRule
from kinema.video.sources import SPLITS, Listing, Source, Split, locate

LONG, TRIMMED = "{participant}/videos/{video_id}.MP4", "{narration_id}.mp4"

_COLUMNS = ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp")
_EXAMPLE = {"participant": "x", "video_id": "x", "narration_id": "x"}
_TIME = re.compile(r"(\d{2}):([0-5]\d):([0-5]\d(?:\.\d+)?)", re.ASCII)

Row = dict[str, str]
Pair = tuple[int, int]


class Epic100(DatasetRule):
    """EPIC-KITCHENS-100 (Damen et al. 2022): narrated segments of long videos.

    Columns `verb` and `noun` hold both classes, whichever is the label; a file of segments without
    classes, as of the test, leaves them empty.
    """

    name: Literal["epic100"] = "epic100"
    annotations: str = Field(
        description="folder of the lists, EPIC_100_verb_classes.csv, EPIC_100_noun_classes.csv and"
        " EPIC_100_video_info.csv"
    )
    videos: str = Field(description="folder of the files")
    label: Literal["verb", "noun", "action"] = Field(
        "verb",
        description="what is to be told apart; actions are the pairs of verb and noun that are"
        " there, in sorted order",
    )
    lists: dict[Split, str] = Field(
        {"train": "EPIC_100_train.csv", "validation": "EPIC_100_validation.csv"},
        min_length=1,
        description="list by split, in the folder of the annotations; the UDA lists also fit",
    )
    trimmed: bool = Field(False, description="each segment is a file of its own")
    pattern: str | None = Field(
        None,
        description=f"path of a file, of participant, video_id and narration_id; null = {LONG}, or"
        f" {TRIMMED} when trimmed",
    )

    @model_validator(mode="after")
    def _check_pattern(self) -> Self:
        check_pattern(self.path_pattern, _EXAMPLE)
        if ("{narration_id" in self.path_pattern) != self.trimmed:
            raise ValueError(
                f"pattern {self.path_pattern!r} does not fit trimmed={str(self.trimmed).lower()}: a"
                " file of its own is named by narration_id, a long video is not"
            )
        return self

    @property
    def path_pattern(self) -> str:
        """`pattern`, or what stands for it."""
        return self.pattern or (TRIMMED if self.trimmed else LONG)

    def read(self) -> Listing:
        """All segments of the lists. Ids are narration ids, groups participants."""
        verbs = _read_classes(self._file("EPIC_100_verb_classes.csv"))
        nouns = _read_classes(self._file("EPIC_100_noun_classes.csv"))
        durations = {} if self.trimmed else _read_durations(self._file("EPIC_100_video_info.csv"))
        listed = [
            (where, (split, row))
            for split in SPLITS
            if split in self.lists
            for where, row in self._rows(split)
        ]
        pairs = each(listed, lambda where, entry: _pair(entry[1], verbs, nouns, where))
        actions = sorted({pair for pair in pairs if pair is not None})
        classes = self._names(verbs, nouns, actions)
        number = {action: label for label, action in enumerate(actions)}
        places = Places()

        def read(where: str, entry: tuple[Split, Row]) -> Source:
            split, row = entry
            places.add(row["narration_id"], where)
            return self._source(row, split, durations, where)

        sources = []
        for source, pair in zip(each(listed, read), pairs, strict=True):
            label = None
            if pair is not None:
                label = {"verb": pair[0], "noun": pair[1], "action": number[pair]}[self.label]
            sources.append(
                replace(
                    source,
                    label=label,
                    label_name=None if label is None else classes[label],
                    extra=dict(zip(("verb", "noun"), pair or (None, None), strict=True)),
                )
            )
        return Listing(sources, classes, {"dataset.videos": storage.absolute(self.videos)})

    def _file(self, name: str) -> str:
        return storage.join(self.annotations, name)

    def _rows(self, split: Split) -> list[tuple[str, Row]]:
        file = self._file(self.lists[split])
        if not storage.exists(file):
            others = ", ".join(f"{key}: {name}" for key, name in self.lists.items() if key != split)
            raise ManifestError(
                f"{file} does not exist; put it there, or leave split '{split}' out with"
                f" 'dataset.lists={{{others}}}'"
            )
        return read_csv(file, _COLUMNS)

    def _names(
        self, verbs: Sequence[str], nouns: Sequence[str], actions: Sequence[Pair]
    ) -> tuple[str, ...]:
        if self.label == "action":
            return tuple(f"{verbs[verb]} {nouns[noun]}" for verb, noun in actions)
        return tuple(verbs if self.label == "verb" else nouns)

    def _source(self, row: Row, split: Split, durations: Mapping[str, float], where: str) -> Source:
        """The segment, without its classes."""
        start, end = (_seconds(row[f"{edge}_timestamp"], where) for edge in ("start", "stop"))
        if end <= start:
            raise ManifestError(f"{where}: stops at {end:g} s, before its start at {start:g} s")
        video = row["video_id"]
        if not self.trimmed and video not in durations:
            raise ManifestError(f"{where}: EPIC_100_video_info.csv has no video {video!r}")
        path = self.path_pattern.format(
            participant=row["participant_id"], video_id=video, narration_id=row["narration_id"]
        )
        return Source(
            id=row["narration_id"],
            path=locate(storage.absolute(self.videos), path, where)[1],
            split=split,
            group=row["participant_id"],
            start_s=None if self.trimmed else start,
            end_s=None if self.trimmed else end,
            claimed_s=end - start if self.trimmed else durations[video],
        )


def _pair(row: Row, verbs: Sequence[str], nouns: Sequence[str], where: str) -> Pair | None:
    """Verb and noun class; None in a list that has no such columns."""
    if not any(column in row for column in ("verb_class", "noun_class")):
        return None
    found = []
    for column, names in (("verb_class", verbs), ("noun_class", nouns)):
        if column not in row:
            raise ManifestError(f"{where}: the list has no column '{column}'")
        found.append(in_range(whole_number(row[column], column, where), names, where))
    return found[0], found[1]


def _seconds(text: str, where: str) -> float:
    match = _TIME.fullmatch(text)
    if match is None:
        raise ManifestError(f"{where}: time {text!r} is not HH:MM:SS.ff")
    hours, minutes, seconds = match.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _read_classes(file: str) -> list[str]:
    names: list[str] = []
    for where, row in read_csv(file, ("id", "key")):
        if whole_number(row["id"], "id", where) != len(names):
            raise ManifestError(f"{where}: id {row['id']}, expected {len(names)}")
        names.append(row["key"])
    return names


def _read_durations(file: str) -> dict[str, float]:
    """Seconds by video."""
    durations: dict[str, float] = {}
    for where, row in read_csv(file, ("video_id", "duration")):
        try:
            durations[row["video_id"]] = float(row["duration"])
        except ValueError as error:
            message = f"{where}: duration {row['duration']!r} is not a number"
            raise ManifestError(message) from error
    return durations

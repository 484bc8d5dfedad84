"""Lists of videos as VideoMAE and VideoMAE V2 read them: one file per split, a video per line."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from kinema import storage
from kinema.errors import ManifestError
from kinema.video.datasets.annotations import Places, each, whole_number
from kinema.video.datasets.rule import DatasetRule
from kinema.video.sources import (
    Listing,
    Source,
    Split,
    folder_of,
    grouped,
    locate,
    named,
    read_lines,
    read_names,
)

Layout = Literal["path_label", "path_start_total", "path_total_label"]

_FIELDS: dict[Layout, str] = {
    "path_label": "path label",
    "path_start_total": "path start total",
    "path_total_label": "path total label",
}
_WHOLE_FILE = "-1"


class Lists(DatasetRule):
    """One list file per split.

    The layout is said and never guessed: `my run 0 3.mp4 1` is one video with a label, and
    `my run 0 3` could be either.
    """

    name: Literal["list"] = "list"
    lists: dict[Split, str] = Field(
        min_length=1, description="list file by split: dataset.lists.train=FILE"
    )
    layout: Layout = Field(
        "path_label",
        description="fields of a line: VideoMAE's 'path label'; V2's lines without a label, 'path 0"
        " -1' and 'folder start total'; or 'folder total label'",
    )
    root: str | None = Field(
        None, description="where relative paths start; null = the folder of each list"
    )
    classes: str | None = Field(None, description="file of class names in the order of labels")
    group: str | None = Field(
        None, description="regular expression on the relative path that gives the group: '(S\\d)_'"
    )

    def read(self) -> Listing:
        """As `from_list`, over all splits."""
        places = Places()
        parts = [
            from_list(file, self.root, split, self.layout, places)
            for split, file in self.lists.items()
        ]
        sources = [source for part in parts for source in part]
        names = None if self.classes is None else read_names(self.classes)
        sources = sources if names is None else named(sources, names)
        sources = sources if self.group is None else grouped(sources, self.group)
        roots = [self.root] if self.root is not None else map(folder_of, self.lists.values())
        shown = " and ".join(dict.fromkeys(storage.absolute(root) for root in roots))
        classes = None if names is None else tuple(names)
        return Listing(sources, classes, {"dataset.root": shown})


def from_list(
    file: str,
    root: str | None,
    split: Split,
    layout: Layout = "path_label",
    places: Places | None = None,
) -> list[Source]:
    """Videos of one list. The path comes first and may hold spaces; the other fields may not.

    A folder of images is used whole: its `start` is 0 or 1, the number of its first image, and
    `total` is what is claimed of it. `0 -1` is a video file.

    Args:
        file: of the list; UTF-8, with or without a byte order mark, any line ends.
        root: where relative paths start; None = the folder of the list.
        split: that the list is.
        layout: fields of a line.
        places: where the videos of the other lists are listed.

    Raises:
        ManifestError: naming file and lines of all that is malformed or listed twice.
    """
    root = folder_of(file) if root is None else storage.absolute(root)
    numbers = _FIELDS[layout].count(" ")
    pattern = re.compile(r"\s*(\S.*?)" + r"\s+(\S+)" * numbers + r"\s*")
    listed = Places() if places is None else places

    def read(where: str, line: str) -> Source:
        match = pattern.fullmatch(line)
        if match is None:
            raise ManifestError(f"{where}: expected '{_FIELDS[layout]}', got {line.strip()!r}")
        path, *fields = match.groups()
        id, located = locate(root, path, where)
        listed.add(id, where)
        label, total = _numbers(layout, fields, where)
        return Source(id, located, split, label, claimed_frames=total)

    found = each(read_lines(file), read)
    if not found:
        raise ManifestError(f"{file}: lists no videos")
    return found


def _numbers(layout: Layout, fields: list[str], where: str) -> tuple[int | None, int | None]:
    """Label and number of frames."""
    if layout == "path_label":
        return whole_number(fields[0], "label", where), None
    if layout == "path_total_label":
        return whole_number(fields[1], "label", where), whole_number(fields[0], "total", where)
    start = whole_number(fields[0], "start", where)
    is_file = fields[1] == _WHOLE_FILE
    if start > (0 if is_file else 1):
        raise ManifestError(
            f"{where}: starts at {start}, and only whole videos can be listed; use"
            " dataset.name=manifest with start_s and end_s for parts"
        )
    return None, None if is_file else whole_number(fields[1], "total", where)

"""Videos in folders that are named after their class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from kinema import storage
from kinema.errors import ManifestError
from kinema.video.datasets.rule import DatasetRule
from kinema.video.images import is_image
from kinema.video.sources import Listing, Source, Split, grouped, read_names

SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""Folder names that are taken for splits when none are named."""

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".3gp", ".ts", ".mts", ".ogv"),
)


class Folders(DatasetRule):
    """`source/split/class/x.mp4` or `source/class/x.mp4`."""

    name: Literal["folders"] = "folders"
    source: str = Field(description="root of the class folders")
    splits: dict[str, Split] | None = Field(
        None,
        description="split by folder ('.' is the source itself); null = the folders train, val,"
        " validation and test, or everything is train",
    )
    classes: str | None = Field(
        None, description="file of the folders' names in the order of labels; null = sorted"
    )
    group: str | None = Field(
        None, description="regular expression on the relative path that gives the group: '(S\\d)_'"
    )

    def read(self) -> Listing:
        """As `from_folders`."""
        names = None if self.classes is None else read_names(self.classes)
        sources = from_folders(self.source, self.splits, names)
        classes = sorted({str(source.label_name) for source in sources}) if names is None else names
        sources = sources if self.group is None else grouped(sources, self.group)
        return Listing(sources, tuple(classes), {"dataset.source": storage.absolute(self.source)})


def from_folders(
    root: str, splits: Mapping[str, Split] | None = None, classes: Sequence[str] | None = None
) -> list[Source]:
    """Videos in folders named after their class: `root/split/class/x.mp4` or `root/class/x.mp4`.

    A folder of images inside a class folder is one video.

    Args:
        root: of the data set.
        splits: split by folder; `.` is the root itself. None takes the folders named as in
            `SPLIT_FOLDERS`, or, where there is none, everything for training.
        classes: names in the order of labels; None = sorted, over all splits together.

    Raises:
        ManifestError: there is no such folder or no video in it, some lie outside the folders of
            splits and classes, or a folder is none of `classes`.
    """
    root = storage.absolute(root)
    if not storage.exists(root):
        raise ManifestError(f"no such folder: {root}")
    videos = _videos_under(root)
    if not videos:
        raise ManifestError(f"no videos under {root}; looked for {', '.join(VIDEO_SUFFIXES)}")
    if splits is None:
        folders = {id.partition("/")[0] for id in videos if "/" in id}
        splits = {name: SPLIT_FOLDERS[name] for name in sorted(folders & set(SPLIT_FOLDERS))}
        splits = splits or {".": "train"}
    found, outside = [], []
    for id in videos:
        folder, inside = ("", id) if "." in splits else _head(id)
        class_name, name = _head(inside)
        split = splits.get(folder or ".")
        if split is None or not name:
            outside.append(id)
        else:
            path = storage.join(root, id)
            found.append(Source(id, path, split, label_name=class_name))
    if outside:
        names = ", ".join(splits)
        raise ManifestError(
            f"{len(outside)} of {len(videos)} videos under {root} are not in a class folder of the"
            f" splits ({names}), such as {outside[0]}; move them, or say which folders are splits"
        )
    for folder in splits:
        if folder != "." and not any(source.id.startswith(f"{folder}/") for source in found):
            raise ManifestError(f"no videos under {storage.join(root, folder)}")
    return _number_classes(found, classes)


def _head(path: str) -> tuple[str, str]:
    head, _, rest = path.partition("/")
    return head, rest


def _videos_under(root: str) -> list[str]:
    """Ids of all videos under `root`, sorted: files, and folders that hold images."""
    prefix = len(root.rstrip("/")) + 1
    files = [file[prefix:] for file in storage.list_files(root)]
    videos = {file for file in files if file.lower().endswith(VIDEO_SUFFIXES)}
    folders = {file.rpartition("/")[0] for file in files if is_image(file) and "/" in file}
    return sorted(videos | folders)


def _number_classes(sources: Sequence[Source], classes: Sequence[str] | None) -> list[Source]:
    found = {str(source.label_name) for source in sources}
    names = sorted(found) if classes is None else classes
    label = {name: index for index, name in enumerate(names)}
    unknown = sorted(found - set(label))
    if unknown:
        raise ManifestError(
            f"{len(unknown)} folders are none of the {len(label)} classes, such as {unknown[0]!r}"
        )
    return [replace(source, label=label[str(source.label_name)]) for source in sources]

"""Kinetics-400 and its subsets by the official CSV files."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from kinema import storage
from kinema.errors import ManifestError
from kinema.video.datasets.annotations import Places, check_pattern, each, read_csv, whole_number
from kinema.video.datasets.rule import DatasetRule
from kinema.video.sources import Listing, Source, Split, locate, read_lines, read_names

_COLUMNS = ("youtube_id", "time_start", "time_end", "split")
_SPLITS: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "validate": "validation",
    "validation": "validation",
    "test": "test",
}
_EXAMPLE = {"youtube_id": "x", "start": 0, "end": 10, "label": "x", "split": "x"}


class Kinetics400(DatasetRule):
    """Kinetics-400 (Kay et al. 2017), cut into clips as its publishers name them."""

    name: Literal["kinetics400"] = "kinetics400"
    annotations: list[str] = Field(
        min_length=1, description="CSV files with youtube_id, time_start, time_end, split, label"
    )
    videos: str = Field(description="folder of the clips")
    class_folders: bool = Field(False, description="clips lie in folders named after their class")
    pattern: str = Field(
        "{youtube_id}_{start:06d}_{end:06d}.mp4",
        description="path of a clip, of youtube_id, start, end, label and split",
    )
    label_map: str | None = Field(
        None,
        description="file of class names in the order of labels; null = the names of the CSV"
        " files, sorted",
    )
    subset: str | None = Field(
        None, description="file of the names of the classes to use (MiniKinetics); null = all"
    )

    @model_validator(mode="after")
    def _check_pattern(self) -> Self:
        check_pattern(self.pattern, _EXAMPLE)
        return self

    @property
    def _names_class(self) -> bool:
        """Whether the path of a clip tells its class."""
        return self.class_folders or "{label" in self.pattern

    def read(self) -> Listing:
        """All clips of the CSV files, or those of the subset's classes, numbered anew."""
        rows = [row for file in self.annotations for row in read_csv(file, _COLUMNS)]
        names = self._names(sorted({row["label"] for _, row in rows if row.get("label")}))
        if self.subset is not None:
            names = _restrict(names, self.subset)
            rows = [(where, row) for where, row in rows if row.get("label") in names]
        classes = tuple(names.values())
        labels = {name: label for label, name in enumerate(names)}
        places = Places()
        sources = each(rows, lambda where, row: self._source(row, labels, classes, where, places))
        return Listing(sources, classes, {"dataset.videos": storage.absolute(self.videos)})

    def _names(self, written: list[str]) -> dict[str, str]:
        """Name by name as written in the CSV files, in the order of the labels.

        Label maps exist that rename classes and keep them where they stand in sorted order. Such
        a map is taken when all other names of it stand there too.
        """
        if self.label_map is None:
            return {name: name for name in written}
        listed = read_names(self.label_map)
        if set(written) <= set(listed):
            return {name: name for name in listed}
        renamed = [(old, new) for old, new in zip(written, listed, strict=False) if old != new]
        if len(listed) == len(written) and not {new for _, new in renamed} & set(written):
            return dict(zip(written, listed, strict=True))
        unknown = sorted(set(written) - set(listed))
        raise ManifestError(
            f"{self.label_map} lacks {len(unknown)} classes of the CSV files, such as"
            f" {unknown[0]!r}; add them, or leave dataset.label_map out"
        )

    def _source(
        self,
        row: dict[str, str],
        labels: dict[str, int],
        classes: tuple[str, ...],
        where: str,
        places: Places,
    ) -> Source:
        if row["split"] not in _SPLITS:
            raise ManifestError(f"{where}: split {row['split']!r} is none of {', '.join(_SPLITS)}")
        split, written = _SPLITS[row["split"]], row.get("label") or None
        if written is None and (split != "test" or self._names_class):
            raise ManifestError(f"{where}: no label")
        label = None if written is None else labels[written]
        start, end = (whole_number(row[key], key, where) for key in ("time_start", "time_end"))
        if end <= start:
            raise ManifestError(f"{where}: ends at {end} s, before its start at {start} s")
        id = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        places.add(id, where)
        fields = {"youtube_id": row["youtube_id"], "start": start, "end": end, "label": written}
        path = self.pattern.format(**fields, split=row["split"])
        if self.class_folders:
            path = f"{written}/{path}"
        return Source(
            id=id,
            path=locate(storage.absolute(self.videos), path, where)[1],
            split=split,
            label=label,
            label_name=None if label is None else classes[label],
            claimed_s=float(end - start),
        )


def _restrict(names: dict[str, str], file: str) -> dict[str, str]:
    """The classes that the file names, by either of their names, in the order of `names`."""
    written = {new: old for old, new in names.items()} | {old: old for old in names}
    chosen = set()
    for where, line in read_lines(file):
        if line.strip() not in written:
            raise ManifestError(f"{where}: {line.strip()!r} is none of the {len(names)} classes")
        chosen.add(written[line.strip()])
    if not chosen:
        raise ManifestError(f"{file}: names no classes")
    return {old: new for old, new in names.items() if old in chosen}

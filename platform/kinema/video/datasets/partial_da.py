"""Partial domain adaptation between UCF101 and HMDB51 by the official lists (Xu et al. 2021)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kinema import storage
from kinema.errors import ManifestError
from kinema.video.datasets import hmdb51, ucf101
from kinema.video.datasets.annotations import Places, whole_number
from kinema.video.datasets.rule import DatasetRule
from kinema.video.sources import Listing, Source, Split, locate, read_lines

Direction = Literal["ucf14_hmdb7", "hmdb14_ucf7"]
Tree = Literal["ucf101", "hmdb51"]
Domain = Literal["source", "target"]

_TREES: dict[Direction, dict[Domain, Tree]] = {
    "ucf14_hmdb7": {"source": "ucf101", "target": "hmdb51"},
    "hmdb14_ucf7": {"source": "hmdb51", "target": "ucf101"},
}
_ENDINGS: dict[Direction, str] = {"ucf14_hmdb7": "uh", "hmdb14_ucf7": "hu"}


class PartialDA(DatasetRule):
    """Train on 14 classes of one data set, test on 7 of them in the other (MGM, section 4.2).

    Classes carry the source's numbers and names; column `domain` says `source` or `target`. By
    default nothing of the target is seen before the test, as in MGM.
    """

    name: Literal["partial_da"] = "partial_da"
    annotations: str = Field(description="folder of the files ucf101_train_uh.txt and so on")
    direction: Direction = Field(description="source, then target")
    ucf101: str = Field(description="folder of UCF101's class folders")
    hmdb51: str = Field(description="folder of HMDB51's class folders")
    source_test: Split | None = Field(
        None, description="split that the source's test videos get; null leaves them out"
    )
    target_train: Split | None = Field(
        None, description="split that the target's training videos get; null leaves them out"
    )

    def read(self) -> Listing:
        """The source's training list and the target's test list, and those asked for."""
        uses: list[tuple[Domain, str, Split | None]] = [
            ("source", "train", "train"),
            ("source", "test", self.source_test),
            ("target", "train", self.target_train),
            ("target", "test", "test"),
        ]
        folders: dict[Domain, dict[int, str]] = {"source": {}, "target": {}}
        sources: list[Source] = []
        places = Places()
        for domain, part, split in uses:
            if split is not None:
                sources += self._read(domain, part, split, folders, places)
        names = folders["source"]
        if sorted(names) != list(range(len(names))):
            raise ManifestError(
                f"the source's labels are {sorted(names)}, not the numbers from 0 on"
            )
        roots = {"dataset.ucf101": self.ucf101, "dataset.hmdb51": self.hmdb51}
        return Listing(
            sources,
            tuple(names[label] for label in range(len(names))),
            {key: storage.absolute(root) for key, root in roots.items()},
        )

    def _read(
        self,
        domain: Domain,
        part: str,
        split: Split,
        folders: dict[Domain, dict[int, str]],
        places: Places,
    ) -> list[Source]:
        """Lines `index<tab>label<tab>class folder/file`; one folder per label and domain."""
        tree = _TREES[self.direction][domain]
        root = storage.absolute(self.ucf101 if tree == "ucf101" else self.hmdb51)
        file = f"{tree}_{part}_{_ENDINGS[self.direction]}.txt"
        found: list[Source] = []
        for where, line in read_lines(storage.join(self.annotations, file)):
            index, label, path = _fields(line, where)
            if index != len(found):
                raise ManifestError(f"{where}: index {index}, expected {len(found)}")
            inside, located = locate(root, path, where)
            folder, _, name = inside.partition("/")
            _check_folder(label, folder, folders, domain, where)
            id = f"{tree}/{inside}"
            places.add(id, where)
            found.append(
                Source(
                    id=id,
                    path=located,
                    split=split,
                    label=label,
                    label_name=folders["source"][label],
                    group=_group(tree, folder, name, where),
                    extra={"domain": domain},
                )
            )
        if not found:
            raise ManifestError(f"{file}: lists no videos")
        return found


def _fields(line: str, where: str) -> tuple[int, int, str]:
    fields = line.strip("\r").split("\t")
    if len(fields) != 3:
        raise ManifestError(
            f"{where}: expected index, label and path with tabs between, got {line.strip()!r}"
        )
    index, label, path = fields
    return whole_number(index, "index", where), whole_number(label, "label", where), path


def _check_folder(
    label: int, folder: str, folders: dict[Domain, dict[int, str]], domain: Domain, where: str
) -> None:
    """Note that videos of `label` lie in `folder`, unless that contradicts earlier lines."""
    if domain == "target" and label not in folders["source"]:
        raise ManifestError(f"{where}: the source has no class {label}")
    known = folders[domain]
    if known.setdefault(label, folder) != folder:
        raise ManifestError(f"{where}: class {label} is {known[label]!r}, not {folder!r}")
    other = next(number for number, name in known.items() if name == folder)
    if other != label:
        raise ManifestError(f"{where}: {folder!r} is class {other}, not {label}")


def _group(tree: Tree, folder: str, name: str, where: str) -> str:
    if tree == "ucf101":
        return ucf101.group_of(name, where)
    return hmdb51.film_of(name, folder, where)

"""From a data set to its manifest, with everything that is doubtful about it in a table."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
from pydantic import Field, PositiveInt

from kinema import storage
from kinema.config import Config, fingerprint
from kinema.errors import ManifestError
from kinema.video.checks import (
    UNUSABLE,
    Check,
    Tolerance,
    as_table,
    find_doubtful,
    find_missing,
    same_footage,
    summary,
)
from kinema.video.datasets import Dataset
from kinema.video.manifest import Manifest
from kinema.video.measure import measure
from kinema.video.rows import FAILURE_SCHEMA, with_classes
from kinema.video.sources import SPLITS, Listing, Source
from kinema.wording import counted


class IndexConfig(Config):
    """What to index, and where the manifest goes."""

    dataset: Dataset = Field(description="what names the videos")
    output: str = Field(pattern=r"\.parquet$", description="Parquet file to write, path or URI")
    test_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each class's videos, or of the groups where there are any, that"
        " becomes the test split; for a data set without splits of its own",
    )
    decode_all: bool = Field(
        True, description="decode every frame to find damage; false trusts the packets"
    )
    num_threads: PositiveInt | None = Field(None, description="files at once; default: all cores")
    max_failure_ratio: float = Field(
        0.0, ge=0, le=1, description="share of missing and unreadable videos that is accepted"
    )
    allow_leaks: bool = Field(False, description="accept frames that two splits show")
    tolerance_s: float = Field(
        0.5, ge=0, description="seconds by which a length may differ from its annotation, or"
    )
    tolerance_share: float = Field(
        0.05, ge=0, description="share of it by which it may; the larger of the two counts"
    )

    @property
    def tolerance(self) -> Tolerance:
        """Of lengths."""
        return Tolerance(self.tolerance_s, self.tolerance_share)


def index(config: IndexConfig) -> int:
    """Write the manifest `config.output` and, beside it, what is doubtful about the data set.

    `<output>.failures.parquet` lists the videos that cannot be used, `<output>.checks.parquet` all
    findings of `checks`. Both are written even when the manifest is not.

    Returns:
        0, the exit status of a job.

    Raises:
        KinemaError: annotations are missing or malformed, no video of a split or of a class known
            from labels alone can be used, more videos are unusable than `max_failure_ratio` allows,
            or splits show the same frames.
    """
    storage.check_writable(config.output, "output", "give another one", is_file=True)
    listing = config.dataset.read()
    if config.test_share:  # what makes it impossible is said before the files are opened
        hold_out_test(listing.sources, config.test_share)
    _require_names(listing)
    checks = find_missing(listing.sources)
    _require_files(listing, checks)
    # Missing files are found in seconds; opening the others may take hours.
    _accept_failures(config, checks, listing, "missing; none was opened yet")
    absent = {check.id for check in checks}
    present = [source for source in listing.sources if source.id not in absent]
    table, failures = measure(present, config.num_threads, config.decode_all)
    checks += [
        Check("unreadable", row["id"], row["path"], row["split"], row["why"])
        for row in failures.to_pylist()
    ]
    if config.test_share:
        same_as = same_footage(table)
        present = [source for source in present if source.id in same_as]
        try:
            present = hold_out_test(present, config.test_share, same_as)
        except ManifestError:  # for lack of videos; the tables say where they went
            checks += find_doubtful(present, table, listing.classes, config.tolerance)
            _accept_failures(config, checks, listing, "missing or unreadable")
            _report(config, checks)
            raise
        table = _with_splits(table, present)
    checks += find_doubtful(present, table, listing.classes, config.tolerance)
    _accept_failures(config, checks, listing, "missing or unreadable")
    _report(config, checks)
    _require_usable(config, checks, listing)
    _accept_leaks(config, checks)
    _require_classes(checks, listing, table)
    if listing.classes is not None:
        table = with_classes(table, listing.classes)
    manifest = Manifest(table)
    manifest.write(config.output)
    counts = {split: len(manifest.select(split)) for split in SPLITS}
    shown = ", ".join(f"{count} {split}" for split, count in counts.items() if count)
    print(f"{config.output}: {shown}; digest {manifest.digest}")
    return 0


def hold_out_test(
    sources: Sequence[Source], share: float, same_as: Mapping[str, str] | None = None
) -> list[Source]:
    """The same with a fixed `share` of the training videos as the test split.

    Where the data set names groups, whole groups are taken; otherwise so many of each class, at
    least one. Larger shares contain the smaller ones; the order of the files changes nothing.

    Args:
        sources: the videos.
        share: of them.
        same_as: ids of videos -> id by which all that share frames go, so that these stay in one
            split, see `same_footage`; where there are groups, the groups alone decide.

    Raises:
        ManifestError: the data set has a test or validation split of its own, or too few videos.
    """
    own = sorted({source.split for source in sources} - {"train"})
    if own:
        raise ManifestError(f"the data set has a split {own[0]!r} of its own; leave out test_share")
    same_as = same_as or {}

    def member(source: Source) -> str:
        return source.group or same_as.get(source.id, source.id)

    grouped = any(source.group is not None for source in sources)
    parts: dict[object, set[str]] = {}
    for source in sources:
        whole = None if grouped else source.label
        parts.setdefault(whole, set()).add(member(source))
    aside: set[str] = set()
    once = " (copies and overlapping parts count once)" if same_as else ""
    for label, members in parts.items():
        ranked = sorted(members, key=lambda name: fingerprint("test split", name))
        count = max(1, round(share * len(ranked)))
        if count == len(ranked):
            what = f"class {label}" if label is not None else "the data set"
            kind = "group" if grouped else "video"
            raise ManifestError(
                f"{what} has {counted(count, kind)}{once}: none would be left to train on"
            )
        aside.update(ranked[:count])
    for label, members in parts.items():
        if members <= aside:  # what shares frames with another class is held out with that
            raise ManifestError(
                f"class {label} shares the frames of so many videos with other classes that none"
                " would be left to train on; take the clips out that have two labels"
            )
    return [
        replace(source, split="test") if member(source) in aside else source for source in sources
    ]


def _with_splits(table: pa.Table, sources: Sequence[Source]) -> pa.Table:
    split = {source.id: source.split for source in sources}
    column = table.schema.get_field_index("split")
    field = table.schema.field(column)
    return table.set_column(column, field, pa.array([split[id] for id in table["id"].to_pylist()]))


def _require_names(listing: Listing) -> None:
    """Two forms of one name would be two classes."""
    first: dict[str, str] = {}
    for name in listing.classes or ():
        form = unicodedata.normalize("NFC", name)
        if form in first:
            how = "there twice" if first[form] == name else "written in two forms of Unicode"
            raise ManifestError(f"class {name!r} is {how}; give every class one name of its own")
        first[form] = name


def _require_files(listing: Listing, missing: Sequence[Check]) -> None:
    """A wrong root is one error and not one per video."""
    for split in SPLITS:
        count = sum(source.split == split for source in listing.sources)
        absent = [check for check in missing if check.split == split]
        if count and len(absent) == count:
            roots = ", ".join(f"{root} ({key})" for key, root in listing.roots.items())
            raise ManifestError(
                f"split '{split}': none of its files exists ({counted(count, 'video')}); searched"
                f" under {roots}, for example {absent[0].path}: {absent[0].detail}; say where the"
                " paths start"
            )


def _require_usable(config: IndexConfig, checks: Sequence[Check], listing: Listing) -> None:
    """A share of failures may be accepted, the loss of a whole split is not."""
    for split in SPLITS:
        count = sum(source.split == split for source in listing.sources)
        lost = [check for check in checks if check.kind in UNUSABLE and check.split == split]
        if count and len(lost) == count:
            raise ManifestError(
                f"split '{split}': none of its files can be used ({counted(count, 'video')});"
                f" listed in {_beside(config, 'failures')}; the first is {lost[0].path}:"
                f" {lost[0].detail}. Mend them, or take the split out of the data set"
            )


def _require_classes(checks: Sequence[Check], listing: Listing, table: pa.Table) -> None:
    """Without names of classes, one that loses all its videos would be forgotten, or be a gap."""
    if listing.classes is not None:
        return
    left = set(table["label"].to_pylist())
    label = {source.id: source.label for source in listing.sources}
    for check in checks:
        lost = label[check.id] if check.kind in UNUSABLE else None
        if lost is not None and lost not in left:
            raise ManifestError(
                f"class {lost} has lost all its videos, such as {check.path}:"
                f" {check.detail}. Mend them, or take the class out of the data set"
            )


def _accept_failures(
    config: IndexConfig, checks: Sequence[Check], listing: Listing, what: str
) -> None:
    unusable = [check for check in checks if check.kind in UNUSABLE]
    count, total = len(unusable), len(listing.sources)
    if count <= config.max_failure_ratio * total:
        return
    _report(config, checks)
    raise ManifestError(
        f"{count} of {counted(total, 'video is', 'videos are')} {what}; listed in"
        f" {_beside(config, 'failures')};"
        f" the first is {unusable[0].path}: {unusable[0].detail}. Mend them, or set"
        f" max_failure_ratio={count / total + 5e-4:.3f}"
    )


def _accept_leaks(config: IndexConfig, checks: Sequence[Check]) -> None:
    leaks = [check for check in checks if check.kind == "leak"]
    if leaks and not config.allow_leaks:
        first = leaks[0]
        raise ManifestError(
            f"{counted(len(leaks), 'video is', 'videos are')} in two splits, listed in"
            f" {_beside(config, 'checks')}; the first is {first.id} ({first.split}):"
            f" {first.detail}. Take them out of one split, or set allow_leaks=true"
        )


def _report(config: IndexConfig, checks: Sequence[Check]) -> None:
    """Write both tables and print the counts."""
    unusable = [check for check in checks if check.kind in UNUSABLE]
    rows = [
        {"id": check.id, "path": check.path, "split": check.split, "why": check.detail}
        for check in unusable
    ]
    failures = pa.Table.from_pylist(rows, schema=FAILURE_SCHEMA)
    storage.write_table(_beside(config, "failures"), failures)
    storage.write_table(_beside(config, "checks"), as_table(checks))
    if checks:
        print(summary(checks))
        print(f"{counted(len(checks), 'finding')}, listed in {_beside(config, 'checks')}")


def _beside(config: IndexConfig, what: str) -> str:
    return f"{config.output.removesuffix('.parquet')}.{what}.parquet"

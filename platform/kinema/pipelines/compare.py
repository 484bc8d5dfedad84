"""Two tested runs side by side: a paired test, and the videos that one of them gets right alone."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from kinema import storage, trial
from kinema.config import Config, fingerprint
from kinema.errors import KinemaError, VideoError
from kinema.evaluation.epic import combined_accuracies
from kinema.evaluation.paired import Comparison, compare
from kinema.figures.disagreements import Thumbnail, disagreement_sheet
from kinema.figures.table import TextTable
from kinema.geometry import Transform
from kinema.pipelines.predictions import Predictions, find_predictions
from kinema.video.decode import read_frames
from kinema.video.manifest import Entry, Manifest
from kinema.wording import counted

DPI = 110
THUMBNAIL_HEIGHT = 96
FRAMES_SHOWN = (0.2, 0.5, 0.8)
"""Where in a video its thumbnail's frames are, as shares of its length."""
CLASSES_SHOWN = 8


class CompareConfig(Config):
    """Which two runs, and where to write what they differ in."""

    run_a: str = Field(
        description="predictions.parquet, the folder that holds it, a run's key, or MLflow run id"
    )
    run_b: str = Field(description="likewise")
    manifest: str | None = Field(
        None, description="Parquet manifest for thumbnails; null = the one that the runs name"
    )
    num_thumbnails: NonNegativeInt = Field(12, description="videos shown per sheet; 0 = no sheets")
    output: str | None = Field(
        None, description="folder or URI to write to; null = below the root, in comparisons/"
    )
    storage: str | None = Field(None, description="root where keys are looked up; $KINEMA_STORAGE")

    @property
    def root(self) -> str:
        """Absolute storage root."""
        return storage.absolute(self.storage or storage.default_root())


class EpicConfig(Config):
    """A verb and a noun classifier of EPIC-Kitchens, tested on the same videos."""

    verb_run: str = Field(description="as the runs of jobs/compare.py are named")
    noun_run: str = Field(description="likewise")
    storage: str | None = Field(None, description="root where keys are looked up; $KINEMA_STORAGE")


def compare_runs(config: CompareConfig) -> Comparison:
    """Compare two runs, print the result, and write `videos.csv` and the sheets.

    Raises:
        KinemaError: a run is not found, the two are one, or were tested on different data, or the
            output cannot be written.
    """
    a, b = (find_predictions(name, config.root) for name in (config.run_a, config.run_b))
    digests = [storage.content_digest(run.uri) for run in (a, b)]
    if digests[0] == digests[1]:
        raise KinemaError(f"nothing to compare: {a.uri} and {b.uri} hold the same predictions")
    _require_same_videos(a, b)
    own = storage.join(config.root, "comparisons", fingerprint(digests))
    output = storage.absolute(config.output or own)
    storage.check_writable(output, "output", "give another one")
    found = compare(a.table, b.table)
    manifest = _manifest(config, (a, b))
    names = [] if manifest is None else manifest.class_names
    print(text_of(found, names))
    _warn_of_lacks(a, b)
    content = io.BytesIO()
    pa.csv.write_csv(found.videos, content)
    storage.write_bytes(storage.join(output, "videos.csv"), content.getvalue())
    print(f"every video: {storage.join(output, 'videos.csv')}")
    if manifest is None:
        print("no thumbnails: the runs name no manifest; give manifest=...")
    elif config.num_thumbnails:
        for which in ("a", "b"):
            _write_sheet(found, which, manifest, names, config.num_thumbnails, output)
    return found


def _require_same_videos(a: Predictions, b: Predictions) -> None:
    """Check that an id is the same video in both runs, where both name their manifest."""
    uris = [str(run.result["manifest"]) for run in (a, b) if run.result.get("manifest")]
    if len(uris) < 2 or uris[0] == uris[1]:
        return
    known_a, known_b = (_contents(uri) for uri in uris)
    tested = set(a.table["id"].to_pylist()) & set(b.table["id"].to_pylist())
    unlike = sorted(id for id in tested if known_a.get(id) != known_b.get(id))
    if unlike:
        raise KinemaError(
            f"{len(unlike)} of {len(tested)} ids name other videos in the other run, such as"
            f" {unlike[0]}: {a.name} was tested on {uris[0]}, {b.name} on {uris[1]}"
        )


def _contents(manifest_uri: str) -> dict[str, dict[str, Any]]:
    """By id, what is shown: the digest of the file, and the part of it that is used."""
    table = Manifest.read(manifest_uri).table.select(["id", "digest", "start_s", "end_s"])
    return {row["id"]: row for row in table.to_pylist()}


def combine_epic(config: EpicConfig) -> None:
    """Print verb, noun and action accuracy of two classifiers.

    Raises:
        KinemaError: a run is not found, one is no classifier of verbs or nouns, or the two were
            tested on different videos.
    """
    root = storage.absolute(config.storage or storage.default_root())
    verbs, nouns = (find_predictions(name, root) for name in (config.verb_run, config.noun_run))
    _require_same_videos(verbs, nouns)
    for run, part in ((verbs, "verb"), (nouns, "noun")):
        _require_labels(run, part)
    for name, accuracy in combined_accuracies(verbs.table, nouns.table).items():
        print(f"{name:12s} {accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}]")
    _warn_of_lacks(verbs, nouns)


def _warn_of_lacks(*runs: Predictions) -> None:
    for run in runs:
        if not trial.is_complete(run.result):
            print(f"NOT COMPARABLE: {run.name} could not read every video")


def _require_labels(run: Predictions, part: str) -> None:
    """Check that a run's labels are the verbs or nouns that its manifest gives the videos."""
    uri = run.result.get("manifest")
    if uri is None:
        print(f"NOT CHECKED: {run.name} names no manifest, so its labels may not be {part}s")
        return
    table = Manifest.read(uri).table
    if part not in table.column_names:
        raise KinemaError(
            f"{run.name} was tested on {uri}, which has no column {part!r}: index EPIC-Kitchens"
            " with jobs/index_videos.py dataset.name=epic100"
        )
    known = dict(zip(table["id"].to_pylist(), table[part].to_pylist(), strict=True))
    labels = zip(run.table["id"].to_pylist(), run.table["label"].to_pylist(), strict=True)
    unlike = [id for id, label in labels if known.get(id) != label]
    if unlike:
        raise KinemaError(
            f"{run.name} is no {part} classifier: the label of {len(unlike)} of {len(run.table)}"
            f" videos, such as {unlike[0]}, is not their {part} in {uri}"
        )


def text_of(found: Comparison, names: Sequence[str]) -> str:
    """The comparison for a terminal."""
    counts = found.counts
    rows = [
        [run, f"{100 * at.value:.1f}", f"{100 * at.low:.1f} to {100 * at.high:.1f}"]
        for run, at in (("A", found.a), ("B", found.b), ("B - A", found.difference))
    ]
    lines = [TextTable(["", "top-1 %", "95 % interval"], rows, [False, True, True]).text()]
    lines += [
        f"{counted(len(found.videos), 'video')}: both right {counts['both']},"
        f" only A {counts['only_a']}, only B {counts['only_b']}, neither {counts['neither']}",
        f"McNemar's exact test: p = {found.p_value:.3g}",
    ]
    if found.only_in_a or found.only_in_b:
        lines.append(
            f"NOT ALL VIDEOS: {found.only_in_a} were tested by A alone, {found.only_in_b} by B"
            " alone; they are left out above"
        )
    classes = _class_rows(found, names)
    if classes:
        header = ["class", "only A", "only B"]
        lines += ["", TextTable(header, classes, [False, True, True]).text()]
    return "\n".join(lines)


def _class_rows(found: Comparison, names: Sequence[str]) -> list[list[str]]:
    """The classes on which the two differ most."""
    a, b = (Counter(found.won_by(which)["label"].to_pylist()) for which in "ab")
    labels = sorted(a.keys() | b.keys(), key=lambda label: -abs(b[label] - a[label]))
    return [
        [_named(names, label), str(a[label]), str(b[label])] for label in labels[:CLASSES_SHOWN]
    ]


def _named(names: Sequence[str], label: int) -> str:
    return names[label] if label < len(names) else str(label)


def _manifest(config: CompareConfig, runs: Sequence[Predictions]) -> Manifest | None:
    named = [config.manifest, *(run.result.get("manifest") for run in runs)]
    uris = [uri for uri in named if uri is not None]
    return Manifest.read(storage.absolute(uris[0])) if uris else None


def _write_sheet(
    found: Comparison,
    which: str,
    manifest: Manifest,
    names: Sequence[str],
    num_shown: int,
    output: str,
) -> None:
    other = "b" if which == "a" else "a"
    won = found.won_by(which).to_pylist()
    entries = {entry.id: entry for entry in manifest.rows()}
    thumbnails: list[Thumbnail] = []
    for row in won:
        if len(thumbnails) == num_shown:
            break
        if row["id"] not in entries:
            continue
        try:
            frames = _frames(entries[row["id"]])
        except VideoError as error:
            print(f"no thumbnail: {error}")
            continue
        label, wrong = (_named(names, row[key]) for key in ("label", f"predicted_{other}"))
        thumbnails.append(Thumbnail(row["id"], frames, label, wrong))
    if not thumbnails:
        print(f"no video of the manifest is right by {which.upper()} alone")
        return
    title = f"Right only by {which.upper()}: {len(thumbnails)} of {len(won)} videos"
    picture = io.BytesIO()
    sheet = disagreement_sheet(title, thumbnails, other.upper())
    sheet.savefig(picture, dpi=DPI, format="png")
    uri = storage.join(output, f"only_{which}.png")
    storage.write_bytes(uri, picture.getvalue())
    print(f"{title}: {uri}")


def _frames(entry: Entry) -> list[NDArray[np.uint8]]:
    span = entry.frame_range()
    indices = [span[min(int(share * len(span)), len(span) - 1)] for share in FRAMES_SHOWN]
    frames = read_frames(entry.path, indices)
    height, width = frames.shape[1:3]
    small = (THUMBNAIL_HEIGHT, max(1, round(width * THUMBNAIL_HEIGHT / height)))
    return list(Transform.identity((height, width)).resize(small).frames(frames))

"""What is found doubtful, against slower and plainer ways of counting it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from kinema.video.checks import (
    CHECK_SCHEMA,
    Check,
    Tolerance,
    as_table,
    find_doubtful,
    find_missing,
    same_footage,
    summary,
)
from kinema.video.rows import SCHEMA
from kinema.video.sources import Source

FPS = 10.0


def row(id: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": id,
        "path": f"/v/{id}",
        "split": "train",
        "label": None,
        "label_name": None,
        "group": None,
        "start_s": None,
        "end_s": None,
        "width": 64,
        "height": 48,
        "num_frames": 20,
        "fps": FPS,
        "codec": "h264",
        "digest": id,
    } | changes


def doubtful(rows: list[dict[str, Any]], classes: list[str] | None = None) -> list[Check]:
    sources = [Source(row["id"], row["path"], row["split"]) for row in rows]
    return find_doubtful(sources, pa.Table.from_pylist(rows, schema=SCHEMA), classes, Tolerance())


parts = st.tuples(
    st.sampled_from(["x", "y"]),
    st.sampled_from(["train", "validation", "test"]),
    st.integers(0, 12),
    st.integers(2, 8),
)


@given(st.lists(parts, max_size=14))
def test_frames_shown_twice_are_found_like_pair_by_pair(given_parts: list[Any]) -> None:
    rows = [
        row(str(n), digest=digest, split=split, start_s=first / FPS, end_s=(first + count) / FPS)
        for n, (digest, split, first, count) in enumerate(given_parts)
    ]
    spans = [range(first, first + count) for _, _, first, count in given_parts]
    order = sorted(range(len(rows)), key=lambda n: (spans[n].start, spans[n].stop))
    expected = set()
    for place, n in enumerate(order):
        for split in ("train", "validation", "test"):
            others = [
                other
                for other in order[:place]
                if rows[other]["digest"] == rows[n]["digest"]
                and rows[other]["split"] == split
                and set(spans[other]) & set(spans[n])
            ]
            if others:
                same = any(spans[other] == spans[n] for other in others)
                inside = "duplicate" if same else "overlap"
                expected.add((str(n), split, inside if split == rows[n]["split"] else "leak"))
    found = doubtful(rows)
    assert len(found) == len(expected)
    assert {(c.id, c.detail.split("(")[1].rstrip(")"), c.kind) for c in found} == expected


@given(st.lists(parts, max_size=14), st.randoms(use_true_random=False))
def test_footage_is_shared_like_pair_by_pair(given_parts: list[Any], order: Any) -> None:
    shown = [(digest, set(range(first, first + count))) for digest, _, first, count in given_parts]
    group = list(range(len(shown)))  # the smallest number of all that are reached
    for _ in shown:
        for n, (digest, frames) in enumerate(shown):
            met = [m for m, other in enumerate(shown) if other[0] == digest and other[1] & frames]
            group[n] = min(group[m] for m in met)
    rows = [
        row(f"{n:02}", digest=digest, start_s=first / FPS, end_s=(first + count) / FPS)
        for n, (digest, _, first, count) in enumerate(given_parts)
    ]
    order.shuffle(rows)
    found = same_footage(pa.Table.from_pylist(rows, schema=SCHEMA))
    assert found == {f"{n:02}": f"{first:02}" for n, first in enumerate(group)}


def test_other_bytes_are_other_videos() -> None:
    assert doubtful([row("a"), row("b", split="test")]) == []
    leak = doubtful([row("a", digest="x"), row("b", digest="x", split="test")])
    assert leak == [Check("leak", "b", "/v/b", "test", "shows the very frames of a (train)")]


def test_the_same_frames_under_other_labels_are_named() -> None:
    rows = [
        row("a", digest="x", label=0),
        row("b", digest="x", label=1),
        row("c", digest="x", label=0),
        row("d", digest="x", label=2, split="test"),
    ]
    found = [check for check in doubtful(rows, ["run", "jump", "swim"]) if check.path]
    assert [(check.kind, check.id, check.detail) for check in found] == [
        (
            "relabelled",
            "b",
            "shows the very frames of a (train) as class 'jump'; there it is 'run'",
        ),
        ("duplicate", "c", "shows the very frames of a (train)"),
        ("leak", "d", "shows the very frames of a (train) as class 'swim'; there it is 'run'"),
    ]


def test_classes_without_videos_are_told_by_split() -> None:
    rows = [row("a", label=0), row("b", label=2, split="test"), row("c", split="validation")]
    found = doubtful(rows, ["run", "jump", "swim", "dive"])
    assert [(check.id, check.split) for check in found] == [
        *((name, "train") for name in ("jump", "swim", "dive")),
        *((name, "test") for name in ("run", "jump", "dive")),
    ]
    assert found[-1].detail == "class 3 has no videos in test"
    assert [(check.id, check.split) for check in doubtful(rows)] == [
        *((name, "train") for name in ("1", "2")),
        *((name, "test") for name in ("0", "1")),
    ]


def test_a_file_with_a_false_length_is_one_finding() -> None:
    rows = [row(str(n), path="/v/long", start_s=n / 10, end_s=n / 10 + 0.2) for n in range(5)]
    sources = [Source(str(n), "/v/long", "train", claimed_s=9.0) for n in range(5)]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    found = [c for c in find_doubtful(sources, table, None, Tolerance()) if c.kind == "length"]
    assert [check.detail for check in found] == ["lasts 2.00 s; the annotation says 9.00 s"]


def test_an_end_may_be_rounded_up_to_the_next_frame() -> None:
    ends = {"exact": 2.0, "rounded": 2.09, "past": 2.1}
    rows = [row(id, start_s=1.0, end_s=end) for id, end in ends.items()]
    assert [(check.kind, check.id) for check in doubtful(rows)] == [("past_end", "past")]


def test_missing_files_are_told_from_folders_and_remote_ones(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "there.mp4").touch()
    (tmp_path / "broken.mp4").symlink_to(tmp_path / "nowhere")
    names = ["images", "there.mp4", "broken.mp4", "gone.mp4", "none/x.mp4", "THERE.mp4"]
    found = find_missing([Source(name, f"{tmp_path}/{name}", "train") for name in names])
    assert [check.id for check in found] == names[2:]
    assert found[-1].detail.endswith(
        "its folder has 'there.mp4', which differs in case or Unicode form"
    )
    assert [c.id for c in find_missing([Source("x", f"memory://{tmp_path.name}/x", "train")])] == [
        "x"
    ]


def test_the_summary_stays_short() -> None:
    checks = [Check("missing", f"v{n}" * 50, "/v", "test", "does not exist") for n in range(1000)]
    checks += [Check("leak", "a", "/a", "train", "shows the very frames of b (test)")]
    lines = summary(checks).splitlines()
    assert lines[0].split() == ["check", "train", "validation", "test", "first"]
    assert [line.split()[:4] for line in lines[1:]] == [
        ["missing", "0", "0", "1000"],
        ["leak", "1", "0", "0"],
    ]
    assert max(map(len, lines)) < 140
    assert as_table(checks).schema == CHECK_SCHEMA
    assert as_table([]).schema == CHECK_SCHEMA

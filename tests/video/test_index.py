"""The index job: what it writes, what it refuses, and what it finds doubtful."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_data_sets import MAKERS
from tiny_videos import write, write_video

from kinema.config import fingerprint, load
from kinema.errors import ConfigError, ManifestError
from kinema.video import decode
from kinema.video.index import IndexConfig, hold_out_test, index
from kinema.video.manifest import Manifest
from kinema.video.sources import Source

REAL_DATA = Path(
    os.environ.get("KINEMA_REAL_DATA", Path(__file__).parents[2].parent / "shared" / "data")
)


def test_index_writes_manifest_and_failures(
    tmp_path: Path, data_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.parquet"
    config = IndexConfig(dataset={"name": "folders", "source": str(data_set)}, output=str(output))
    assert index(config) == 0
    manifest = Manifest.read(str(output))
    assert len(manifest) == 5
    assert "3 train, 2 test" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "m.failures.parquet").num_rows == 0
    again = IndexConfig(
        dataset={"name": "manifest", "source": str(output)}, output=str(tmp_path / "n.parquet")
    )
    assert index(again) == 0
    assert Manifest.read(str(tmp_path / "n.parquet")).digest == manifest.digest


def test_a_manifest_is_named_as_what_it_is() -> None:
    with pytest.raises(ConfigError, match=r"output String should match pattern .*not 'x\.csv'"):
        load(IndexConfig, None, ["dataset={name: folders, source: v}", "output=x.csv"])


def test_a_class_without_a_usable_video_is_told(tmp_path: Path) -> None:
    for name in "abc":
        write_video(tmp_path / f"{name}.mp4")
    (tmp_path / "b.mp4").write_bytes(b"")
    for label in (0, 2):  # a gap, or one class less than there is
        other = 2 - label
        lines = f"a.mp4 {other}\nb.mp4 {label}\nc.mp4 1\n"
        lists = {"train": write(tmp_path / "list.txt", lines)}
        dataset = {"name": "list", "lists": lists, "root": str(tmp_path)}
        output = str(tmp_path / "m.parquet")
        with pytest.raises(ManifestError, match=rf"class {label} has lost all .*b\.mp4"):
            index(IndexConfig(dataset=dataset, output=output, max_failure_ratio=0.5))


def test_the_only_video_without_a_label_is_no_lost_class(tmp_path: Path) -> None:
    for name in "ab":
        write_video(tmp_path / "v" / name / "clip.mp4")
    source, output = str(tmp_path / "m.parquet"), str(tmp_path / "n.parquet")
    index(IndexConfig(dataset={"name": "folders", "source": str(tmp_path / "v")}, output=source))
    rows = pq.read_table(source).to_pylist()
    rows = [row | {"label_name": None} for row in rows]
    rows[1]["label"] = None
    schema = pq.read_schema(source).remove_metadata()  # which names the classes
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), source)
    Path(rows[1]["path"]).write_bytes(b"")
    dataset = {"name": "manifest", "source": source}
    assert index(IndexConfig(dataset=dataset, output=output, max_failure_ratio=0.5)) == 0


def test_a_misspelt_split_is_told_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'dataset\.lists\.trian'; known: 'train',"):
        load(IndexConfig, None, ["dataset={name: list, lists: {trian: x}}", "output=x.parquet"])


def test_index_of_lists_takes_names_groups_and_few_failures(tmp_path: Path, data_set: Path) -> None:
    train = write(tmp_path / "train.csv", "train/jump/a.mp4 1\ntrain/run/a.mp4 0\n")
    test = write(tmp_path / "test.csv", "test/run/S2_c.mp4 0\ntest/run/gone.mp4 0\n")
    settings = {
        "dataset": {
            "name": "list",
            "lists": {"train": train, "test": test},
            "root": str(data_set),
            "classes": write(tmp_path / "names.txt", "run\njump\n"),
            "group": r"(\w+)/",
        },
        "output": str(tmp_path / "m.parquet"),
    }
    with pytest.raises(ManifestError, match=r"1 of 4 videos .*gone\.mp4: does not exist") as caught:
        index(IndexConfig(**settings))
    assert "max_failure_ratio=0.25" in str(caught.value)
    assert not (tmp_path / "m.parquet").exists()
    assert pq.read_table(tmp_path / "m.failures.parquet")["id"].to_pylist() == ["test/run/gone.mp4"]
    assert index(IndexConfig(**settings, max_failure_ratio=0.3)) == 0
    rows = pq.read_table(tmp_path / "m.parquet").to_pylist()
    assert [row["label_name"] for row in rows] == ["jump", "run", "run"]
    assert [row["group"] for row in rows] == ["train", "train", "test"]


def test_a_video_in_two_splits_is_refused(tmp_path: Path, data_set: Path) -> None:
    lists = {split: write(tmp_path / split, "train/jump/a.mp4 0\n") for split in ("train", "test")}
    dataset = {"name": "list", "lists": lists, "root": str(data_set)}
    config = IndexConfig(dataset=dataset, output=str(tmp_path / "m.parquet"))
    message = rf"{tmp_path}/test:1: 'train/jump/a\.mp4' is listed already in {tmp_path}/train:1;"
    with pytest.raises(ManifestError, match=message):
        index(config)


def test_a_split_without_a_usable_video_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "a.mp4")
    write(tmp_path / "b.mp4", "no video")
    write(tmp_path / "c.mp4", "no video")
    lists = {
        "train": write(tmp_path / "train", "a.mp4 0\nb.mp4 0\n"),
        "test": write(tmp_path / "test", "c.mp4 0\n"),
    }
    dataset = {"name": "list", "lists": lists}
    with pytest.raises(
        ManifestError, match=r"'test': none of its files can be used \(1 video\).*c\.mp4"
    ):
        index(settings_of(dataset, tmp_path, max_failure_ratio=1))
    assert "2 findings, listed in" in capsys.readouterr().out
    failures = pq.read_table(tmp_path / "out/m.failures.parquet")
    assert failures["id"].to_pylist() == ["b.mp4", "c.mp4"]
    dataset["lists"] = {"train": lists["train"]}
    assert index(settings_of(dataset, tmp_path, max_failure_ratio=0.5)) == 0
    assert "1 finding, listed in" in capsys.readouterr().out


def test_a_wrong_root_is_one_error(tmp_path: Path, data_set: Path) -> None:
    lists = {"train": write(tmp_path / "l", "a.mp4 0\nb.mp4 0\n")}
    dataset = {"name": "list", "lists": lists, "root": str(data_set)}
    config = IndexConfig(dataset=dataset, output=str(tmp_path / "m.parquet"))
    with pytest.raises(ManifestError, match=r"'train': none of its files exists \(2 vi") as caught:
        index(config)
    assert f"searched under {data_set}" in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "why"),
    [
        ({"name": "list"}, "'dataset.lists' is missing"),
        ({"name": "list", "lists": {}}, "dataset.lists .* at least 1 item"),
        ({"name": "folders"}, "'dataset.source' is missing"),
        ({"name": "list", "lists": {"dev": "x"}}, "dataset.lists.dev"),
        ({"name": "coin"}, "dataset.name: unknown name 'coin'; known: list, folders, manifest"),
        ({"source": "x"}, "dataset.name is missing; known: list, folders, manifest"),
        ({"name": "folders", "source": "x", "fold": 1}, "it belongs to dataset.name=ucf101"),
        ({"name": "ucf101", "annotations": "a", "videos": "v", "fold": 4}, "dataset.fold"),
    ],
)
def test_settings_that_do_not_fit_are_refused(dataset: dict[str, object], why: str) -> None:
    values = [f"dataset.{key}={json.dumps(value)}" for key, value in dataset.items()]
    with pytest.raises(ConfigError, match=why):
        load(IndexConfig, None, [*values, "output=m.parquet"])


def settings_of(dataset: dict[str, object], folder: Path, **more: object) -> IndexConfig:
    return IndexConfig(dataset=dataset, output=str(folder / "out" / "m.parquet"), **more)


def findings(folder: Path) -> list[dict[str, str]]:
    return pq.read_table(folder / "out" / "m.checks.parquet").to_pylist()


@pytest.mark.parametrize("name", MAKERS)
def test_every_fault_of_every_kind_of_data_set_is_found(name: str, tmp_path: Path) -> None:
    made = MAKERS[name](tmp_path)
    config = settings_of(made.dataset, tmp_path, max_failure_ratio=0.4)
    with pytest.raises(ManifestError, match="1 video is in two splits") as caught:
        index(config)
    assert (
        f"{made.ids['leak']} ({made.held}): shows the very frames of {made.ids['other']} (train)"
        in (str(caught.value))
    )
    rows = [row for row in findings(tmp_path) if row["kind"] != "unused_class"]
    expected = {("unreadable", "broken"), ("leak", "leak"), ("duplicate", "twin")}
    expected |= {("missing", "gone")} if "gone" in made.ids else set()
    expected |= {("length", "wrong")} if made.claims else set()
    assert sorted((row["kind"], row["id"]) for row in rows) == sorted(
        (kind, made.ids[role]) for kind, role in expected
    )
    assert {row["split"] for row in rows if row["kind"] != "leak"} == {"train"}
    failures = pq.read_table(tmp_path / "out/m.failures.parquet")["id"].to_pylist()
    assert failures == [made.ids[role] for role in ("gone", "broken") if role in made.ids]
    assert not (tmp_path / "out/m.parquet").exists()

    assert index(config.model_copy(update={"allow_leaks": True})) == 0
    manifest = Manifest.read(config.output)
    labels = dict(zip(*manifest.table.select(["id", "label"]).to_pydict().values(), strict=True))
    for role, label in (("good", 0), ("other", 1), ("twin", 0), ("leak", 1), ("last", 0)):
        assert labels[made.ids[role]] == label
    assert set(manifest.select(made.held).table["id"].to_pylist()) == {
        made.ids["leak"],
        made.ids["last"],
    }
    assert manifest.num_classes == (made.num_classes or 2)
    assert (manifest.classes is None) == (made.num_classes is None)

    again = settings_of({"name": "manifest", "source": config.output}, tmp_path / "again")
    assert index(again.model_copy(update={"allow_leaks": True})) == 0
    assert Manifest.read(again.output).table.equals(manifest.table, check_metadata=True)


def test_missing_files_end_the_job_before_any_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "there.mp4")
    lines = [f"v{number}.mp4 0\n" for number in range(50_000)]
    train = write(tmp_path / "train.txt", "there.mp4 0\n" + "".join(lines))
    monkeypatch.setattr("kinema.video.index.measure", None)
    dataset = {"name": "list", "lists": {"train": train}}
    with pytest.raises(ManifestError, match=r"50000 of 50001 videos are missing; none was opened"):
        index(settings_of(dataset, tmp_path, max_failure_ratio=0.5))
    assert len(findings(tmp_path)) == 50_000
    printed = capsys.readouterr().out
    assert len(printed) < 500
    assert "missing  50000           0     0  v0.mp4: does not exist" in printed


def test_a_name_in_another_form_is_missing_and_explained(tmp_path: Path) -> None:
    write_video(tmp_path / "Caf\u00e9.MP4")
    write_video(tmp_path / "a.mp4", value=30)
    train = write(tmp_path / "l.txt", "Cafe\u0301.mp4 0\na.mp4 0\n")
    dataset = {"name": "list", "lists": {"train": train}}
    with pytest.raises(ManifestError, match="which differs in case or Unicode form"):
        index(settings_of(dataset, tmp_path))


def test_parts_of_one_file_leak_only_where_they_meet(tmp_path: Path) -> None:
    write_video(tmp_path / "long.mp4", num_frames=30)  # 3 seconds
    rows = ["id,path,split,label,start_s,end_s"]
    rows += ["a,long.mp4,train,0,0,1", "b,long.mp4,train,0,0.5,1.5", "c,long.mp4,train,0,0.5,1.5"]
    rows += ["d,long.mp4,test,0,1.5,2.5", "e,long.mp4,validation,0,2.5,3.4"]
    table = write(tmp_path / "t.csv", "\n".join(rows))
    config = settings_of({"name": "manifest", "source": table}, tmp_path)
    assert index(config) == 0
    found = {row["id"]: (row["kind"], row["detail"]) for row in findings(tmp_path)}
    assert found == {
        "b": ("overlap", "shows some of the frames of a (train)"),
        "c": ("duplicate", "shows the very frames of b (train)"),
        "e": ("past_end", "ends at 3.40 s, the file at 3.00 s"),
    }
    write(tmp_path / "t.csv", "\n".join(rows).replace("test,0,1.5", "test,0,1.4"))
    with pytest.raises(ManifestError, match=r"d \(test\): shows some of the frames of b \(train\)"):
        index(config)


def test_a_long_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "long.mp4", num_frames=30)
    rows = [f"{n},long.mp4,train,0,{n / 10},{n / 10 + 0.3}" for n in range(10)]
    table = write(tmp_path / "t.csv", "id,path,split,label,start_s,end_s\n" + "\n".join(rows))
    opened = []
    probe = decode.probe
    monkeypatch.setattr(decode, "probe", lambda *given: opened.append(given[0]) or probe(*given))
    assert index(settings_of({"name": "manifest", "source": table}, tmp_path)) == 0
    assert opened == [str(tmp_path / "long.mp4")]


def test_lengths_within_the_tolerance_are_accepted(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", num_frames=10)  # at 10 frames per second
    dataset = {"name": "list", "layout": "path_total_label"}

    def kinds(total: int, **more: object) -> list[str]:
        lists = {"train": write(tmp_path / "l", f"a.mp4 {total} 0\n")}
        index(settings_of(dataset | {"lists": lists}, tmp_path, **more))
        return [row["kind"] for row in findings(tmp_path)]

    assert kinds(15) == kinds(5) == []
    assert kinds(16) == kinds(4) == ["length"]
    assert kinds(16, tolerance_s=0.6) == kinds(40, tolerance_share=0.75) == []
    assert kinds(11, tolerance_s=0, tolerance_share=0) == ["length"]


def test_two_forms_of_a_class_name_are_refused(tmp_path: Path) -> None:
    for name in ("caf\u00e9", "cafe\u0301"):
        write_video(tmp_path / "v" / name / "a.mp4")
    with pytest.raises(ManifestError, match="in two forms of Unicode"):
        index(settings_of({"name": "folders", "source": str(tmp_path / "v")}, tmp_path))


@pytest.mark.real
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real data in {REAL_DATA}")
def test_the_gesture_lists_index(tmp_path: Path) -> None:
    folder = REAL_DATA / "iri_gesture"
    config = IndexConfig(
        dataset={
            "name": "list",
            "lists": {"train": str(folder / "train.csv"), "test": str(folder / "test.csv")},
            "classes": str(folder / "classes.txt"),
            "group": r"(S\d)_",
        },
        output=str(tmp_path / "m.parquet"),
        decode_all=False,
    )
    assert index(config) == 0
    manifest = Manifest.read(str(tmp_path / "m.parquet"))
    assert (len(manifest.select("train")), len(manifest.select("test"))) == (225, 90)
    assert manifest.num_classes == 15
    assert set(manifest.select("test").table["group"].to_pylist()) == {"S6", "S7"}


def named(count: int, label: int, groups: int = 0) -> list[Source]:
    """Training videos of one class."""
    return [
        Source(
            f"{label}/{index:03}.mp4",
            f"/videos/{label}/{index:03}.mp4",
            "train",
            label,
            group=f"S{index % groups}" if groups else None,
        )
        for index in range(count)
    ]


def test_a_share_of_every_class_is_held_out_whatever_the_order() -> None:
    sources = [*named(20, 0), *named(7, 1)]
    held = hold_out_test(sources, 0.2)
    tested = {source.id for source in held if source.split == "test"}
    assert [len([id for id in tested if id.startswith(label)]) for label in "01"] == [4, 1]
    again = hold_out_test(sources[::-1], 0.2)
    assert {source.id for source in again if source.split == "test"} == tested
    more = {source.id for source in hold_out_test(sources, 0.4) if source.split == "test"}
    assert tested < more


def test_files_of_the_same_bytes_stay_in_one_split(tmp_path: Path) -> None:
    for number in range(6):
        write_video(tmp_path / "v/run" / f"{number}.mp4", num_frames=4 + number)
        for copy in "abc":
            twin = tmp_path / "v/run" / f"{number}{copy}.mp4"
            twin.write_bytes((tmp_path / "v/run" / f"{number}.mp4").read_bytes())
    dataset = {"name": "folders", "source": str(tmp_path / "v")}
    output = tmp_path / "m.parquet"
    assert index(IndexConfig(dataset=dataset, output=str(output), test_share=0.3)) == 0
    rows = pq.read_table(output).to_pylist()
    splits = {
        row["digest"]: {r["split"] for r in rows if r["digest"] == row["digest"]} for row in rows
    }
    assert sorted(splits.values(), key=sorted) == [{"test"}] * 2 + [{"train"}] * 4
    kinds = pq.read_table(tmp_path / "m.checks.parquet")["kind"].to_pylist()
    assert kinds == ["duplicate"] * 18


def test_parts_that_overlap_stay_in_one_split(tmp_path: Path) -> None:
    write_video(tmp_path / "v/run/long.mp4", num_frames=60)
    source, output = str(tmp_path / "m.parquet"), str(tmp_path / "n.parquet")
    index(IndexConfig(dataset={"name": "folders", "source": str(tmp_path / "v")}, output=source))
    (row,) = pq.read_table(source).to_pylist()
    second = row["num_frames"] / row["fps"] / 10
    parts = [  # four scenes of three parts that meet the one before
        row | {"id": f"{scene}{part}", "start_s": start, "end_s": start + second}
        for scene in range(4)
        for part in range(3)
        for start in [second * (2.5 * scene + 0.5 * part)]
    ]
    pq.write_table(pa.Table.from_pylist(parts, schema=pq.read_schema(source)), source)
    dataset = {"name": "manifest", "source": source}
    assert index(IndexConfig(dataset=dataset, output=output, test_share=0.25)) == 0
    held = {row["id"] for row in pq.read_table(output).to_pylist() if row["split"] == "test"}
    assert len(held) == 3
    assert len({id[0] for id in held}) == 1
    pq.write_table(pa.Table.from_pylist(parts[:3], schema=pq.read_schema(source)), source)
    with pytest.raises(ManifestError, match=r"1 video \(copies and overlapping parts count once"):
        index(IndexConfig(dataset=dataset, output=output, test_share=0.25))
    kinds = pq.read_table(tmp_path / "n.checks.parquet")["kind"].to_pylist()
    assert kinds == ["overlap"] * 2


@given(
    st.lists(st.sets(st.integers(0, 5), min_size=2, max_size=4), min_size=2, max_size=3),
    st.sampled_from([0.2, 0.5]),
)
def test_every_class_has_videos_on_both_sides_or_is_named(
    scenes: list[set[int]], share: float
) -> None:
    """Of classes that share scenes."""
    shown = {f"{label}/{scene}": scene for label, some in enumerate(scenes) for scene in some}
    sources = [Source(id, f"/v/{id}", "train", int(id[0])) for id in shown]
    try:
        held = hold_out_test(sources, share, {id: str(scene) for id, scene in shown.items()})
    except ManifestError:
        return
    sides = {(source.label, source.split) for source in held}
    assert len(sides) == 2 * len(scenes)
    split = {shown[source.id]: source.split for source in held}
    assert all(split[shown[source.id]] == source.split for source in held)


def test_a_class_whose_videos_are_all_held_out_with_others_is_named() -> None:
    rank = sorted("abcdefgh", key=lambda name: fingerprint("test split", name))
    # the second class takes its first; its other goes with the first class's first
    first, second = [rank[1], rank[2]], [rank[0], rank[1]]
    sources = [
        Source(f"{label}/{name}", f"/v/{name}", "train", label)
        for label, names in enumerate((first, second))
        for name in names
    ]
    same_as = {source.id: source.id[-1] for source in sources}
    with pytest.raises(ManifestError, match=r"class 1 shares the frames of .* have two labels"):
        hold_out_test(sources, 0.2, same_as)


def test_the_test_split_is_taken_from_what_can_be_read(tmp_path: Path) -> None:
    for number in range(4):
        write_video(tmp_path / "v/run" / f"{number}.mp4", num_frames=4 + number)
    dataset = {"name": "folders", "source": str(tmp_path / "v")}
    output = tmp_path / "m.parquet"
    settings = {"dataset": dataset, "output": str(output), "test_share": 0.25}
    index(IndexConfig(**settings))
    (held,) = (row for row in pq.read_table(output).to_pylist() if row["split"] == "test")
    Path(held["path"]).write_bytes(b"")
    index(IndexConfig(**settings, max_failure_ratio=0.25))
    splits = pq.read_table(output)["split"].to_pylist()
    assert sorted(splits) == ["test", "train", "train"]


def test_a_class_that_lacks_videos_to_hold_out_says_where_they_went(tmp_path: Path) -> None:
    for number in range(4):
        write_video(tmp_path / "v" / "ab"[number % 2] / f"{number}.mp4", num_frames=4 + number)
    (tmp_path / "v/a/2.mp4").write_bytes(b"")
    dataset = {"name": "folders", "source": str(tmp_path / "v")}
    settings = {"dataset": dataset, "output": str(tmp_path / "m.parquet"), "test_share": 0.2}
    with pytest.raises(ManifestError, match=r"1 of 4 videos are .* unreadable.*2\.mp4"):
        index(IndexConfig(**settings))
    with pytest.raises(ManifestError, match=r"class 0 has 1 video .*: none would be left"):
        index(IndexConfig(**settings, max_failure_ratio=0.25))
    assert pq.read_table(tmp_path / "m.failures.parquet")["id"].to_pylist() == ["a/2.mp4"]


def test_whole_groups_are_held_out() -> None:
    held = hold_out_test([*named(30, 0, groups=5), *named(30, 1, groups=5)], 0.4)
    groups = {split: {s.group for s in held if s.split == split} for split in ("train", "test")}
    assert len(groups["test"]) == 2
    assert not groups["train"] & groups["test"]


def test_a_split_of_ones_own_or_nothing_left_is_told() -> None:
    own = [replace(source, split="test") for source in named(2, 0)]
    with pytest.raises(ManifestError, match=r"has a split 'test' of its own"):
        hold_out_test([*named(5, 1), *own], 0.2)
    with pytest.raises(ManifestError, match=r"class 1 has 1 video: none would be left"):
        hold_out_test([*named(5, 0), *named(1, 1)], 0.2)

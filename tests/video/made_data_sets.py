"""A tiny data set in the official form of each kind, with one of every fault."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_videos import write, write_video

TRAIN = ("good", "other", "twin", "gone", "broken", "wrong")
HELD = ("leak", "last")
ROLES = (*TRAIN, *HELD)
LABELS = {"other": 1, "leak": 1} | dict.fromkeys(["good", "twin", "gone", "broken", "wrong"], 0)
LABELS["last"] = 0


@dataclass(frozen=True)
class Made:
    """What was made.

    Attributes:
        dataset: settings that index it.
        held: split of what is not for training.
        ids: by role.
        num_classes: that are defined; None = not said.
        claims: whether the annotation tells lengths.
    """

    dataset: dict[str, Any]
    held: str
    ids: dict[str, str]
    num_classes: int | None
    claims: bool = False


def fill(files: dict[str, Path]) -> None:
    """Write the videos: `twin` shows what `good` shows, `leak` what `other` shows."""
    for value, role in enumerate(["good", "other", "wrong", "last"]):
        written = write_video(files[role].with_suffix(".mp4"), value=20 + 40 * value)
        written.rename(files[role])  # WebM takes no H.264, and nothing reads the suffix
    for role, of in (("twin", "good"), ("leak", "other")):
        files[role].parent.mkdir(parents=True, exist_ok=True)
        files[role].write_bytes(files[of].read_bytes())
    files["broken"].parent.mkdir(parents=True, exist_ok=True)
    files["broken"].write_text("not a video")


def put(path: Path, lines: Iterable[str], end: str = "\n") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, "".join(line + end for line in lines))


def put_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def put_json(path: Path, value: object) -> str:
    return put(path, [json.dumps(value, indent=1)])


def make_list(folder: Path) -> Made:
    ids = {role: f"a b/{role} (1).mp4" for role in ROLES}
    fill({role: folder / id for role, id in ids.items()})
    lists = {
        split: put(
            folder / f"{split}.csv",
            [f"{ids[role]} {20 if role == 'wrong' else 10} {LABELS[role]}" for role in roles],
        )
        for split, roles in (("train", TRAIN), ("test", HELD))
    }
    dataset = {"name": "list", "lists": lists, "layout": "path_total_label"}
    return Made(dataset, "test", ids, None, claims=True)


def make_folders(folder: Path) -> Made:
    ids = {role: f"train/c{LABELS[role]}/{role}.mp4" for role in TRAIN}
    ids |= {role: f"val/c{LABELS[role]}/{role}.mp4" for role in HELD}
    fill({role: folder / id for role, id in ids.items()})
    del ids["gone"]  # what is not there is not listed
    return Made({"name": "folders", "source": str(folder)}, "validation", ids, 2)


def make_manifest(folder: Path) -> Made:
    ids = {role: f"{role}, 1.mp4" for role in ROLES}
    fill({role: folder / id for role, id in ids.items()})
    rows = [(ids[role], "test" if role in HELD else "train", LABELS[role]) for role in ROLES]
    table = put_csv(folder / "t.csv", ("path", "split", "label"), rows)
    return Made({"name": "manifest", "source": table}, "test", ids, None)


def make_ssv2(folder: Path) -> Made:
    ids = {role: str(number) for number, role in enumerate(ROLES, 1)}
    fill({role: folder / "v" / f"{id}.webm" for role, id in ids.items()})
    templates = ["Closing [something]", "Putting [something] [somewhere]"]
    names = {"Closing something": "0", "Putting something somewhere": "1", "Unused": "2"}
    prefix = "something-something-v2"
    put_json(folder / f"a/{prefix}-labels.json", names)
    for split, roles in (("train", TRAIN), ("validation", HELD)):
        entries = [{"id": ids[role], "template": templates[LABELS[role]]} for role in roles]
        put_json(folder / f"a/{prefix}-{split}.json", entries)
    dataset = {"name": "ssv2", "annotations": str(folder / "a"), "videos": str(folder / "v")}
    return Made(dataset, "validation", ids, 3)


def make_epic100(folder: Path) -> Made:
    ids = {role: f"P01_{number}_0" for number, role in enumerate(ROLES)}
    videos = {role: id.removesuffix("_0") for role, id in ids.items()}
    fill({role: folder / "v/P01/videos" / f"{video}.MP4" for role, video in videos.items()})
    put_csv(folder / "a/EPIC_100_verb_classes.csv", ("id", "key"), [(0, "take"), (1, "put")])
    put_csv(
        folder / "a/EPIC_100_noun_classes.csv",
        ("id", "key"),
        [(number, f"n{number}") for number in range(4)],
    )
    durations = [(video, 2.0 if role == "wrong" else 1.0) for role, video in videos.items()]
    put_csv(folder / "a/EPIC_100_video_info.csv", ("video_id", "duration"), durations)
    header = ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp")
    for split, roles in (("train", TRAIN), ("validation", HELD)):
        rows = [
            (ids[role], "P01", videos[role], "00:00:00.00", "00:00:00.95", LABELS[role], 2)
            for role in roles
        ]
        put_csv(folder / f"a/EPIC_100_{split}.csv", (*header, "verb_class", "noun_class"), rows)
    dataset = {"name": "epic100", "annotations": str(folder / "a"), "videos": str(folder / "v")}
    return Made(dataset, "validation", ids, 2, claims=True)


def make_kinetics400(folder: Path) -> Made:
    names, times = ["air drumming", "zumba"], dict.fromkeys(ROLES, (7, 8))
    times["wrong"] = (7, 17)
    ids = {role: f"-{role}_{times[role][0]:06d}_{times[role][1]:06d}" for role in ROLES}
    fill({role: folder / "v" / names[LABELS[role]] / f"{ids[role]}.mp4" for role in ROLES})
    header = ("label", "youtube_id", "time_start", "time_end", "split", "is_cc")
    files = [
        put_csv(
            folder / f"{word}.csv",
            header,
            [(names[LABELS[role]], f"-{role}", *times[role], word, 0) for role in roles],
        )
        for word, roles in (("train", TRAIN), ("val", HELD))
    ]
    dataset = {"name": "kinetics400", "annotations": files, "videos": str(folder / "v")}
    return Made(dataset | {"class_folders": True}, "validation", ids, 2, claims=True)


def make_ucf101(folder: Path) -> Made:
    names = ["ApplyLipstick", "YoYo"]
    ids = {
        role: f"{names[LABELS[role]]}/v_{names[LABELS[role]]}_g0{number}_c01.avi"
        for number, role in enumerate(ROLES)
    }
    fill({role: folder / "v" / id for role, id in ids.items()})
    put(folder / "a/classInd.txt", ["1 ApplyLipstick", "2 YoYo", "3 Unused"], "\r\n")
    train = [f"{ids[role]} {LABELS[role] + 1}" for role in TRAIN]
    put(folder / "a/trainlist01.txt", train, "\r\n")
    put(folder / "a/testlist01.txt", [ids[role] for role in HELD], "\r\n")
    dataset = {"name": "ucf101", "annotations": str(folder / "a"), "videos": str(folder / "v")}
    return Made(dataset, "test", ids, 3)


def make_hmdb51(folder: Path) -> Made:
    names = ["brush_hair", "wave"]
    ids = {role: f"{names[LABELS[role]]}/{hmdb_file(role, names)}" for role in ROLES}
    fill({role: folder / "v" / id for role, id in ids.items()})
    for name in [*names, *(f"x{number:02}" for number in range(49))]:
        lines = [
            f"{hmdb_file(role, names)} {2 if role in HELD else 1} "
            for role in ROLES
            if names[LABELS[role]] == name
        ]
        put(folder / f"a/{name}_test_split1.txt", lines)
    dataset = {"name": "hmdb51", "annotations": str(folder / "a"), "videos": str(folder / "v")}
    return Made(dataset, "test", ids, 51)


def hmdb_file(role: str, names: Sequence[str]) -> str:
    return f"#4_(A)_[B]!+&_{role}_{names[LABELS[role]]}_u_nm_np1_ba_goo_0.avi"


def make_diving48(folder: Path) -> Made:
    ids = {role: f"-x{role}_0000{number}" for number, role in enumerate(ROLES)}
    fill({role: folder / "v" / f"{id}.mp4" for role, id in ids.items()})
    put_json(folder / "a/Diving48_vocab.json", [["Back", "TUCK"], ["Back", "PIKE"], ["Unused"]])
    for split, roles in (("train", TRAIN), ("test", HELD)):
        entries = [
            {
                "vid_name": ids[role],
                "label": LABELS[role],
                "start_frame": 0,
                "end_frame": 20 if role == "wrong" else 10,
            }
            for role in roles
        ]
        put_json(folder / f"a/Diving48_V2_{split}.json", entries)
    dataset = {"name": "diving48", "annotations": str(folder / "a"), "videos": str(folder / "v")}
    return Made(dataset, "test", ids, 3, claims=True)


def make_partial_da(folder: Path) -> Made:
    ucf, hmdb = ["Biking", "Punch", "PullUps"], ["ride_bike", "punch"]
    paths = {
        role: f"{ucf[LABELS[role]]}/v_{ucf[LABELS[role]]}_g0{number}_c01.avi"
        for number, role in enumerate(TRAIN)
    }
    paths |= {role: f"{hmdb[LABELS[role]]}/{hmdb_file(role, hmdb)}" for role in HELD}
    trees = {role: "hmdb51" if role in HELD else "ucf101" for role in ROLES}
    fill({role: folder / trees[role] / path for role, path in paths.items()})
    pullups = "PullUps/v_PullUps_g09_c01.avi"
    write_video(folder / "ucf101" / pullups, value=200)
    lines = [f"{n}\t{LABELS[role]}\t{paths[role]}" for n, role in enumerate(TRAIN)]
    put(folder / "a/ucf101_train_uh.txt", [*lines, f"{len(TRAIN)}\t2\t{pullups}"])
    put(
        folder / "a/hmdb51_test_uh.txt",
        [f"{n}\t{LABELS[role]}\t{paths[role]}" for n, role in enumerate(HELD)],
    )
    dataset = {"name": "partial_da", "annotations": str(folder / "a"), "direction": "ucf14_hmdb7"}
    dataset |= {"ucf101": str(folder / "ucf101"), "hmdb51": str(folder / "hmdb51")}
    ids = {role: f"{trees[role]}/{path}" for role, path in paths.items()}
    return Made(dataset, "test", ids, 3)


MAKERS: dict[str, Callable[[Path], Made]] = {
    "list": make_list,
    "folders": make_folders,
    "manifest": make_manifest,
    "ssv2": make_ssv2,
    "epic100": make_epic100,
    "kinetics400": make_kinetics400,
    "ucf101": make_ucf101,
    "hmdb51": make_hmdb51,
    "diving48": make_diving48,
    "partial_da": make_partial_da,
}

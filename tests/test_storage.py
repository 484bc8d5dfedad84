"""Storage: the same behaviour for local paths and URIs, whole files, and messages that help."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from kinema import storage
from kinema.errors import StorageError

TABLE = pa.table({"id": ["a", "b"], "score": [1.5, None]})


@pytest.fixture(params=["path", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {
        "path": str(tmp_path),
        "file": tmp_path.as_uri(),
        "memory": f"memory://{tmp_path.name}",
    }[request.param]


def test_bytes_come_back(root: str) -> None:
    uri = storage.join(root, "new", "folder", "file.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"first")
    storage.write_bytes(uri, b"second!")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"second!"
    assert storage.content_digest(uri) == hashlib.sha256(b"second!").hexdigest()


def test_inputs_can_seek(root: str) -> None:
    uri = storage.join(root, "file.bin")
    storage.write_bytes(uri, b"0123456789")
    with storage.open_input(uri) as file:
        file.seek(-3, os.SEEK_END)
        assert (file.tell(), file.read()) == (7, b"789")
        file.seek(2)
        assert file.read(2) == b"23"


def test_json_and_tables_come_back(root: str) -> None:
    value = {"a": [1, None, "ü"], "b": {"c": 1e-7}}
    storage.write_json(storage.join(root, "x.json"), value)
    assert storage.read_json(storage.join(root, "x.json")) == value
    storage.write_table(storage.join(root, "x.parquet"), TABLE)
    assert storage.read_table(storage.join(root, "x.parquet")).equals(TABLE)
    assert storage.read_table(storage.join(root, "x.parquet"), ["score"]).column_names == ["score"]


def test_names_are_those_directly_inside(root: str) -> None:
    for name in ("a.json", "b/two.json", "caf\u00e9 [1].txt"):
        storage.write_bytes(storage.join(root, "names", name), b"")
    assert storage.list_names(storage.join(root, "names")) == {"a.json", "b", "caf\u00e9 [1].txt"}
    assert storage.list_names(storage.join(root, "nowhere")) == set()


def test_list_files_is_recursive_sorted_and_openable(root: str) -> None:
    for name in ("b/two.json", "a/one.json", "three.json", "a/other.txt"):
        storage.write_bytes(storage.join(root, name), name.encode())
    found = storage.list_files(root, ".json")
    assert [storage.read_bytes(uri) for uri in found] == [
        b"a/one.json",
        b"b/two.json",
        b"three.json",
    ]
    assert len(storage.list_files(root)) == 4
    assert storage.list_files(storage.join(root, "absent")) == []


def test_list_files_leaves_out_what_is_being_written(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "done"), b"")
    (tmp_path / ".kinema-tmp-123").write_bytes(b"half")
    assert storage.list_files(str(tmp_path)) == [str(tmp_path / "done")]


def test_remove_takes_files_folders_and_nothing(root: str) -> None:
    storage.write_bytes(storage.join(root, "keep", "x"), b"")
    storage.write_bytes(storage.join(root, "gone", "deep", "x"), b"")
    storage.remove(storage.join(root, "gone"))
    storage.remove(storage.join(root, "gone"))
    assert not storage.exists(storage.join(root, "gone"))
    storage.remove(storage.join(root, "keep", "x"))
    assert storage.list_files(root) == []


def test_remove_of_a_link_leaves_its_target(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "target" / "x"), b"")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    storage.remove(str(tmp_path / "link"))
    assert (tmp_path / "target" / "x").exists()
    assert not (tmp_path / "link").exists()


@pytest.mark.parametrize("kind", ["path", "memory"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path) if kind == "path" else f"memory://{tmp_path.name}-failed"
    uri = storage.join(root, "x.parquet")
    storage.write_table(uri, TABLE)
    before = storage.content_digest(uri)

    def fail(table: Any, file: Any) -> None:
        file.write(b"PAR1 and no more")
        raise OSError("disk full")

    monkeypatch.setattr(storage.pq, "write_table", fail)
    with pytest.raises(StorageError, match=rf"cannot write {uri}: disk full"):
        storage.write_table(uri, TABLE)
    assert storage.content_digest(uri) == before
    assert storage.list_files(root) == [*storage.list_files(root, "x.parquet")]
    if kind == "path":
        assert os.listdir(tmp_path) == ["x.parquet"]


def test_a_local_write_is_on_disk_before_it_is_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    storage.write_bytes(str(tmp_path / "x"), b"1")
    assert events == ["fsync", "replace"]


def test_files_have_the_mode_that_the_user_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        storage.write_bytes(str(tmp_path / "x"), b"")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_what_is_missing_is_named(root: str) -> None:
    uri = storage.join(root, "absent.json")
    for read in (
        storage.read_bytes,
        storage.read_json,
        storage.read_table,
        storage.open_input,
        storage.content_digest,
    ):
        with pytest.raises(StorageError, match=r"absent.json does not exist; check the path"):
            read(uri)


def test_a_folder_is_not_a_file(root: str) -> None:
    storage.write_bytes(storage.join(root, "folder", "x"), b"")
    with pytest.raises(StorageError, match="folder is a folder, not a file"):
        storage.read_bytes(storage.join(root, "folder"))


def test_damaged_files_are_named(root: str) -> None:
    uri = storage.join(root, "x")
    storage.write_bytes(uri, b"{nonsense")
    with pytest.raises(StorageError, match=r"x is not JSON \(.*\); remove it or restore a copy"):
        storage.read_json(uri)
    with pytest.raises(StorageError, match="x is not a readable Parquet file"):
        storage.read_table(uri)


def test_missing_columns_are_named(root: str) -> None:
    uri = storage.join(root, "x.parquet")
    storage.write_table(uri, TABLE)
    with pytest.raises(StorageError, match="has no column 'label', 'fps'; it has id, score"):
        storage.read_table(uri, ["id", "label", "fps"])


def test_permission_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(
        StorageError, match=r"no permission to write .*/x; check its owner and mode"
    ):
        storage.write_bytes(str(tmp_path / "x"), b"")
    with pytest.raises(
        StorageError, match=rf"storage root {tmp_path} cannot be written; set KINEMA"
    ):
        storage.check_writable(str(tmp_path), "storage root", "set KINEMA_STORAGE")
    assert os.listdir(tmp_path) == []


def test_a_path_through_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="a part of its path is a file"):
        storage.write_bytes(str(tmp_path / "file" / "x"), b"")


def test_check_writable_leaves_nothing(root: str) -> None:
    storage.check_writable(storage.join(root, "new"), "output", "")
    assert storage.list_files(root) == []


@pytest.mark.parametrize(
    ("uri", "why"), [("nope://a/b", "Protocol not known: nope"), ("sftp://a/b", "paramiko")]
)
def test_unknown_schemes_are_named(uri: str, why: str) -> None:
    scheme = uri.partition(":")[0]
    with pytest.raises(
        StorageError, match=rf"nothing here can open {scheme}:// \({uri}\): .*{why}"
    ):
        storage.read_bytes(uri)


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.absolute("x/../y") == str(tmp_path / "y")
    assert storage.absolute("~/data") == "/home/someone/data"
    assert storage.absolute("file:///a%20b/c") == "/a b/c"
    for uri in ("s3://bucket/x", "gs://bucket/x", "abfs+https://c/x", "simplecache::s3://b/x"):
        assert storage.absolute(uri) == uri


def test_default_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINEMA_STORAGE", "s3://bucket/kinema")
    assert storage.default_root() == "s3://bucket/kinema"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KINEMA_STORAGE")
    assert storage.default_root() == str(tmp_path / ".kinema")


def test_listed_files_keep_the_account_they_are_in(tmp_path: Path) -> None:
    azure = "abfss://container@account.dfs.core.windows.net/kinema"
    filesystem = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    for root, inside in ((azure, "container/kinema"), ("s3://bucket/kinema", "bucket/kinema")):
        assert storage._uri(root, filesystem, inside, f"{inside}/a/b.json") == f"{root}/a/b.json"


def test_a_root_that_ray_cannot_open_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"storage root memory://x: Ray opens it through Arrow"):
        storage.check_native("memory://x", "storage root")
    for azure in ("abfs://container/x", "abfss://container/x", "az://container/x"):
        with pytest.raises(StorageError, match=r"abfss://container@account\.dfs\.core\.windows"):
            storage.check_native(azure, "storage root")
    for known in (str(tmp_path), f"file://{tmp_path}"):
        storage.check_native(known, "storage root")


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("/a", "b", "c.json"), "/a/b/c.json"),
        (("/a/", "/b/", "c"), "/a/b/c"),
        (("s3://bucket", "x/y"), "s3://bucket/x/y"),
        (("/", "a"), "/a"),
        (("/",), "/"),
        (("a", "", "b"), "a/b"),
    ],
)
def test_join(parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(*parts) == joined


def test_names_that_look_like_uri_syntax(root: str) -> None:
    uri = storage.join(root, "50% done", "a b#1?x.json")
    storage.write_json(uri, 1)
    if not root.startswith("file:"):
        assert storage.list_files(root) == storage.list_files(root, "a b#1?x.json") != []
        assert storage.read_json(storage.list_files(root)[0]) == 1
    assert storage.read_json(uri) == 1

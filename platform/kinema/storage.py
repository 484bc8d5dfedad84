"""Local paths and URIs (s3://, gs://, file://, whatever fsspec knows) in one way.

A file is written under a temporary name, then renamed, so a reader sees the old or the new one,
never half of one. S3 and GCS publish an object only when it is complete, so there the name is the
target's. Other endpoints of S3 are named by `AWS_ENDPOINT_URL`, credentials by the cloud's own
variables.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from kinema.errors import StorageError

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+://")
_CHUNK = 1 << 20
_TEMPORARY = ".kinema-tmp-"


def default_root() -> str:
    """Root of everything durable: `$KINEMA_STORAGE`, or `~/.kinema`."""
    return absolute(os.environ.get("KINEMA_STORAGE") or "~/.kinema")


def absolute(path_or_uri: str) -> str:
    """A local path made absolute, `~` expanded and `file://` taken off; another URI unchanged."""
    if path_or_uri.startswith("file://"):
        return os.path.abspath(unquote(urlsplit(path_or_uri).path))
    if _URI.match(path_or_uri):
        return path_or_uri
    return os.path.abspath(os.path.expanduser(path_or_uri))


def join(root: str, *parts: str) -> str:
    """`root` and `parts` with one `/` between each two."""
    pieces = [root.rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))]
    return "/".join(pieces) or "/"


def exists(uri: str) -> bool:
    """Whether there is a file or folder."""
    return bool(_info(uri).type != fs.FileType.NotFound)


def list_files(root: str, suffix: str = "") -> list[str]:
    """All files under `root`, at any depth, whose name ends in `suffix`, sorted; [] without root.

    Temporary files of writers that are still at work are left out.
    """
    filesystem, path = _resolve(root)
    selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
    with _explained(root, "list"):
        infos = filesystem.get_file_info(selector)
    return sorted(
        _uri(root, filesystem, path, info.path)
        for info in infos
        if info.type == fs.FileType.File
        and info.base_name.endswith(suffix)
        and not info.base_name.startswith(_TEMPORARY)
    )


def list_names(folder: str) -> set[str]:
    """Names of the files and folders directly inside a folder; none without the folder."""
    filesystem, path = _resolve(folder)
    selector = fs.FileSelector(path, allow_not_found=True)
    with _explained(folder, "list"):
        infos = filesystem.get_file_info(selector)
    return {info.base_name for info in infos if info.type != fs.FileType.NotFound}


def remove(uri: str) -> None:
    """Remove a file, or a folder with all in it; nothing happens when it is not there."""
    filesystem, path = _resolve(uri)
    with _explained(uri, "remove"):
        if isinstance(filesystem, fs.LocalFileSystem):
            _remove_local(Path(path))
        elif (kind := _info(uri).type) == fs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == fs.FileType.File:
            filesystem.delete_file(path)


def open_input(uri: str) -> BinaryIO:
    """A file opened for reading, seekable.

    Raises:
        StorageError: it is missing or may not be read.
    """
    _require_file(uri)
    filesystem, path = _resolve(uri)
    with _explained(uri, "read"):
        if isinstance(filesystem, fs.LocalFileSystem):
            return open(path, "rb")
        return cast(BinaryIO, filesystem.open_input_file(path))


def read_bytes(uri: str) -> bytes:
    """All bytes of a file."""
    with open_input(uri) as file, _explained(uri, "read"):
        return file.read()


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file whole or not at all; parents are made."""
    _write(uri, lambda file: file.write(data))


def read_json(uri: str) -> Any:
    """The value in a JSON file."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise StorageError(f"{uri} is not JSON ({error}); remove it or restore a copy") from error


def write_json(uri: str, obj: Any) -> None:
    """Write plain data as indented JSON, whole or not at all."""
    write_bytes(uri, (json.dumps(obj, indent=2) + "\n").encode())


def read_table(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file, or some of its columns.

    Raises:
        StorageError: it is missing, damaged, or has no such column.
    """
    with open_input(uri) as file:
        try:
            parquet = pq.ParquetFile(file)
            known = parquet.schema_arrow.names
            absent = ", ".join(repr(name) for name in columns or () if name not in known)
            table = parquet.read(columns=None if columns is None else list(columns))
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"{uri} is not a readable Parquet file: {error}") from error
    if absent:
        raise StorageError(f"{uri} has no column {absent}; it has {', '.join(known)}")
    return table


def write_table(uri: str, table: pa.Table) -> None:
    """Write a Parquet file, whole or not at all."""
    _write(uri, lambda file: pq.write_table(table, file))


def write_row_groups(uri: str, tables: Iterable[pa.Table], **options: Any) -> None:
    """Write a Parquet file whose row groups are `tables`, whole or not at all.

    Args:
        uri: of the file.
        tables: at least one, all of one schema.
        options: of `pyarrow.parquet.ParquetWriter`.
    """
    every = iter(tables)
    first = next(every)

    def fill(file: BinaryIO) -> None:
        with pq.ParquetWriter(file, first.schema, **options) as writer:
            for table in itertools.chain([first], every):
                writer.write_table(table, row_group_size=max(len(table), 1))

    _write(uri, fill)


def read_footer(uri: str) -> pq.FileMetaData:
    """What a Parquet file says about its row groups.

    Raises:
        StorageError: it is missing or damaged.
    """
    with open_input(uri) as file:
        try:
            return pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"{uri} is not a readable Parquet file: {error}") from error


def read_row_groups(
    uri: str, footer: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str]
) -> pa.Table:
    """Some columns of some row groups; nothing else of the file is read.

    Raises:
        StorageError: it is missing or damaged.
    """
    with open_input(uri) as file:
        try:
            parquet = pq.ParquetFile(file, metadata=footer)
            return parquet.read_row_groups(list(groups), columns=list(columns))
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"{uri} is not a readable Parquet file: {error}") from error


def content_digest(uri: str) -> str:
    """SHA-256 of a file's bytes in hex, read in pieces."""
    digest = hashlib.sha256()
    with open_input(uri) as file, _explained(uri, "read"):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_native(uri: str, name: str) -> None:
    """Make sure that Ray, which knows no fsspec, can open what `uri` names.

    Raises:
        StorageError: only fsspec can.
    """
    located = absolute(uri)
    scheme, _, rest = located.partition("://")
    with _explained(uri, "open"):
        known = not _URI.match(located) or _native_filesystem(scheme, rest.partition("/")[0])
    if not known:
        raise StorageError(
            f"{name} {uri}: Ray opens it through Arrow, which knows local paths, s3://, gs:// and"
            " abfss://container@account.dfs.core.windows.net/; only videos may lie elsewhere"
        )


def check_writable(uri: str, name: str, advice: str, is_file: bool = False) -> None:
    """Make sure, before the work and not after, that results can be written, by trying it.

    Args:
        uri: folder that they go to; it is made.
        name: what the user knows it as.
        advice: what to do when it cannot be written.
        is_file: `uri` is a file to be written; only its folder is touched.

    Raises:
        StorageError: naming `name`, `uri` and what to do.
    """
    folder = absolute(uri).rpartition("/")[0] if is_file else absolute(uri)
    probe = join(folder, f"{_TEMPORARY}probe-{os.getpid()}")
    try:
        write_bytes(probe, b"")
        remove(probe)
    except StorageError as error:
        raise StorageError(f"{name} {uri} cannot be written; {advice} ({error})") from error


def _write(uri: str, fill: Callable[[BinaryIO], object]) -> None:
    filesystem, path = _resolve(uri)
    with _explained(uri, "write"):
        if isinstance(filesystem, fs.LocalFileSystem):
            _write_local(Path(path), fill)
        else:
            _write_remote(filesystem, path, fill)


def _write_local(target: Path, fill: Callable[[BinaryIO], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_remote(filesystem: fs.FileSystem, path: str, fill: Callable[[BinaryIO], object]) -> None:
    # Filled in memory first: closing the stream of an object store publishes what is in it, also
    # while an error of `fill` is on its way out.
    content = BytesIO()
    fill(content)
    folder = path.rpartition("/")[0]
    publishes_whole = isinstance(filesystem, fs.S3FileSystem | fs.GcsFileSystem)
    written = path if publishes_whole else f"{folder}/{_TEMPORARY}{uuid.uuid4().hex}"
    if not publishes_whole:
        filesystem.create_dir(folder, recursive=True)
    with filesystem.open_output_stream(written) as stream:
        stream.write(content.getbuffer())
    if not publishes_whole:
        filesystem.move(written, path)


def _remove_local(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _info(uri: str) -> fs.FileInfo:
    filesystem, path = _resolve(uri)
    with _explained(uri, "look up"):
        return filesystem.get_file_info(path)


def _require_file(uri: str) -> fs.FileInfo:
    info = _info(uri)
    if info.type == fs.FileType.NotFound:
        raise StorageError(f"{uri} does not exist; check the path, and that it is shared storage")
    if info.type == fs.FileType.Directory:
        raise StorageError(f"{uri} is a folder, not a file")
    return info


def _resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem that serves `uri`, and its path there."""
    located = absolute(uri)
    if not _URI.match(located):
        return fs.LocalFileSystem(), located
    scheme, _, rest = located.partition("://")
    authority, _, path = rest.rstrip("/").partition("/")
    try:
        known = _native_filesystem(scheme, authority)
        if known is not None:
            return known[0], f"{known[1]}/{path}" if path else known[1]
        # Bytes of another process may appear at any time: fsspec must not remember listings.
        served, inside = fsspec.core.url_to_fs(located, use_listings_cache=False)
    except (ImportError, ValueError, OSError) as error:
        raise StorageError(f"nothing here can open {scheme}:// ({uri}): {error}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(served)), inside.rstrip("/")


@lru_cache(maxsize=32)
def _native_filesystem(scheme: str, authority: str) -> tuple[fs.FileSystem, str] | None:
    """What pyarrow itself opens; kept, because finding a bucket's region asks the network."""
    try:
        filesystem, path = fs.FileSystem.from_uri(f"{scheme}://{authority}/")
    except pa.ArrowInvalid:
        return None
    return filesystem, path.rstrip("/")


def _uri(root: str, filesystem: fs.FileSystem, inside: str, path: str) -> str:
    """The name by which a file found under `root`, there called `inside`, can be opened."""
    if isinstance(filesystem, fs.LocalFileSystem):
        return path
    if isinstance(filesystem, fs.PyFileSystem):
        return str(filesystem.handler.fs.unstrip_protocol(path))
    # As `root` is written: an authority such as container@account is no part of paths.
    return absolute(root).rstrip("/") + path[len(inside) :]


@contextmanager
def _explained(uri: str, verb: str) -> Iterator[None]:
    """Turns what the operating system or a cloud says into a StorageError naming `uri`."""
    try:
        yield
    except PermissionError as error:
        raise StorageError(
            f"no permission to {verb} {uri}; check its owner and mode, or the cloud credentials"
        ) from error
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError(f"cannot {verb} {uri}: a part of its path is a file") from error
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot {verb} {uri}: {error}") from error

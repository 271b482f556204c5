"""Image files in a folder or a zip archive."""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from mpsearch.data.preprocess import decode
from mpsearch.data.sources._base import Sample, Source
from mpsearch.data.sources.catalogue import Catalogue, Tree, catalogue, choose_part
from mpsearch.data.sources.classes import Classes
from mpsearch.errors import DataError

MAX_FILE_BYTES = 2**28
"""An archive's member that unpacks to more (268 MB) is taken for a decompression bomb."""


class FileSource(Source):
    """N image files, read when they are asked for and not before."""

    def __init__(self, tree: Tree, listed: Catalogue) -> None:
        self.name, self.files, self.classes = tree.name, listed.files, listed.classes
        self.labels = None if listed.labels is None else np.asarray(listed.labels, dtype=np.int64)
        self._read = tree.read

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def read(self, index: int) -> Sample:
        """Decode one file."""
        where = f"{self.name}/{self.files[index]}"
        return Sample(
            decode(self._read(self.files[index]), where),
            None if self.labels is None else int(self.labels[index]),
            where,
        )


def open_files(tree: Tree, split: str | None = None, classes: Classes | None = None) -> FileSource:
    """The labelled images of a listing, or of one of its parts; see `choose_part` and `catalogue`."""
    part, folders = choose_part(tree, split)
    return FileSource(part, catalogue(part, folders, classes))


def folder_tree(root: Path) -> Tree:
    """Every file and folder below `root`; links are followed, each target once."""
    names: list[str] = []
    seen: set[str] = set()
    for folder, below, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = [] if real in seen else sorted(below)
        seen.add(real)
        prefix = PurePosixPath(Path(folder).relative_to(root).as_posix())
        names += [(prefix / name).as_posix() for name in files] + [
            (prefix / name).as_posix() + "/" for name in below
        ]
    return Tree(str(root), tuple(sorted(names)), lambda name: _read_file(root / name))


def zip_tree(path: Path) -> Tree:
    """Every member of an archive; a single folder that holds all the others is left out of their names.

    Nothing is unpacked to disk. Reading is safe from several threads.

    Raises:
        DataError: Not a zip, encrypted, or a member whose name leaves the archive, occurs twice, or that
            unpacks to too much.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{path} is not a readable zip archive ({error}). Make it again, or unpack it and name the "
            "folder."
        ) from None
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        _check_member(path, info, members)
        members[info.filename] = info
    top = _single_folder(members)
    return Tree(
        str(path),
        tuple(sorted(n.removeprefix(top) for n in members if n != top)),
        lambda name: _read_member(path, archive, members[top + name]),
    )


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}). Check the file and its permissions."
        ) from None


def _check_member(path: Path, info: zipfile.ZipInfo, members: Mapping[str, zipfile.ZipInfo]) -> None:
    name = info.filename
    if name.startswith("/") or "\\" in name or ":" in name.split("/", 1)[0] or ".." in name.split("/"):
        raise DataError(
            f"{path} has the member {name!r}, whose name leads out of the archive. Do not trust this "
            "file; make the archive again."
        )
    if name in members:
        raise DataError(f"{path} has two members called {name!r}. Make the archive again with one of each.")
    if info.file_size > MAX_FILE_BYTES:
        raise DataError(
            f"{path} has the member {name!r} of {info.file_size} bytes unpacked; at most "
            f"{MAX_FILE_BYTES} are read. Remove it."
        )
    if info.flag_bits & 1:
        raise DataError(
            f"{path} has the encrypted member {name!r}. Unpack it with its password and name the folder."
        )


def _single_folder(members: Mapping[str, zipfile.ZipInfo]) -> str:
    tops = {n.split("/", 1)[0] for n in members if not n.startswith("__MACOSX")}
    only = next(iter(tops)) + "/" if len(tops) == 1 else ""
    # a lone folder of images is a class, a lone folder of folders (or one with labels.csv) is a wrapping
    deeper = any(
        n.startswith(only) and ("/" in n.removeprefix(only) or n == f"{only}labels.csv")
        for n in members
        if n != only
    )
    return only if only and deeper else ""


def _read_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(info) as stream:
            data = stream.read(MAX_FILE_BYTES + 1)  # what the header says of the size is not trusted
    except (
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        NotImplementedError,
        RuntimeError,
        ValueError,
    ) as error:
        raise DataError(
            f"{path}: the member {info.filename!r} cannot be unpacked ({error}). Make the archive again."
        ) from None
    if len(data) > MAX_FILE_BYTES:
        raise DataError(
            f"{path}: the member {info.filename!r} unpacks to more than {MAX_FILE_BYTES} bytes. Remove it."
        )
    return data

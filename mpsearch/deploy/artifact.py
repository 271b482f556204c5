"""An exported artifact: a folder of files of one target with a manifest, written whole or not at all, and
checked when it is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpsearch import files
from mpsearch.deploy.targets import TARGETS, Job, Target
from mpsearch.errors import CheckpointError, MpsearchError, UserError
from mpsearch.foreign import one_message
from mpsearch.models import Form, ModelSource, form_of
from mpsearch.problem import Assignment
from mpsearch.pytrees import sizes_of

MANIFEST, FORMAT, SCHEMA = "artifact.json", "mpsearch-artifact", 1
_PACKAGES = ("mpsearch", "torch", "onnx", "onnxruntime", "openvino", "torchao", "nvidia-modelopt", "nncf")
_LARGEST_MANIFEST = 64 * 2**20
_ELSEWHERE = "Export with --target packed, which takes every model, or for another runtime."


@dataclass(frozen=True)
class Artifact:
    """An artifact that was opened.

    Args:
        folder: Where it is.
        manifest: `artifact.json`.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def target(self) -> Target:
        """The target it was written for, with its options."""
        return TARGETS.create(str(self.manifest["target"]))

    @property
    def size_bytes(self) -> int:
        """Bytes of its files, the manifest not among them."""
        return sum(int(about["bytes"]) for about in self.manifest["files"].values())

    @property
    def form(self) -> Form | None:
        """How the model is called and what it gives; None for one tensor in, one tensor out."""
        return Form.from_json(self.manifest["form"]) if "form" in self.manifest else None

    @property
    def inputs(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape of one sample, such as C x H x W, and type, of each tensor that it reads."""
        if self.form is not None:
            return [(leaf.shape, leaf.dtype) for leaf in self.form.inputs]
        return [(tuple(int(n) for n in self.manifest["input_shape"]), "float32")]

    @property
    def source(self) -> ModelSource:
        """How the float model is built."""
        return ModelSource.from_json(self.manifest["source"])

    @property
    def label(self) -> str:
        """Label of the point it was exported from."""
        return str(self.manifest.get("label", self.folder.name))


def write_artifact(
    folder: Path,
    target_text: str,
    job: Job,
    about: Mapping[str, Any],
    further: Callable[[Path], object] | None = None,
) -> Artifact:
    """Write the files of a target and their manifest; what was in the folder is replaced only when all is
    written.

    Args:
        folder: Folder of the artifact.
        target_text: Registered target with its options, such as `onnx:four_bit=blockwise`.
        job: What to write.
        about: Further entries of the manifest, such as `label`, `predicted`, `metrics`.
        further: Writes files into the folder that are not the target's, and that the manifest does not name.

    Raises:
        UserError: The target cannot express the job.
        MpsearchError: Writing failed, or the target's package did; says why, and leaves the earlier artifact
            as it was.
    """
    target = TARGETS.create(target_text)
    try:
        with replacing_folder(folder) as beside:
            with one_message(f"The target {target_text} cannot write this model", _ELSEWHERE):
                notes = target.write(job, beside)
            manifest = {**_manifest(beside, target_text, job), "notes": notes, **about}
            if further is not None:
                further(beside)
            files.write_json(beside / MANIFEST, manifest)
    except OSError as error:
        earlier = (
            "The artifact that was there is as it was." if folder.exists() else "Nothing was left behind."
        )
        raise MpsearchError(
            f"{folder} could not be written ({error.strerror or error}). {earlier} Make room, or name "
            "another folder, and export again."
        ) from None
    return Artifact(folder, manifest)


def open_artifact(path: str | Path) -> Artifact:
    """An artifact by its folder or any file of it; the bytes of its files are compared with the manifest.

    Raises: CheckpointError: It is none, or a file was changed since.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    held = folder / MANIFEST
    try:
        if held.stat().st_size > _LARGEST_MANIFEST:
            raise CheckpointError(
                f"{held} has {held.stat().st_size} bytes; no manifest has more than {_LARGEST_MANIFEST}. "
                "Export again."
            )
        manifest = json.loads(held.read_text())
        if (
            not isinstance(manifest, dict)
            or manifest.get("format") != FORMAT
            or manifest.get("schema") != SCHEMA
        ):
            raise CheckpointError(
                f"{held} is not a manifest that this version of mpsearch reads (schema {SCHEMA}). Export "
                "again."
            )
        artifact = Artifact(folder, manifest)
        for name, about in manifest["files"].items():
            if (
                Path(name).name != name
                or not (folder / name).is_file()
                or _sha256(folder / name) != about["sha256"]
            ):
                raise CheckpointError(
                    f"{folder / name} is missing or is not what was exported. Export again."
                )
        _ = artifact.target, artifact.source, artifact.inputs, artifact.size_bytes
    except OSError as error:
        raise CheckpointError(
            f"{path} is no artifact: {held} cannot be read ({error.strerror}). Name a folder that "
            "`mpsearch export` wrote."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{held} is damaged ({type(error).__name__}: {error}). Export again.") from None
    except CheckpointError:
        raise
    except UserError as error:
        raise CheckpointError(f"{held} is damaged: {error} Export again.") from None
    return artifact


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`; takes its place if the body succeeds, is removed if not.

    A folder cannot be renamed over another: the earlier one steps aside for the moment between two renames. A
    process that is killed in that moment leaves it as `.<name>.earlier`, from where the next call brings it
    back.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    earlier = folder.parent / f".{folder.name}.earlier"
    if earlier.exists():
        if folder.exists():
            shutil.rmtree(earlier)
        else:
            earlier.rename(folder)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield beside
        for path in beside.iterdir():
            with path.open("rb+") as written:
                os.fsync(written.fileno())
        beside.chmod(0o755)
        if folder.exists():
            folder.rename(earlier)
        try:
            beside.rename(folder)
        except OSError:
            if earlier.exists():
                earlier.rename(folder)
            raise
        shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(data: Any) -> Any:
    return json.loads(json.dumps(data, default=list))


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _manifest(folder: Path, target_text: str, job: Job) -> dict[str, Any]:
    """What is true of the files in a folder: target, sums, versions, and what they were made from."""
    description, form = job.layout.description, form_of(job.module)
    shape = sizes_of(job.example)[0][0][1:]
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "target": target_text,
        "runs_with": TARGETS.create(target_text).runs_with,
        "files": {
            p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(folder.iterdir())
        },
        "assignment": Assignment(
            tuple((unit, state.candidate) for unit, state in job.states.items())
        ).to_json(),
        "source": dict(description["source"]),
        "data_config": _plain(description["data_config"]),
        **({"input_shape": list(shape)} if form is None else {"form": form.to_json()}),
        "versions": _versions(),
    }

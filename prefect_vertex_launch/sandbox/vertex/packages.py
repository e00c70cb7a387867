"""Python packages of a pool: from a local directory that stands for a bucket onto a replica's path."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

_IMPORTED_AS_THEY_ARE: Final = (".whl", ".zip", ".egg")


class PackageError(Exception):
    """A package that cannot be installed, in the words that end up in the job's error."""


def find_packages(uris: Iterable[str], buckets: Mapping[str, Path]) -> list[Path]:
    """Return the local files of `gs://bucket/path` URIs.

    Raises:
        PackageError: if one of them is not there.
    """
    found: list[Path] = []
    for uri in uris:
        bucket, _, name = uri.removeprefix("gs://").partition("/")
        path = buckets[bucket] / name if bucket in buckets else None
        if path is None or not path.is_file():
            raise PackageError(
                "The replica workerpool0-0 exited with a non-zero status of 1. Termination reason: Error."
                f" CommandException: No URLs matched: {uri}"
            )
        found.append(path)
    return found


def python_path(packages: Iterable[Path], directory: Path) -> list[str]:
    """Return what PYTHONPATH needs to import the packages; source archives are unpacked in `directory`.

    Raises:
        PackageError: if a file is no package.
    """
    return [entry for package in packages for entry in _entries(package, directory)]


def _entries(package: Path, directory: Path) -> list[str]:
    if package.suffix in _IMPORTED_AS_THEY_ARE:
        return [str(package)]
    target = directory / package.name
    target.mkdir(parents=True)
    try:
        with tarfile.open(package) as archive:
            archive.extractall(target, filter="data")
    except tarfile.TarError as error:
        raise PackageError(
            "The replica workerpool0-0 exited with a non-zero status of 1. Termination reason: Error."
            f" {package.name} is not a Python package: {error}"
        ) from error
    # An archive of sources has one directory, name-version, and the modules in it or in its src.
    return [str(path) for top in target.iterdir() for path in (top, top / "src") if path.is_dir()]

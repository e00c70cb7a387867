"""Bytes that clients upload: a run's files, an artifact's files and manifest."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from urllib.parse import quote

from prefect_vertex_launch.sandbox.records import Records

_KIND = "stored-file"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One uploaded file; `name` is its path below the folder it was listed from."""

    path: str
    name: str
    size_bytes: int
    md5: str


def run_files_folder(entity: str, project: str, run: str) -> str:
    """Return where a run's files are in the storage."""
    return f"run/{entity}/{project}/{run}/"


class Storage:
    """Files by path, served under `/storage/<path>` of `base_url` at signed addresses."""

    def __init__(self, records: Records) -> None:
        self.base_url = ""
        self._records = records
        self._secret = records.secret("storage", secrets.token_hex).encode()

    def url(self, path: str) -> str:
        """Return where a path is uploaded to and downloaded from, by whoever holds this address."""
        return f"{self.base_url}/storage/{quote(path)}?signature={self._signature(path)}"

    def is_signature(self, path: str, signature: str) -> bool:
        """Return whether an address of this path with this signature was given out."""
        return hmac.compare_digest(signature.encode("utf-8", "replace"), self._signature(path).encode())

    def _signature(self, path: str) -> str:
        return hmac.new(self._secret, path.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def write(self, path: str, content: bytes) -> None:
        """Keep a file, replacing what was there."""
        text = base64.b64encode(content).decode()
        md5 = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        self._records.put(f"{_KIND}-content", path, {"base64": text})
        self._records.put(_KIND, path, {"size": len(content), "md5": md5})

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None."""
        record = self._records.get(f"{_KIND}-content", path)
        return None if record is None else base64.b64decode(record["base64"])

    def listing(self, folder: str) -> list[StoredFile]:
        """Return the files below a folder (`a/b/`), oldest first."""
        return [
            StoredFile(path=path, name=path.removeprefix(folder), size_bytes=row["size"], md5=row["md5"])
            for path, row in self._records.all(_KIND)
            if path.startswith(folder)
        ]

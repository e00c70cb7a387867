"""Where the sandbox keeps what it knows: JSON records in SQLite, in a file or in memory."""

from __future__ import annotations

import contextlib
import json
import shlex
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect_vertex_launch.sandbox.private_files import PRIVATE_FILE, make_private, require_own_directory
from prefect_vertex_launch.sandbox.start_refusal import StartRefusal


class Records:
    """JSON objects by kind and key, each write durable before it returns.

    With `path` the records outlive the process, as `outlive_the_process` says, and the file is this
    object's alone until `close`; without it they live in memory. Insertion order is kept: `all` answers
    oldest first, and an overwritten record keeps its place. Not thread-safe: one event loop uses it.
    Keys are among the records, so the file is its owner's to read.

    Raises StartRefusal if the file cannot be had.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.outlive_the_process = path is not None
        if path is None:
            self._connection = _open(":memory:")
            return
        path = Path(path)
        require_own_directory(path)
        make_private(path)
        try:
            self._connection = _open(str(path))
        except sqlite3.Error as error:
            raise _refusal(path, error) from error
        # An older one may be open to all. SQLite's other files are as open as this one when they are made.
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).chmod(PRIVATE_FILE)

    def put(self, kind: str, key: str, value: dict[str, Any]) -> None:
        """Write one record, replacing the one of the same kind and key."""
        self._connection.execute(
            "INSERT INTO record (kind, key, value) VALUES (?, ?, ?)"
            " ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value",
            (kind, key, json.dumps(value)),
        )

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return one record, or None."""
        row = self._connection.execute(
            "SELECT value FROM record WHERE kind = ? AND key = ?", (kind, key)
        ).fetchone()
        return None if row is None else json.loads(row[0])

    def all(self, kind: str) -> list[tuple[str, dict[str, Any]]]:
        """Return every record of a kind with its key, oldest first."""
        rows = self._connection.execute(
            "SELECT key, value FROM record WHERE kind = ? ORDER BY place", (kind,)
        ).fetchall()
        return [(key, json.loads(value)) for key, value in rows]

    def delete(self, kind: str, key: str) -> None:
        """Remove one record; nothing happens if it is not there."""
        self._connection.execute("DELETE FROM record WHERE kind = ? AND key = ?", (kind, key))

    def next_number(self, name: str) -> int:
        """Return 1, 2, 3, … for each call with the same name, across restarts."""
        current = self.get("counter", name) or {"value": 0}
        current["value"] += 1
        self.put("counter", name, current)
        return current["value"]

    def secret(self, name: str, make: Callable[[], str]) -> str:
        """Return a text that stays the same across restarts, made when it is first asked for."""
        kept = self.get("secret", name)
        if kept is None:
            kept = {"text": make()}
            self.put("secret", name, kept)
        return kept["text"]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _open(name: str) -> sqlite3.Connection:
    # Nobody waits for a lock: it is held for as long as another sandbox is up.
    connection = sqlite3.connect(name, timeout=0, isolation_level=None)
    try:
        # Two sandboxes on one file would both drive its jobs. The lock goes with the process, however
        # that ends.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS record ("
            "place INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, key TEXT NOT NULL,"
            " value TEXT NOT NULL, UNIQUE (kind, key))"
        )
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _refusal(path: Path, error: sqlite3.Error) -> StartRefusal:
    if not path.parent.is_dir():
        return StartRefusal(
            f"the state file {path} cannot be made: there is no directory {path.parent}",
            f"make it with `mkdir -p {shlex.quote(str(path.parent))}`, or name a file elsewhere",
        )
    # The low byte is the kind of error, the rest its details.
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if kind == sqlite3.SQLITE_BUSY:
        return StartRefusal(
            f"the state file {path} is in use by another sandbox",
            "end that one first, or give each a file of its own",
        )
    if kind == sqlite3.SQLITE_NOTADB:
        return StartRefusal(
            f"{path} is not a state file of the sandbox: {error}",
            "name a file that is not there yet, it will be made",
        )
    return StartRefusal(
        f"the state file {path} cannot be used: {error}",
        "check that it is a file which you may read and write, and that its disk has room",
    )

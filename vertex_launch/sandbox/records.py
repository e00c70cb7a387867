"""Where the sandbox keeps what it knows: JSON records in SQLite, in a file or in memory."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any


class Records:
    """JSON objects by kind and key, each write durable before it returns.

    With `path` the records outlive the process, as `outlive_the_process` says; without it they live
    in memory. Insertion order is
    kept: `all` answers oldest first, and an overwritten record
    keeps its place. Not thread-safe: one event loop uses it.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.outlive_the_process = path is not None
        self._connection = sqlite3.connect(":memory:" if path is None else str(path), isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=OFF")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS record ("
            "place INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, key TEXT NOT NULL,"
            " value TEXT NOT NULL, UNIQUE (kind, key))"
        )

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

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

"""Rows of one kind, in memory for reading and in the records for the next start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from prefect_vertex_launch.sandbox.records import Records


class Row(Protocol):
    """A mutable dataclass of JSON values."""

    @property
    def key(self) -> str:
        """What the row is found by."""
        ...


AnyRow = TypeVar("AnyRow", bound=Row)


class Table(Generic[AnyRow]):
    """The rows of one kind, oldest first; a row is changed in place and then saved.

    Reading never touches the disk: thousands of polls a minute scan queues of thousands of items.
    """

    def __init__(self, records: Records, kind: str, row_type: Callable[..., AnyRow]) -> None:
        self._records = records
        self._kind = kind
        self._rows = {key: row_type(**value) for key, value in records.all(kind)}

    def __iter__(self) -> Iterator[AnyRow]:
        """Every row, oldest first, as of now."""
        return iter(tuple(self._rows.values()))

    def get(self, key: str | None) -> AnyRow | None:
        """Return the row with this key, or None."""
        return None if key is None else self._rows.get(key)

    def save(self, row: AnyRow) -> None:
        """Write a new or changed row through to the records."""
        self._rows[row.key] = row
        self._records.put(self._kind, row.key, dict(vars(row)))

    def delete(self, row: AnyRow) -> None:
        """Forget a row."""
        self._rows.pop(row.key, None)
        self._records.delete(self._kind, row.key)

"""Aligned columns of text, also with characters that are two cells wide or none."""

from __future__ import annotations

from collections.abc import Sequence

from prefect_vertex_launch.core.foreign_text import one_line


def aligned(rows: Sequence[Sequence[str]], between: str = "  ") -> list[str]:
    """Return a line for each row; nothing is folded or coloured, and no cell can forge a line or a row."""
    from rich.cells import cell_len

    shown = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*shown, strict=True)]
    return [
        between.join(
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in shown
    ]

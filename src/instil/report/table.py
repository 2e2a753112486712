"""A table as values, before a page or a file writes it down."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One value: as it is read, as it is compared, and what stands small beside it."""

    text: str
    key: float | str | None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a table: its name, the method it belongs to, its cells."""

    name: str
    method: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table: what it shows, the head of its first column, the other heads, its lines."""

    caption: str
    first: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

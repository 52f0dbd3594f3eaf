"""Renders figures of results as Markdown: formats cells, and selects rows and columns of a table."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
MISSING = "–"
# `{peak!M:,.0f}` shows millions: bytes as MB; `u` and `m` are for seconds as µs and ms, `t` as minutes.
# `{target!F:.0f}` shows a number of parameters as MB of float32, `H` as MB of 16 bits.
_SCALES = {"F": 4e-6, "H": 2e-6, "M": 1e-6, "G": 1e-9, "m": 1e3, "u": 1e6, "t": 1 / 60}


class _Cells(string.Formatter):
    """Format strings with scales, and `!p` for a perplexity."""

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        """Return a number scaled or formatted by its conversion letter."""
        if conversion in _SCALES:
            return value * _SCALES[conversion]
        if conversion == "p":
            return f"{value:.2f}" if value < 1000 else f"{value:.1e}"
        return super().convert_field(value, conversion)


def cell(template: str, row: Row) -> str:
    """Return a row's figures in the format of a template; `MISSING` if the row lacks one."""
    try:
        return _Cells().vformat(template, (), row).replace("|", "\\|")
    except KeyError:
        return MISSING


@dataclass(frozen=True)
class Table:
    """A Markdown table of figures from one result.

    Attributes:
        result: Name of the result's file, without `.json`.
        part: Name of the table in the result.
        columns: Templates of cells, by heading.
        across: Template of additional headings. Rows with the same `columns` become one row, with a cell per heading.
        value: Template of these cells.
        only: Fields, and the values that rows must have to be shown.
        needs: A field that rows must have to be shown.
        by: A field to sort the rows by, smallest first; without it they keep the result's order.
    """

    result: str
    part: str
    columns: Mapping[str, str]
    across: str = ""
    value: str = ""
    only: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    needs: str = ""
    by: str = ""

    def markdown(self, tables: Mapping[str, Sequence[Row]]) -> str:
        """Return the table as Markdown.

        Args:
            tables: The tables of the result, by name.
        """
        rows = [row for row in tables[self.part] if self._shown(row)]
        if self.by:
            rows.sort(key=lambda row: row[self.by])
        if not rows:
            return "Not measured."
        lines: dict[tuple[str, ...], dict[str, str]] = {}
        further: dict[str, None] = {}
        for number, row in enumerate(rows):
            first = tuple(cell(template, row) for template in self.columns.values())
            if self.across:
                heading = cell(self.across, row)
                further[heading] = None
                lines.setdefault(first, {})[heading] = cell(self.value, row)
            else:
                lines[(*first, str(number))] = {}
        head = [*self.columns, *further]
        body = [
            [*first[: len(self.columns)], *(found.get(heading, MISSING) for heading in further)]
            for first, found in lines.items()
        ]
        return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body))

    def _shown(self, row: Row) -> bool:
        return all(row.get(name) in values for name, values in self.only.items()) and (
            not self.needs or self.needs in row
        )


def span_cell(name: str, digits: str = ".2f", scale: str = "") -> str:
    """Return the template of a median with minimum and maximum."""
    middle, least, most = (f"{{{name}[{part}]{scale}:{digits}}}" for part in ("median", "least", "most"))
    return f"{middle} ({least} to {most})"


def quartile_cell(name: str) -> str:
    """Return the template of a median with its quartiles."""
    return f"{{{name}[median]:.2f}} ({{{name}[low]:.2f}} to {{{name}[high]:.2f}})"


KL_CELL = "{kl:.4f} ± {kl_error:.4f}"

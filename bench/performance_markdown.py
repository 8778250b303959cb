"""Results of record as Markdown: sections, tables, and numbers as the pages write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Results = dict[str, Any]
Cell = str | float | None


def section(title: str, found: Results, table: str, conclusion: str, what: str = "") -> str:
    """A section: where it was measured, its table and what to conclude."""
    lines = [f"{what} {where(found)}".strip()]
    missing = found.get("not_measured", [])
    if missing:
        lines.append(f"Not measured here: {'; '.join(m.split(':')[0] for m in missing)}.")
    elif found.get("complete") is False:
        lines.append("The run ended early: rows are missing.")
    return f"## {title}\n\n{' '.join(lines)}\n\n{table}" + (f"\n{conclusion}\n" * bool(conclusion))


def where(found: Results) -> str:
    """Commit, date and machine."""
    environment = found["environment"]
    parts = [f"Commit `{environment['commit'][:7]}`", environment["date"][:10]]
    if "gpu" in found:
        versions = found["versions"]
        parts += [
            f"driver {found['gpu']['driver']}",
            f"CUDA {versions['cuda']}",
            f"torch {versions['torch']}",
            f"fa3-fwd {versions['fa3-fwd']}",
        ]
    else:
        cores, isa = environment["cores"], environment["cpu_isa"]
        parts += [f"{environment['cpu']}, {cores} cores, {isa}", f"torch {environment['torch']}"]
    return ", ".join(parts) + "."


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Rows under their heads; None: an empty cell."""
    lines = [f"| {' | '.join(heads)} |\n", f"|{'---|' * len(heads)}\n"]
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    return "".join([*lines, *(f"| {' | '.join(row)} |\n" for row in cells)])


def ms(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def times(value: float | None) -> str:
    """A ratio."""
    return "" if value is None else f"{value:.1f}x" if value >= 9.95 else f"{value:.2f}x"


def whole(value: float | None) -> str:
    """No decimals."""
    return "" if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """No decimals."""
    return "" if value is None else f"{value:.0%}"


def plain(value: float | None, form: str) -> str:
    """By a format."""
    return "" if value is None else f"{value:{form}}"

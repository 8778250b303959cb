"""Compares a short benchmark with the record: the ratios to FlashAttention-3 must not fall."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ALLOWED_LOSS = 0.04
OURS, PEER = "random", "fa3"
_KEY = ("heads", "tokens", "head_dim", "dtype", "query_group", "count")


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], float]:
    """Sustained speed-up over FlashAttention-3 of each row that has one, by shape."""
    found: dict[tuple[Any, ...], float] = {}
    for row in rows:
        sustained = row["variants"].get(OURS, {}).get("sustained", {})
        if "over_fa3" in sustained:
            found[tuple(row[name] for name in _KEY)] = sustained["over_fa3"]
    return found


def record_for(gpu: str, folder: Path) -> Path:
    """The JSON of record that was measured on such a GPU; the H200's where there is none."""
    first = folder / "attention_gpu.json"
    for path in (first, *sorted(folder.glob("*/attention_gpu.json"))):
        if json.loads(path.read_text())["gpu"]["name"] == gpu:
            return path
    return first


def compare(
    measured: Mapping[str, Any], record: Mapping[str, Any], allowed_loss: float = ALLOWED_LOSS
) -> tuple[list[str], list[str]]:
    """Lines of a table, and what is wrong: a ratio too low, or a row that cannot be compared."""
    now, before = ratios(measured["rows"]), ratios(record["rows"])
    lines: list[str] = []
    failures = [f"not measured: {what}" for what in measured["not_measured"]]
    if not measured["rows"] and not failures:
        failures.append("nothing was measured")
    for row in measured["rows"]:
        key = tuple(row[name] for name in _KEY)
        what = f"{row['heads']} x {row['tokens']:,}, {row['count']:,} columns"
        if key not in now:
            reasons = [f"{n}: {row['left_out'][n]}" for n in (OURS, PEER) if n in row["left_out"]]
            failures.append(f"{what}: cannot compare: {'; '.join(reasons) or 'no sustained time'}")
        elif key not in before:
            failures.append(f"{what}: cannot compare: the record has no such row")
        else:
            change = now[key] / before[key] - 1
            lines.append(f"{what}: {now[key]:.2f}x, record {before[key]:.2f}x, {change:+.1%}")
            if change < -allowed_loss:
                failures.append(f"{lines[-1]}: more than {allowed_loss:.0%} below the record")
    return lines, failures

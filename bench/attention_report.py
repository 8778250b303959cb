"""Rows of the GPU attention benchmark: derived figures, table, plot.

A row is plain data, as it stands in the JSON file: the case, and for each variant its `gflop` and
the times of the modes it was measured in. The figure of record is the sustained one; cold launches
stand in where only they were measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shapes import EQUAL, FA3, HOT_AND_LOCAL, LENGTHS, RANDOM

Row = dict[str, Any]
MODES = ("sustained", "launches")  # the first that was measured counts
WITH_REST = f"{RANDOM} + rest"

HEADER = (
    f"{'heads x tokens':<24} {'columns':>7} {'sparse':>6}  {'variant':<17} {'cold ms':>9} "
    f"{'sust. ms':>9} {'MHz':>5} {'W':>4} {'TFLOP/s':>7} {'over FA3':>8} {'ceiling':>8} "
    f"{'of it':>6}"
)


def derive(row: Row) -> None:
    """Adds what follows from the times: TFLOP/s, speed-up over FA3, share of the ceiling, target.

    The ceiling is the speed-up at the dense kernel's own efficiency: dense work over useful work.
    Lists of many lengths stand beside equal ones: useful TFLOP/s over theirs, time over theirs.
    """
    for mode in MODES:
        times = {n: v[mode]["median_ms"] for n, v in row["variants"].items() if mode in v}
        for name, ms in times.items():
            variant = row["variants"][name]
            variant[mode]["tflops"] = round(variant["gflop"] / ms, 1)
            if FA3 in times:
                speedup = times[FA3] / ms
                share = speedup * variant["gflop"] / row["dense_gflop"]
                variant[mode]["over_fa3"] = round(speedup, 3)
                variant[mode]["share_of_ceiling"] = round(share, 4)
        if WITH_REST in times:
            costs = times[WITH_REST] / times[RANDOM] - 1
            row["variants"][WITH_REST][mode]["rest_costs"] = round(costs, 4)
        if EQUAL in times:
            equal = row["variants"][EQUAL]
            for name, ms in times.items():
                time_over = ms / times[EQUAL]
                work_over = row["variants"][name]["gflop"] / equal["gflop"]
                row["variants"][name][mode]["over_equal"] = round(work_over / time_over, 4)
                row["variants"][name][mode]["time_over_equal"] = round(time_over, 4)
    wanted = row.get("target_over_equal")
    many = row["variants"].get(LENGTHS, {}).get("sustained", {})
    if wanted is not None and "over_equal" in many:
        row["target_met"] = many["over_equal"] >= wanted
    sustained = row["variants"].get(RANDOM, {}).get("sustained", {})
    if row["target"] is not None and "over_fa3" in sustained:
        row["target_met"] = sustained["over_fa3"] >= row["target"]


def of_record(variant: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figures of the mode that counts."""
    return next((variant[mode] for mode in MODES if mode in variant), {})


def lines(row: Row) -> Iterator[str]:
    """The row as lines of the table, one a variant, then what is missing and why."""
    what = f"{row['heads']} x {row['tokens']:,}"
    if (row["head_dim"], row["query_group"], row["dtype"]) != (128, 192, "bfloat16"):
        dtype = row["dtype"].replace("bfloat", "bf").replace("float", "fp")
        what += f" D{row['head_dim']} G{row['query_group']} {dtype}"
    if row.get("lengths"):
        what += f" {row['lengths']}"
    lead = f"{what:<24} {row['count']:>7,} {row['sparsity']:>6.1%}"
    for name, variant in row["variants"].items():
        figures = of_record(variant)
        clocks = [variant.get("sustained", {}).get(key) for key in ("sm_mhz", "power_w")]
        cells = [
            *time_cells(variant),
            *(_cell(c and c["median"], w, ".0f") for c, w in zip(clocks, (5, 4), strict=True)),
            _cell(figures.get("tflops"), 7, ".0f"),
            _cell(figures.get("over_fa3"), 8, ".2f", "x"),
            _cell(row["dense_gflop"] / variant["gflop"], 8, ".2f", "x"),
            _cell(figures.get("share_of_ceiling"), 6, ".0%"),
        ]
        yield f"{lead}  {name:<17} {' '.join(cells)}{_remark(row, name, figures)}"
        lead = " " * len(lead)
    for name, reason in row["left_out"].items():
        yield f"{lead}  {name:<17} left out: {reason}"
        lead = " " * len(lead)


def _remark(row: Row, name: str, figures: Mapping[str, Any]) -> str:
    if "rest_costs" in figures:
        return f"  the rest costs {figures['rest_costs']:+.1%}"
    met = {True: "met", False: "missed", None: "not judged"}[row.get("target_met")]
    if name == RANDOM and row["target"] is not None:
        return f"  target {row['target']}x {met}"
    if name != EQUAL and "over_equal" in figures:
        remark = f"  {figures['over_equal']:.3f} of equal lists' TFLOP/s"
        remark += f", {figures['time_over_equal']:.3f} of their time"
        wanted = row.get("target_over_equal")
        judged = name == LENGTHS and wanted is not None
        return f"{remark}, target {wanted:.2f} {met}" if judged else remark
    note = row["variants"][name]["note"]
    return f"  {note}" if note else ""


def time_cells(variant: Mapping[str, Any]) -> list[str]:
    """Milliseconds of cold launches and sustained, for a table."""
    return [_cell(variant.get(mode, {}).get("median_ms"), 9, ".4g") for mode in reversed(MODES)]


def _cell(value: float | None, width: int, form: str, unit: str = "") -> str:
    text = "-" if value is None else f"{value:{form}}{unit}"
    return f"{text:>{width}}"


def plot(rows: Sequence[Row], path: Path) -> Path | None:
    """Speed-up over FA3 against sparsity, with the ceiling; None where no row has a speed-up.

    Raises ImportError without matplotlib.
    """
    from matplotlib.figure import Figure

    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        for pattern in (RANDOM, HOT_AND_LOCAL):
            speedup = of_record(row["variants"].get(pattern, {})).get("over_fa3")
            if speedup is not None:
                label = f"{row['shape']}: {row['heads']} x {row['tokens']:,}"
                points.setdefault((label, pattern), []).append((row["sparsity"], speedup))
    if not points:
        return None
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    sparsities = [s for series in points.values() for s, _ in series]
    low, high = min(sparsities) - 0.02, min(max(sparsities) + 0.005, 0.995)
    steps = [low + (high - low) * i / 200 for i in range(201)]
    axes.plot(
        steps, [1 / (1 - s) for s in steps], color="black", label="ceiling 1 / (1 - sparsity)"
    )
    colors: dict[str, str] = {}
    for (label, pattern), series in sorted(points.items(), reverse=True):
        color = colors.setdefault(label, f"C{len(colors)}")
        x, y = zip(*sorted(series), strict=True)
        if pattern == RANDOM:
            axes.plot(x, y, "o", color=color, label=label)  # a chord would cross the ceiling
        else:
            axes.plot(x, y, "x", color=color)
    axes.plot([], [], "x", color="gray", label="the same, hot and local columns")
    axes.set_xlabel("sparsity: share of columns left out")
    axes.set_ylabel("speed-up over FlashAttention-3")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part.png")
    figure.savefig(unfinished, dpi=150)
    unfinished.replace(path)
    return path

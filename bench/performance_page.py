"""Writes docs/performance.md, and the table in README.md, from the results of record.

    python bench/performance_page.py

Needs no GPU and nothing but the standard library. A number that is not in bench/results is not on
the page. Every table is of one commit on one machine, named above it; a file that is not there
leaves its table out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from performance_cpu import CALLS, cpu_attention, cpu_mlp, cpu_overhead, demo_runs
from performance_markdown import Results, ms, percent, plain, section, table, times, whole

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"
README_MARKS = ("<!-- from bench/performance_page.py -->\n", "<!-- to here -->\n")

Row = Mapping[str, Any]

OURS, FA3, WITH_REST = "random", "fa3", "random + rest"
EQUAL, LENGTHS, UNORDERED = "equal", "lengths", "lengths, no order"
PEERS = {"cudnn": "cuDNN", "flex": "FlexAttention"}
MODELS = {
    "flux-1024": "FLUX, 1024 x 1024",
    "16k": "16,384 tokens",
    "wan-480p": "WAN 14B, 480p",
    "wan-720p": "WAN 14B, 720p",
    "hunyuan-720p": "HunyuanVideo, 720p",
}
HEAD = """# Performance

Written by `python bench/performance_page.py` from `bench/results/*.json`: do not edit. Each table is of one commit on one machine, named above it; a table of an older commit is of the kernel of that commit.

| word | meaning |
|---|---|
| ms | median time of a call; on a GPU sustained: 1 s of warming up, then 0.5 s measured, in turn with the other kernels, launches captured in a CUDA graph |
| TFLOP/s, GFLOP/s | useful work over time: for sparse ops, work on the listed columns alone |
| over FA3 | FlashAttention-3's time, dense, over ours, in the same run |
| most possible | dense work over sparse work: the speed-up at FlashAttention-3's own efficiency |
| hot and local | columns as models have them: some that all groups share, and neighbours; all other columns are random |

Before anything is timed, rows of every kernel's result are compared with float64.
"""  # noqa: E501


def page(results: Path = RESULTS) -> str:
    """The whole of docs/performance.md."""
    gpu = [_gpu_sections(folder) for folder in (results, *_other_cards(results))]
    sections = [s for card in gpu for s in card]
    for name, write in (
        ("attention_cpu", cpu_attention),
        ("mlp_cpu", cpu_mlp),
        ("overhead", cpu_overhead),
        ("demo_cpu", demo_runs),
    ):
        found = _load(results / f"{name}.json")
        if found is not None:
            sections.append(write(found))
    return "\n".join([HEAD, *sections])


def readme_table(results: Path = RESULTS) -> str:
    """The five shapes of record, for README.md."""
    found = _load(results / "attention_gpu.json")
    if found is None:
        return ""
    rows = [
        (
            MODELS.get(row["shape"], row["shape"]),
            *_place(row),
            f"{row['sparsity']:.1%}",
            ms(_of(row, FA3, "median_ms")),
            ms(_of(row, OURS, "median_ms")),
            times(_of(row, OURS, "over_fa3")),
            times(_most_possible(row)),
        )
        for row in _of_record(found)
    ]
    heads = (
        *("shape of", "heads x tokens", "columns kept", "sparsity"),
        *("FlashAttention-3, ms", "ours, ms", "speed-up", "most possible"),
    )
    return f"One {_card(found)}, head dim 128, bfloat16, lists given:\n\n{table(heads, rows)}"


def with_table(readme: str, table: str) -> str:
    """README's text with the table between its two marks. Raises ValueError without them."""
    before, begin, rest = readme.partition(README_MARKS[0])
    _, end, after = rest.partition(README_MARKS[1])
    if not begin or not end:
        raise ValueError(f"README.md: expected {README_MARKS[0]!r} and {README_MARKS[1]!r}")
    return f"{before}{begin}{table}{end}{after}"


def _load(path: Path) -> Results | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _other_cards(results: Path) -> Sequence[Path]:
    return sorted(path for path in results.iterdir() if path.is_dir())


# A GPU's tables


def _gpu_sections(folder: Path) -> list[str]:
    known: Mapping[str, Callable[[Results], str]] = {
        "anchors": _anchors,
        "rest": _rest,
        "general": _general,
        "lengths": _lengths,
        "dense": _dense,
        "select": _select,
        "overhead": _gpu_overhead,
    }
    found = [_load(path) for path in sorted(folder.glob("attention_gpu*.json"))]
    suites = {result["suite"]: result for result in found if result is not None}
    order = [*known, *(suite for suite in suites if suite not in known)]
    return [known.get(s, _any_suite)(suites[s]) for s in order if s in suites]


def _anchors(found: Results) -> str:
    peers = [p for p in PEERS if any(p in row["variants"] for row in found["rows"])]
    rows = [
        (
            *_place(row),
            f"{row['sparsity']:.1%}",
            ms(_of(row, OURS, "median_ms")),
            whole(_of(row, OURS, "tflops")),
            ms(_of(row, FA3, "median_ms")),
            *(ms(_of(row, peer, "median_ms")) for peer in peers),
            times(_of(row, OURS, "over_fa3")),
            times(row["target"]),
            times(_most_possible(row)),
            percent(_of(row, OURS, "share_of_ceiling")),
            times(_of(row, "hot+local", "over_fa3")),
        )
        for row in found["rows"]
    ]
    heads = (
        *("heads x tokens", "columns", "sparse", "ms", "TFLOP/s", "FlashAttention-3, ms"),
        *(f"{PEERS[peer]}, ms" for peer in peers),
        *("over FA3", "target", "most possible", "of it", "hot and local: over FA3"),
    )
    record = _of_record(found)
    shares = [_of(row, OURS, "share_of_ceiling") or 0 for row in record]
    met = sum(bool(row.get("target_met")) for row in record)
    conclusion = (
        f"At the {len(record)} shapes with a target the kernel reaches {percent(min(shares))} to "
        f"{percent(max(shares))} of the most possible speed-up; {met} of {len(record)} targets "
        f"are met."
    )
    clocks = [row["variants"][OURS]["sustained"] for row in record]
    mhz = [_clock(c["sm_mhz"]) for c in clocks if "sm_mhz" in c]
    watts = [_clock(c["power_w"]) for c in clocks if "power_w" in c]
    if mhz and watts:
        conclusion += (
            f" There the card draws {min(watts):.0f} to {max(watts):.0f} W and runs at "
            f"{min(mhz):,.0f} to {max(mhz):,.0f} MHz."
        )
    what = "Head dim 128, bfloat16, groups of 192."
    if "flex" in peers:
        what += (
            " FlexAttention attends to random blocks of 128 x 128, about as many keys as the "
            "lists hold."
        )
    title = f"Column-sparse attention on one {_card(found)}"
    return section(title, found, table(heads, rows), conclusion, what)


def _rest(found: Results) -> str:
    rows = [
        (
            *_place(row),
            ms(_of(row, OURS, "median_ms")),
            ms(_of(row, WITH_REST, "median_ms")),
            f"{_of(row, WITH_REST, 'rest_costs'):+.1%}",
        )
        for row in found["rows"]
    ]
    costs = [_of(row, WITH_REST, "rest_costs") or 0 for row in found["rows"]]
    heads = ("heads x tokens", "columns", "ms", "with a rest, ms", "cost")
    return section(
        f"A rest merged, on one {_card(found)}",
        found,
        table(heads, rows),
        f"A rest costs {min(costs):.1%} to {max(costs):.1%}, most where the lists are short.",
    )


def _general(found: Results) -> str:
    rows = [
        (
            row["head_dim"],
            row["query_group"],
            row["dtype"],
            *_place(row),
            ms(_of(row, OURS, "median_ms")),
            whole(_of(row, OURS, "tflops")),
            whole(_of(row, FA3, "tflops")),
            percent(_of(row, OURS, "share_of_ceiling")),
        )
        for row in found["rows"]
    ]
    shares = [_of(row, OURS, "share_of_ceiling") or 0 for row in found["rows"]]
    heads = (
        *("head dim", "group", "dtype", "heads x tokens", "columns", "ms", "TFLOP/s"),
        *("FlashAttention-3, dense, TFLOP/s", "share"),
    )
    return section(
        f"Head dims, groups and dtypes on one {_card(found)}",
        found,
        table(heads, rows),
        f"The kernel works at {percent(min(shares))} to {percent(max(shares))} of the rate that "
        f"FlashAttention-3 reaches densely at the same head dim.",
    )


def _lengths(found: Results) -> str:
    rows = [
        (
            *_place(row),
            row["lengths"],
            ms(_of(row, EQUAL, "median_ms")),
            *(
                cell
                for name in (LENGTHS, UNORDERED)
                for cell in (
                    ms(_of(row, name, "median_ms")),
                    plain(_of(row, name, "over_equal"), ".2f"),
                )
            ),
            plain(row["target_over_equal"], ".2f"),
        )
        for row in found["rows"]
    ]
    heads = (
        *("heads x tokens", "columns, mean", "lengths", "equal lists, ms"),
        *("with an order, ms", "speed over equal", "without, ms", "speed over equal", "target"),
    )
    speeds = [_of(row, LENGTHS, "over_equal") or 0 for row in found["rows"]]
    return section(
        f"Lists of many lengths on one {_card(found)}",
        found,
        table(heads, rows),
        f"With an order, lists of many lengths run at {percent(min(speeds))} to "
        f"{percent(max(speeds))} of the speed of equal lists.",
        "Head dim 128, bfloat16, groups of 192; speed is useful TFLOP/s.",
    )


def _sustained(found: Results) -> Iterator[tuple[Row, str, Mapping[str, Any]]]:
    """Every row's variants that have sustained figures, with these."""
    for row in found["rows"]:
        for name, variant in row["variants"].items():
            if figures := variant.get("sustained"):
                yield row, name, figures


def _dense(found: Results) -> str:
    rows = [
        (
            f"{row['heads']} x {row['tokens']:,}",
            row["head_dim"],
            name,
            ms(figures["median_ms"]),
            whole(figures["tflops"]),
            plain(figures.get("time_over_fa3"), ".3f"),
            plain(figures.get("time_over_dense"), ".3f"),
        )
        for row, name, figures in _sustained(found)
    ]
    heads = ("heads x tokens", "head dim", "variant", "ms", "TFLOP/s", "/ fa3", "/ dense")
    return section(
        f"Dense attention and column sums on one {_card(found)}",
        found,
        table(heads, rows),
        "Bfloat16; the last columns are times over FlashAttention-3's and over plain dense ones.",
    )


def _select(found: Results) -> str:
    rows = [
        (
            f"{row['lists']:,} x {row['columns']:,} ({row['count']:,})",
            row["dtype"],
            name,
            ms(figures["median_ms"]),
            whole(figures["gb_s"]),
            plain(figures.get("order_us"), ".1f"),
        )
        for row, name, figures in _sustained(found)
    ]
    heads = ("lists x columns (selected)", "scores", "budget", "ms", "GB/s", "order, us")
    return section(
        f"Making column lists on one {_card(found)}",
        found,
        table(heads, rows),
        "GB/s counts the scores once.",
    )


def _gpu_overhead(found: Results) -> str:
    rows = [(CALLS.get(n, n), f"{v['host_us']:.1f}") for n, v in found["variants"].items()]
    return section(
        f"What a call takes the host, beside one {_card(found)}",
        found,
        table(("call of `column_sparse_attention`, no graph", "us"), rows),
        "A CUDA graph avoids this time.",
    )


def _any_suite(found: Results) -> str:
    """A suite without a table of its own: all that was measured."""
    names = list(dict.fromkeys(name for row in found["rows"] for name in row["variants"]))
    rows = [
        (
            *_place(row),
            row["head_dim"],
            row["query_group"],
            *(ms(_of(row, name, "median_ms")) for name in names),
            *(whole(_of(row, name, "tflops")) for name in names),
        )
        for row in found["rows"]
    ]
    heads = (
        *("heads x tokens", "columns", "head dim", "group"),
        *(f"{name}, ms" for name in names),
        *(f"{name}, TFLOP/s" for name in names),
    )
    title = f"Suite “{found['suite']}” on one {_card(found)}"
    return section(title, found, table(heads, rows), "")


def _of_record(found: Results) -> list[Row]:
    """The rows with a target, short ones first."""
    rows = [row for row in found["rows"] if row["target"] is not None]
    return sorted(rows, key=lambda row: (row["tokens"], -row["count"]))


def _of(row: Row, variant: str, figure: str) -> float | None:
    """A figure of a variant in the mode of record, or None where it was not measured."""
    value = row["variants"].get(variant, {}).get("sustained", {}).get(figure)
    return None if value is None else float(value)


def _clock(reading: Mapping[str, Any]) -> float:
    return float(reading["median"])


def _most_possible(row: Row) -> float:
    return float(row["dense_gflop"]) / float(row["variants"][OURS]["gflop"])


def _place(row: Row) -> tuple[str, str]:
    return f"{row['heads']} x {row['tokens']:,}", f"{row['count']:,}"


def _card(found: Results) -> str:
    return f"{found['gpu']['name']} ({found['gpu']['power_limit_w']:.0f} W)"


def main() -> None:
    """Writes both files."""
    PAGE.write_text(page())
    README.write_text(with_table(README.read_text(), readme_table()))


if __name__ == "__main__":
    main()

"""Times column-sparse attention on a Hopper GPU beside FlashAttention-3, cuDNN and FlexAttention.

    python bench/bench_attention.py [--suite all] [--mode both] [--budget-s 480] [--out FOLDER]

Each row is one shape and one length of lists; random data, batch 1. Before anything is timed, rows
of every variant's result are compared with float64; a wrong kernel gets no time. Two modes:

launches   one launch of each variant in turn, the L2 cache flushed before each; medians
sustained  the figure of record: the card is heated up for --heat-s seconds; then each variant in
           turn runs back to back for --warm-s seconds, and for --seconds more while it is measured;
           several turns, their median. The L2 cache is not flushed. Launches are captured in a CUDA
           graph, so that launch overhead does not count; where capture failed, the JSON says
           `in_graph: false`.

Suites, a JSON file each: "anchors" (attention_gpu.json, and the plot), "rest" (what a merged rest
costs), "general" (other head dims, groups, float16), "lengths" (lists of many lengths beside equal
ones, with and without an order), "dense" (dense attention and column sums),
"select" (what making lists costs), "overhead" (what a call costs
the host). "guard", which "all" leaves out, is the rows with a target and FlashAttention-3 alone.
FlashAttention-3 is the wheel fa3-fwd 0.0.3 (`pip install --no-deps fa3-fwd==0.0.3`). FlexAttention
attends to random 128 x 128 blocks, about as many keys as the lists hold. cuDNN is dense, so it is
timed once a shape. A file is rewritten, all or nothing, after every row.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attention_overhead
import dense_suite
import select_suite
import torch
from attention_cases import (
    COLUMNS,
    Inputs,
    Variant,
    check,
    dense_flops,
    described,
    ours,
    reason,
    sampled_rows,
)
from attention_peers import PEERS, Peer, versions
from attention_report import HEADER, WITH_REST, Row, derive, lines, plot
from dense_suite import DENSE_SUITE, DenseCase
from gpu_machine import Budget, Machine, hopper, timed
from select_suite import SELECT, SelectCase
from shapes import ATTENTION_SUITES, FA3, GUARD, RANDOM, AttentionCase
from timing import RESULTS, write

OVERHEAD = "overhead"
PLOT = Path(__file__).parents[1] / "docs" / "images" / "attention_speedup.png"
Case = AttentionCase | SelectCase | DenseCase
OPS = {SELECT: "select_columns", DENSE_SUITE: "dense_attention"}
LEGEND = (
    "cold: L2 flushed, launch by launch; sustained: back to back in CUDA graphs, no launch cost"
)


def prepare(
    case: AttentionCase, peers: Mapping[str, Peer], machine: Machine
) -> tuple[list[Variant], dict[str, Any], dict[str, str]]:
    """The case's variants that give the right result, their errors, and why others are missing."""
    generator = torch.Generator(machine.device).manual_seed(0)
    inputs = Inputs.random(case, generator)
    candidates: dict[str, Callable[[], Variant]] = {}
    for pattern in case.patterns:
        columns = COLUMNS[pattern](case, case.shape.tokens, generator)
        candidates[pattern] = partial(ours, pattern, inputs, columns)
        if case.with_rest and pattern == RANDOM:
            rest = (torch.randn_like(inputs.out), torch.randn_like(inputs.lse) + 7.0)
            candidates[WITH_REST] = partial(ours, WITH_REST, inputs, columns, rest)
    for name in case.peers:
        if name in peers:
            candidates[name] = partial(peers[name], case, inputs, machine.timer, generator)
    # FlashAttention-3 right after the random columns: its turns are next to theirs.
    order = sorted(candidates, key=lambda name: (name != RANDOM, name != FA3))
    variants, checks, left_out = [], {}, {}
    for name in order:
        try:
            variant = candidates[name]()
            inputs.poison()
            found = check(variant, sampled_rows(case))
        except Exception as error:  # somebody else's kernel, or no memory: the others go on
            left_out[name] = reason(error)
            continue
        checks[name] = vars(found)
        if found.passed:
            variants.append(variant)
        else:
            left_out[name] = f"WRONG: {found}"
    return variants, checks, left_out


def measure(
    case: AttentionCase, options: argparse.Namespace, peers: Mapping[str, Peer], machine: Machine
) -> Row:
    """One row: checked, timed, with derived figures."""
    variants, checks, left_out = prepare(case, peers, machine)
    runs = {variant.name: variant.run for variant in variants}
    dense = dense_flops(case)
    row: Row = {
        **described(case),
        "count": case.count,
        "lengths": case.lengths,
        "sparsity": 1 - case.count / case.shape.tokens,
        "target": case.target,
        "target_over_equal": case.target_over_equal,
        "dense_gflop": dense / 1e9,
        "variants": {v.name: {"gflop": v.flops / 1e9, "note": v.note} for v in variants},
        "checks": checks,
        "left_out": left_out,
    }
    for name, figures in timed(runs, options, machine).items():
        row["variants"][name].update(figures)
    derive(row)
    return row


def measure_any(
    case: Case, options: argparse.Namespace, peers: Mapping[str, Peer], machine: Machine
) -> tuple[Row, bool]:
    """A row of either kind, and whether all of ours in it are right."""
    started = time.perf_counter()
    if isinstance(case, SelectCase):
        row = select_suite.measure(case, options, machine)
        wrong = set(row["left_out"]) - {select_suite.TOPK}
    elif isinstance(case, DenseCase):
        row = dense_suite.measure(case, options, peers, machine)
        wrong = set(row["left_out"]) - set(peers)
    else:
        row = measure(case, options, peers, machine)
        wrong = set(row["left_out"]) & {*case.patterns, WITH_REST}
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row, not wrong


def table(suite: str) -> tuple[str, Callable[[Row], Iterator[str]]]:
    """The header of a suite's table, and what makes lines of a row."""
    if suite == SELECT:
        return select_suite.HEADER, select_suite.lines
    if suite == DENSE_SUITE:
        return dense_suite.HEADER, dense_suite.lines
    return HEADER, lines


class Output:
    """Where results go: bench/results and docs/images, the folder given, or nowhere."""

    def __init__(self, options: argparse.Namespace, machine: Machine) -> None:
        self._options, self._machine = options, machine
        # A narrowed run must not take the place of a whole one unasked.
        self._writes = not options.no_write and (options.out is not None or not options.shapes)

    def save(self, suite: str, **result: Any) -> None:
        if not self._writes:
            return
        options, machine = self._options, self._machine
        names = ("mode", "turns", "heat_s", "warm_s", "seconds", "peers")
        settings = {name: getattr(options, name) for name in names}
        name = "attention_gpu" if suite == "anchors" else f"attention_gpu_{suite}"
        write(
            name,
            {
                "op": OPS.get(suite, "column_sparse_attention"),
                "suite": suite,
                "gpu": dict(machine.description),
                "versions": versions(),
                "settings": settings,
                **result,
            },
            folder=options.out or RESULTS,
            commit=options.commit,
        )

    def draw(self, rows: Sequence[Row]) -> None:
        if not self._writes:
            return
        out = self._options.out
        try:
            path = plot(rows, PLOT if out is None else out / PLOT.name)
            print(path or "no plot: there are no speed-ups")
        except Exception as error:  # the measurements that follow matter more
            print(f"no plot: {reason(error)}; --report draws it elsewhere")


def overhead(machine: Machine, output: Output) -> int:
    """The suite of that name; 1 if it failed."""
    try:
        calls, left_out = attention_overhead.calls(machine.device)
        found = attention_overhead.measure(calls, machine.timer)
    except Exception as error:
        traceback.print_exc()
        print(f"not measured: {OVERHEAD}: {reason(error)}", flush=True)
        return 1
    print(f"\n{OVERHEAD}: us a call outside graphs, until the host is free / the result is there")
    for name, us in found.items():
        print(f"{name:20} {us['host_us']:7.2f} {us['until_done_us']:7.2f}", flush=True)
    for name, why in left_out.items():
        print(f"{name:20} left out: {why}", flush=True)
    calls_per_round = attention_overhead.CALLS
    output.save(OVERHEAD, calls_per_round=calls_per_round, left_out=left_out, variants=found)
    return 0


def run(
    options: argparse.Namespace,
    suites: Mapping[str, Sequence[Case]],
    machine: Machine,
    peers: Mapping[str, Peer],
    budget: Budget,
) -> int:
    """Measures the suites in order; 1 if a row failed or a kernel of ours was wrong, else 0."""
    output = Output(options, machine)
    status = overhead(machine, output) if OVERHEAD in options.suites else 0
    for suite, cases in suites.items():
        rows: list[Row] = []
        skipped: list[str] = []
        header, lines_of = table(suite)
        print(f"\n{suite}; {LEGEND}\n{header}", flush=True)
        for case in cases:
            if budget.is_spent():
                skipped.append(f"{case.title}: the time is spent")
                continue
            try:
                row, right = measure_any(case, options, peers, machine)
            except Exception as error:  # a row that fails does not take the others with it
                traceback.print_exc()
                skipped.append(f"{case.title}: {reason(error)}")
                status = 1
                continue
            finally:
                gc.collect()
                torch.cuda.empty_cache()
            rows.append(row)
            if not right:
                status = 1
            print("\n".join(lines_of(row)), flush=True)
            output.save(suite, complete=False, not_measured=skipped, rows=rows)
        for what in skipped:
            print(f"not measured: {what}", flush=True)
        if rows:
            output.save(suite, complete=not skipped, not_measured=skipped, rows=rows)
        if suite == "anchors" and rows:
            output.draw(rows)
    return status


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `suites` holds the names of those wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = (*ATTENTION_SUITES, DENSE_SUITE, SELECT, OVERHEAD)
    parser.add_argument("--suite", default="all", help=f"{', '.join(names)} (commas), or all")
    parser.add_argument(
        "--shapes", default="", help="parts of shape names and counts, commas between"
    )
    parser.add_argument("--mode", choices=("launches", "sustained", "both"), default="both")
    parser.add_argument("--turns", type=int, default=3, help="sustained turns of each variant")
    parser.add_argument("--heat-s", type=float, default=3.0, help="before a row's first turn")
    parser.add_argument("--warm-s", type=float, default=1.0, help="before each turn's measurement")
    parser.add_argument("--seconds", type=float, default=0.5, help="measured in each turn")
    parser.add_argument("--peers", default=",".join(PEERS), help="commas between; empty: none")
    parser.add_argument("--budget-s", type=float, help="start no row after so many seconds")
    parser.add_argument("--out", type=Path, help="folder for JSON and plot")
    parser.add_argument("--commit", help="what is measured, where the tree has no git")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--report", type=Path, help="print and draw a written JSON; needs no GPU")
    options = parser.parse_args(argv)
    everything = tuple(name for name in names if name != GUARD)
    options.suites = everything if options.suite == "all" else tuple(options.suite.split(","))
    options.peers = tuple(filter(None, options.peers.split(",")))
    for given, known in ((options.suites, names), (options.peers, tuple(PEERS))):
        unknown = sorted(set(given) - set(known))
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return options


def main() -> int:
    """Measures, prints, writes; or prints and draws what was written."""
    options = arguments()
    torch.set_grad_enabled(False)
    if options.report is not None:
        written = json.loads(options.report.read_text())
        header, lines_of = table(written["suite"])
        print("\n".join([header, *(line for row in written["rows"] for line in lines_of(row))]))
        if written["suite"] == "anchors":
            print(plot(written["rows"], options.out / PLOT.name if options.out else PLOT))
        return 0
    budget = Budget(options.budget_s)
    machine = hopper()
    wanted = tuple(filter(None, options.shapes.split(",")))
    known: Mapping[str, Sequence[Case]] = {
        **ATTENTION_SUITES,
        DENSE_SUITE: dense_suite.CASES,
        SELECT: select_suite.CASES,
    }
    suites = {
        suite: [c for c in known[suite] if not wanted or any(part in c.title for part in wanted)]
        for suite in options.suites
        if suite != OVERHEAD
    }
    peers = {name: PEERS[name] for name in options.peers}
    print(f"{machine.description}\n{versions()}", flush=True)
    with machine.clocks:
        return run(options, suites, machine, peers, budget)


if __name__ == "__main__":
    raise SystemExit(main())

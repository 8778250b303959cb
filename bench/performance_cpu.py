"""The tables of docs/performance.md that a CPU gives."""

from __future__ import annotations

from performance_markdown import Results, ms, plain, section, table, times, whole

CALLS = {
    "ck, out given": "outputs given",
    "ck, rest, out given": "outputs given, with a rest",
    "ck, allocating": "outputs allocated",
    "ck, numpy, allocating": "NumPy arrays, outputs allocated",
    "torch operator": "`torch.ops.chipmunk_kernels` alone, outputs given",
    "extension": "the extension module alone",
    "two torch.empty": "two `torch.empty`, for comparison",
    "torch sdpa": "torch's `scaled_dot_product_attention`",
    "torch sdpa, no query": "torch's `scaled_dot_product_attention`, no query rows",
    "fa3": "FlashAttention-3's wheel",
}
"""Calls by their names in the results."""

CPU_ATTENTION = {
    "torch": "torch's dense attention",
    "dense": "`dense_attention`",
    "sums": "`dense_attention_column_sums`, `reference_lse` given",
    "exact sums": "`dense_attention_column_sums`, exact",
    "sparse": "`column_sparse_attention`",
    "merged": "`column_sparse_attention`, a rest merged",
}


def cpu_attention(found: Results) -> str:
    """Attention, each dtype beside torch."""
    shape, dtypes = found["shape"], found["dtypes"]
    rows = [
        (
            title,
            *(ms(d[name]["median_ms"]) for d in dtypes.values()),
            *(whole(d[name]["gflops"]) for d in dtypes.values()),
            *(times(d[name]["speedup"]) for d in dtypes.values()),
        )
        for name, title in CPU_ATTENTION.items()
    ]
    heads = [
        f"{dtype}, {unit}" for unit in ("ms", "GFLOP/s", "over torch's dense") for dtype in dtypes
    ]
    speedups = [d["sparse"]["speedup"] for d in dtypes.values()]
    return section(
        f"Attention on {found['environment']['cores']} CPU cores",
        found,
        table(("", *heads), rows),
        f"With {1 - shape['kept']:.0%} of the columns left out, sparse attention is "
        f"{min(speedups):.1f} to {max(speedups):.1f} times as fast as torch's dense one.",
        f"{shape['batch']} x {shape['heads']} x {shape['tokens']:,} x {shape['head_dim']}, groups "
        f"of {shape['query_group']}, all variants in one process, in turn.",
    )


def cpu_mlp(found: Results) -> str:
    """The MLP, each dtype beside torch."""
    shape = found["shape"]
    rows = [
        (
            dtype,
            ms(d["sparse"]["median_ms"]),
            whole(d["sparse_gflops"]),
            ms(d["dense"]["median_ms"]),
            whole(d["dense_gflops"]),
            times(d["speedup"]),
        )
        for dtype, d in found["dtypes"].items()
    ]
    heads = ("dtype", "ms", "GFLOP/s", "torch's dense MLP, ms", "GFLOP/s", "over torch's dense")
    return section(
        f"MLP on {found['environment']['cores']} CPU cores",
        found,
        table(heads, rows),
        f"The most possible at equal efficiency is {1 / shape['kept']:.2f}x. torch's bfloat16 and "
        f"float16 products are slow on a CPU without them.",
        f"`column_sparse_mlp`, {shape['tokens']:,} tokens, {shape['channels']} -> "
        f"{shape['hidden']:,} -> {shape['out_channels']}, {1 - shape['kept']:.0%} of the hidden "
        f"units left out, cache updated.",
    )


def cpu_overhead(found: Results) -> str:
    """What calls take."""
    rows = [(CALLS.get(n, n), f"{v['median_us']:.1f}") for n, v in found["variants"].items()]
    return section(
        "What a call takes on a CPU, without its kernel",
        found,
        table((f"call with {found['tensors']} arrays", "us"), rows),
        "On slower and busier cores all of these take longer.",
    )


def demo_runs(found: Results) -> str:
    """The demo's runs."""
    rows = [
        (
            run["title"],
            run["steps"],
            f"{run['ms_per_step']:,.0f}",
            f"{run['seconds']:.1f}",
            f"{run['speed_up']:.2f}x",
            *(plain(run[name], ".1f") for name in ("psnr", "foreground_psnr")),
            plain(run["ssim"], ".4f"),
            *(plain(run[name], ".1%") for name in ("columns_kept", "units_kept", "mass_kept")),
        )
        for run in found["runs"]
    ]
    heads = (
        *("run", "steps", "ms a step", "s", "speed-up", "PSNR", "foreground PSNR", "SSIM"),
        *("columns", "units", "mass"),
    )
    facts = found["facts"]
    return (
        f"## The demo\n\n{facts['device']}; {facts['dtype']}; {facts['versions']}. What the lines "
        f"mean: [demo.md](demo.md).\n\n{table(heads, rows)}\n{found['caveat']}\n"
    )

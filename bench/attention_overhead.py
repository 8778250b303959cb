"""What a call costs the host where the GPU has next to nothing to do, outside CUDA graphs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from attention_cases import Inputs, random_columns, reason
from gpu_timing import Timer
from shapes import FA3, AttentionCase, AttentionShape
from torch.nn import functional

import chipmunk_kernels as ck

CALLS = 200  # fewer than a stream's queue holds: the host never waits for the GPU
TINY = AttentionCase(AttentionShape("tiny", heads=1, tokens=64, head_dim=64), 16, query_group=64)


def calls(device: torch.device) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """One head of 64 queries over 16 of 64 keys, in several ways of asking for it; and what is
    missing and why."""
    generator = torch.Generator(device).manual_seed(0)
    inputs = Inputs.random(TINY, generator)
    q, k, v, out = inputs.q, inputs.k, inputs.v, (inputs.out, inputs.lse)
    columns = random_columns(TINY, TINY.shape.tokens, generator)
    rest = (torch.zeros_like(inputs.out), torch.zeros_like(inputs.lse))
    ck.column_sparse_attention(q, k, v, columns, out=out)  # its torch operator exists from here on
    operator: Any = torch.ops.chipmunk_kernels.column_sparse_attention.default
    given = {"q": q, "k": k, "v": v, "indices": columns.indices, "counts": columns.counts}
    given |= {"query_group": TINY.query_group, "out": out[0], "lse": out[1]}
    arguments = [given.get(argument.name) for argument in operator._schema.arguments]
    found: dict[str, Callable[[], object]] = {
        "ck, allocating": lambda: ck.column_sparse_attention(q, k, v, columns),
        "ck, out given": lambda: ck.column_sparse_attention(q, k, v, columns, out=out),
        "ck, rest, out given": lambda: ck.column_sparse_attention(
            q, k, v, columns, rest=rest, out=out
        ),
        "torch operator": lambda: operator(*arguments),
        "torch sdpa": lambda: functional.scaled_dot_product_attention(q, k, v),
    }
    views = [x.transpose(1, 2) for x in (q, k, v)]
    try:
        from fa3_fwd_interface import flash_attn_func

        flash_attn_func(*views)
    except Exception as error:  # not installed, or not for this device
        return found, {FA3: reason(error)}
    return {**found, FA3: lambda: flash_attn_func(*views)}, {}


def measure(
    variants: Mapping[str, Callable[[], object]], timer: Timer, *, rounds: int = 30
) -> dict[str, dict[str, float]]:
    """Microseconds a call, variants in turn: until the host is free, and until the GPU is done."""
    free: dict[str, list[float]] = {name: [] for name in variants}
    done: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(rounds + 1):  # the first warms up
        for name, call in variants.items():
            timer.finish()
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            enqueued = time.perf_counter()
            timer.finish()
            if index > 0:
                free[name].append((enqueued - start) / CALLS * 1e6)
                done[name].append((time.perf_counter() - start) / CALLS * 1e6)
    return {
        name: {
            "host_us": round(statistics.median(free[name]), 2),
            "host_us_min": round(min(free[name]), 2),
            "until_done_us": round(statistics.median(done[name]), 2),
        }
        for name in variants
    }

"""Dense attention and column sums on a GPU, against float64."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
from gpu import needs_hopper, torch
from gpu_attention_cases import heads_first
from numerics import assert_as_good_as_torch, largest, rounding_of_sums

import chipmunk_kernels as ck
from chipmunk_kernels import reference

pytestmark = needs_hopper

LAYOUTS = ["contiguous", "tokens first", "packed"]
DTYPES = [torch.bfloat16, torch.float16]
HEAD_DIMS = [64, 96, 128, 256]
# A group's rows are one tile's, or a part of one's.
GROUPS = {64: [64, 128, 192], 96: [64, 128, 192], 128: [64, 128, 192], 256: [64, 128]}


@dataclass
class DenseCase:
    """One call."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    query_group: int = 192
    lse: torch.Tensor | None = None
    sums_dtype: torch.dtype = torch.float32
    query_rows: torch.Tensor | None = None
    key_weights: torch.Tensor | None = None

    @property
    def rounding(self) -> float:
        """What the sums behind a score lose."""
        k = self.k.float().repeat_interleave(self.q.shape[1] // self.k.shape[1], dim=1)
        scores = self.q.float() @ k.mT * self.q.shape[-1] ** -0.5
        return rounding_of_sums(self.q.shape[-1], largest(scores))

    def sums(self) -> tuple[torch.Tensor, ...]:
        b, h, n, _ = self.q.shape
        shape = (b, h, -(-n // self.query_group), self.k.shape[2])
        sums = torch.full(shape, math.nan, dtype=self.sums_dtype, device="cuda")
        return ck.dense_attention_column_sums(
            self.q, self.k, self.v, out=(None, None, sums), **self.options
        )

    @property
    def options(self) -> dict[str, object]:
        options: dict[str, object] = {
            "reference_lse": self.lse,
            "query_group": self.query_group,
        }
        if self.query_rows is not None:
            options["query_rows"] = self.query_rows
        if self.key_weights is not None:
            options["key_weights"] = self.key_weights
        return options

    def check_part(self, out: torch.Tensor, lse: torch.Tensor) -> None:
        qkv = self.q, self.k, self.v
        native = reference.dense_attention(*qkv)
        exact = reference.dense_attention(*(x.double() for x in qkv))
        value = self.rounding * largest(self.v)
        assert_as_good_as_torch(out, native[0], exact[0], "out", sums=value)
        assert_as_good_as_torch(lse, native[1], exact[1], "lse", sums=self.rounding)

    def check(self) -> None:
        self.check_part(*ck.dense_attention(self.q, self.k, self.v))
        out, lse, sums = self.sums()
        self.check_part(out, lse)
        options = self.options
        native = reference.dense_attention_column_sums(self.q, self.k, self.v, **options)[2]
        if self.lse is not None:
            options["reference_lse"] = self.lse.double()
        q, k, v = (x.double() for x in (self.q, self.k, self.v))
        exact = reference.dense_attention_column_sums(q, k, v, **options)[2]
        assert_as_good_as_torch(
            sums,
            native.to(self.sums_dtype),
            exact,
            "column_sums",
            sums=self.rounding * largest(exact),
        )


def plain_case(
    shape: tuple[int, int, int, int], *, keys: int | None = None, scale: float = 1.0, **options
) -> DenseCase:
    b, h, n, d = shape
    dtype = options.pop("dtype", torch.bfloat16)
    rows = (n, n if keys is None else keys)
    q = (torch.randn(b, h, rows[0], d, device="cuda") * scale).to(dtype)
    k, v = (torch.randn(b, h, rows[1], d, device="cuda").to(dtype) for _ in range(2))
    return DenseCase(q, k, v, **options)


def random_case(rng: random.Random) -> DenseCase:
    """Small shapes, any stride, ragged tiles of queries and of keys."""
    dtype, d = rng.choice(DTYPES), rng.choice(HEAD_DIMS)
    b, kv_heads, share = rng.randint(1, 2), rng.randint(1, 2), rng.randint(1, 3)
    queries, keys = rng.randint(1, 600), rng.choice([1, 16, 112, rng.randint(1, 500), 700])
    q = heads_first(b, kv_heads * share, queries, d, dtype, rng.choice(LAYOUTS))
    k = heads_first(b, kv_heads, keys, d, dtype, rng.choice(LAYOUTS))
    v = heads_first(b, kv_heads, keys, d, dtype, rng.choice(LAYOUTS))
    for x, scale in ((q, rng.choice([0.3, 1.0, 3.0])), (k, 1.0), (v, 1.0)):
        x.copy_(torch.randn(x.shape, device="cuda") * scale)
    case = DenseCase(q, k, v, rng.choice(GROUPS[d]))
    case.sums_dtype = rng.choice([torch.float32, torch.bfloat16])
    if rng.random() < 0.7:
        case.lse = reference.dense_attention(q * 0.9, k, v)[1]
        if rng.random() < 0.3:
            case.lse[..., ::3] = math.inf
            case.lse[..., 1::5] = -math.inf
    return case


@pytest.mark.parametrize("seed", range(40))
def test_random_cases(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(30):
        random_case(rng).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_many_tiles_a_multiprocessor(head_dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for group in GROUPS[head_dim]:
        case = plain_case((1, 8, 4_001, head_dim), dtype=dtype, query_group=group)
        case.lse = reference.dense_attention(case.q, case.k, case.v)[1] + 0.1
        case.check()


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_keys_of_every_number_up_to_three_tiles(head_dim: int) -> None:
    """A ragged tile's spare keys count for nothing; a score of 0 would outweigh all others."""
    torch.manual_seed(0)
    for keys in [*range(1, 20), *range(70, 125), 159, 160, 161, 223, 224, 225, 239, 240, 241]:
        case = plain_case((1, 1, 200, head_dim), keys=keys, query_group=64)
        case.q.abs_()
        case.k.abs_().neg_()
        case.check()


def test_no_keys() -> None:
    q = torch.randn(2, 3, 500, 128, device="cuda", dtype=torch.bfloat16)
    k = torch.empty(2, 3, 0, 128, device="cuda", dtype=torch.bfloat16)
    out, lse, sums = ck.dense_attention_column_sums(q, k, k)
    assert (out == 0).all()
    assert (lse == -math.inf).all()
    assert sums.shape == (2, 3, 3, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_scores_that_grow_from_tile_to_tile(head_dim: int, dtype: torch.dtype) -> None:
    """The softmax reference rises again and again, and the sums' factors with it."""
    torch.manual_seed(0)
    for sign in (1.0, -1.0):
        case = plain_case((1, 2, 400, head_dim), keys=900, dtype=dtype, query_group=64)
        case.q[..., 0] = 30.0
        case.k[..., 0] = sign * torch.linspace(-40, 40, 900, device="cuda").to(dtype)
        case.check()
        case.lse = reference.dense_attention(case.q, case.k, case.v)[1]
        case.check()


@pytest.mark.parametrize("jump", [-80.0, -20.0, 20.0, 80.0])
def test_scores_that_have_jumped_since_the_reference(jump: float) -> None:
    torch.manual_seed(0)
    case = plain_case((1, 2, 400, 128), query_group=128)
    case.lse = reference.dense_attention(case.q, case.k, case.v)[1] + jump
    case.check()


def test_the_same_bits_every_time_and_in_a_graph() -> None:
    torch.manual_seed(0)
    case = plain_case((1, 8, 3_000, 128))
    case.lse = reference.dense_attention(case.q, case.k, case.v)[1]
    first = case.sums()
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, case.sums(), strict=True))
    out = [torch.empty_like(x) for x in first]

    def call() -> None:
        ck.dense_attention_column_sums(
            case.q, case.k, case.v, reference_lse=case.lse, out=tuple(out)
        )

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    case.q.copy_(torch.randn_like(case.q))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(case.sums(), out, strict=True))


def test_a_side_stream() -> None:
    case = plain_case((1, 4, 2_000, 128))
    want = case.sums()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = case.sums()
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_a_nan_reaches_the_rows_that_see_it_and_no_others() -> None:
    case = plain_case((1, 2, 500, 128))
    clean = ck.dense_attention(case.q, case.k, case.v)
    case.q[0, 0, 70] = math.nan
    out, lse = ck.dense_attention(case.q, case.k, case.v)
    assert out[0, 0, 70].isnan().all()
    assert lse[0, 0, 70].isnan()
    keep = torch.ones(500, dtype=torch.bool, device="cuda")
    keep[70] = False
    assert torch.equal(out[0, 0, keep], clean[0][0, 0, keep])
    assert torch.equal(out[0, 1], clean[0][0, 1])


@pytest.mark.parametrize("pad", [0, 1, 3])
def test_sums_at_any_address(pad: int) -> None:
    """Rows of an odd length, or at an odd place, are not stored in pairs."""
    torch.manual_seed(0)
    case = plain_case((1, 2, 300, 64), keys=301)
    case.lse = reference.dense_attention(case.q, case.k, case.v)[1]
    for dtype in (torch.float32, torch.bfloat16):
        wide = torch.full((1, 2, 2, 301 + pad), math.nan, device="cuda", dtype=dtype)
        sums = wide[..., pad:]
        ck.dense_attention_column_sums(
            case.q, case.k, case.v, reference_lse=case.lse, out=(None, None, sums)
        )
        case.sums_dtype = dtype
        assert torch.equal(sums, case.sums()[2])
        assert wide[..., :pad].isnan().all()


def test_offsets_past_two_to_the_31() -> None:
    """Column sums of more than 2^31 elements, and queries as many elements apart."""
    torch.manual_seed(0)
    keys, heads = 70_000, 84
    q = torch.randn(1, heads, 64 * 366, 64, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(1, 1, keys, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    lse = torch.full(q.shape[:3], 12.0, device="cuda")
    shape = (1, heads, 366, keys)
    assert math.prod(shape) > 2**31
    sums = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
    ck.dense_attention_column_sums(
        q, k, v, reference_lse=lse, query_group=64, out=(None, None, sums)
    )
    for head, group in ((0, 0), (heads - 1, 365), (heads - 1, 0)):
        rows = slice(64 * group, 64 * group + 64)
        last = DenseCase(
            q[:, head : head + 1, rows], k, v, 64, lse[:, head : head + 1, rows], torch.bfloat16
        )
        assert torch.equal(sums[:, head : head + 1, group : group + 1], last.sums()[2])


def test_errors() -> None:
    q = torch.randn(1, 1, 300, 256, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(ck.UnsupportedError, match=r"query_group: 192 on cuda:0; .* 64 and 128"):
        ck.dense_attention_column_sums(q, q, q)
    with pytest.raises(ck.UnsupportedError, match="softmax_scale"):
        ck.dense_attention(q, q, q, softmax_scale=-1.0)

"""The extension module: every op as an out-variant on arrays that DLPack can share.

Arguments: inputs, options, outputs (filled in place), then `cpu_threads` (0: all that the process
may use) and `stream` (address of a cudaStream_t; None: the current one of the arrays' library).
"""

from typing import Any, TypedDict

MLP_QUERY_GROUP: int

class UnsupportedError(NotImplementedError): ...
class CudaError(RuntimeError): ...

class _Gpu(TypedDict):
    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int

class _BuildInfo(TypedDict):
    version: str
    cpu_isa: str
    cpu_isas: tuple[str, ...]
    cpu_threads: int
    cuda_compiled: bool
    cuda_toolkit: int
    gpus: tuple[_Gpu, ...]

class HostBuffer:
    """Uninitialised row-major memory that other libraries take in through DLPack."""

    def __init__(self, shape: list[int] | tuple[int, ...], dtype: str) -> None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: object = None,
        copy: object = None,
    ) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

class ShapeOnly:
    """Stands for an array: with one among its arguments, an op checks them all and returns."""

    def __init__(
        self, shape: list[int], strides: list[int], dtype: str, cuda_device: int | None
    ) -> None: ...

def build_info() -> _BuildInfo: ...
def checks_enabled() -> bool: ...
def validate_columns(
    indices: Any,
    counts: Any,
    n: int,
    order: Any = None,
    cpu_threads: int = 0,
    stream: int | None = None,
) -> None: ...

# The ops, written by `python -m chipmunk_kernels.ops.stub`.
def dense_attention(
    q: Any,
    k: Any,
    v: Any,
    query_rows: Any,
    softmax_scale: float | None,
    out: Any,
    lse: Any,
    cpu_threads: int = 0,
    stream: int | None = None,
) -> None: ...
def dense_attention_column_sums(
    q: Any,
    k: Any,
    v: Any,
    reference_lse: Any,
    key_weights: Any,
    query_rows: Any,
    query_group: int,
    softmax_scale: float | None,
    out: Any,
    lse: Any,
    column_sums: Any,
    cpu_threads: int = 0,
    stream: int | None = None,
) -> None: ...
def column_sparse_attention(
    q: Any,
    k: Any,
    v: Any,
    indices: Any,
    counts: Any,
    order: Any,
    query_group: int,
    rest_out: Any,
    rest_lse: Any,
    query_rows: Any,
    softmax_scale: float | None,
    out: Any,
    lse: Any,
    cpu_threads: int = 0,
    stream: int | None = None,
) -> None: ...
def merge_attention(
    a_out: Any,
    a_lse: Any,
    b_out: Any,
    b_lse: Any,
    out: Any,
    lse: Any,
    cpu_threads: int = 0,
    stream: int | None = None,
) -> None: ...
def rest_of_attention(
    whole_out: Any,
    whole_lse: Any,
    selected_out: Any,
    selected_lse: Any,
    out: Any,
    lse: Any,
    cpu_threads: int = 0,
    stream: int | None = None,
) -> None: ...
def select_columns(
    scores: Any,
    always: Any,
    count: int | None,
    count_per_list: Any,
    mass: float | None,
    mass_per_list: Any,
    min_count: int,
    max_count: int | None,
    random_fraction: float,
    seed: int | None,
    query_group: int,
    indices: Any,
    counts: Any,
    order: Any,
    cpu_threads: int = 0,
    stream: int | None = None,
) -> None: ...
def columns_from_mask(
    mask: Any,
    query_group: int,
    indices: Any,
    counts: Any,
    order: Any,
    cpu_threads: int = 0,
    stream: int | None = None,
) -> None: ...
def columns_to_mask(
    indices: Any,
    counts: Any,
    mask: Any,
    cpu_threads: int = 0,
    stream: int | None = None,
) -> None: ...
def column_sparse_fc1(
    x: Any,
    w1: Any,
    b1: Any,
    indices: Any,
    counts: Any,
    activation: str,
    activation_cache: Any,
    packed_delta: Any,
    cpu_threads: int = 0,
    stream: int | None = None,
) -> None: ...
def column_sparse_fc2(
    packed_delta: Any,
    w2t: Any,
    indices: Any,
    counts: Any,
    out: Any,
    cpu_threads: int = 0,
    stream: int | None = None,
) -> None: ...
def column_sparse_mlp(
    x: Any,
    w1: Any,
    b1: Any,
    w2t: Any,
    indices: Any,
    counts: Any,
    activation: str,
    activation_cache: Any,
    packed_delta: Any,
    out: Any,
    cpu_threads: int = 0,
    stream: int | None = None,
) -> None: ...

"""Column-sparse attention and MLP kernels for diffusion transformers.

Arrays of torch, numpy, cupy or jax come in through DLPack; results are of the same library, on the
same device. The package imports with numpy alone. A caller's mistake raises ValueError
"op: argument: expected .., got ..".
"""

import importlib
import sys

from chipmunk_kernels._core import CudaError, UnsupportedError
from chipmunk_kernels.build_info import Gpu, Info, info
from chipmunk_kernels.ops.attention import (
    column_sparse_attention,
    dense_attention,
    dense_attention_column_sums,
    merge_attention,
    rest_of_attention,
)
from chipmunk_kernels.ops.columns import ColumnLists, columns_from_mask, select_columns
from chipmunk_kernels.ops.mlp import (
    MlpCache,
    column_sparse_fc1,
    column_sparse_fc2,
    column_sparse_mlp,
)
from chipmunk_kernels.token_order import TokenOrder

if "torch" in sys.modules:  # else when an op first sees a tensor
    importlib.import_module("chipmunk_kernels.ops.torch")

__version__: str = info().version

__all__ = [
    "ColumnLists",
    "CudaError",
    "Gpu",
    "Info",
    "MlpCache",
    "TokenOrder",
    "UnsupportedError",
    "column_sparse_attention",
    "column_sparse_fc1",
    "column_sparse_fc2",
    "column_sparse_mlp",
    "columns_from_mask",
    "dense_attention",
    "dense_attention_column_sums",
    "info",
    "merge_attention",
    "rest_of_attention",
    "select_columns",
]

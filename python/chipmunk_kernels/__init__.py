"""Column-sparse attention and MLP kernels for diffusion transformers.

Arrays of torch, numpy, cupy or jax come in through DLPack; results are of the same library, on the
same device. The package imports with numpy alone. A caller's mistake raises ValueError
"op: argument: expected .., got ..".
"""

from chipmunk_kernels._core import CudaError, UnsupportedError
from chipmunk_kernels.build_info import Gpu, Info, info
from chipmunk_kernels.ops.columns import ColumnLists, columns_from_mask, select_columns
from chipmunk_kernels.token_order import TokenOrder

__version__: str = info().version

__all__ = [
    "ColumnLists",
    "CudaError",
    "Gpu",
    "Info",
    "TokenOrder",
    "UnsupportedError",
    "columns_from_mask",
    "info",
    "select_columns",
]

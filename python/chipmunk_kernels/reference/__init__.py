"""Every op as a few lines of plain PyTorch: the specification, and what the tests compare with.

The functions take plain tensors (`indices`, `counts`, `query_group` instead of a `ColumnLists`),
need torch alone and run in any floating dtype, float64 included. They compute in at least float32
and round once, to the input's dtype, at the end. They are written to be read, not to be fast, and
their memory grows with queries x keys.
"""

from chipmunk_kernels.reference.attention import (
    column_sparse_attention,
    dense_attention,
    dense_attention_column_sums,
    merge_attention,
    rest_of_attention,
)
from chipmunk_kernels.reference.columns import (
    columns_from_mask,
    random_hash,
    select_columns,
    to_mask,
)
from chipmunk_kernels.reference.mlp import (
    MLP_QUERY_GROUP,
    column_sparse_fc1,
    column_sparse_fc2,
    column_sparse_mlp,
    dense_mlp,
    hidden_units,
)

__all__ = [
    "MLP_QUERY_GROUP",
    "column_sparse_attention",
    "column_sparse_fc1",
    "column_sparse_fc2",
    "column_sparse_mlp",
    "columns_from_mask",
    "dense_attention",
    "dense_attention_column_sums",
    "dense_mlp",
    "hidden_units",
    "merge_attention",
    "random_hash",
    "rest_of_attention",
    "select_columns",
    "to_mask",
]

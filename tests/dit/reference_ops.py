"""The public ops on top of the reference, for tests of the modules in float64.

The kernels have no float64, and in float32 a module whose step logic is a little wrong can pass for
rounding. `install` puts these in the place of the package's ops for one test.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

import chipmunk_kernels as ck
from chipmunk_kernels import reference as ref


@dataclass
class ColumnLists:
    indices: torch.Tensor
    counts: torch.Tensor
    query_group: int

    def to_mask(self, n):
        return ref.to_mask(self.indices, self.counts, n)


class MlpCache(SimpleNamespace):
    @staticmethod
    def from_dense(x, w1, b1, w2t, b2, activation):
        activations, out = ref.dense_mlp(x, w1, b1, w2t, b2, activation)
        return MlpCache(activations=activations, output=out)


def select_columns(scores, *, query_group, seed=0, **options):
    return ColumnLists(*ref.select_columns(scores, seed=seed, **options), query_group)


def column_sparse_attention(q, k, v, columns, *, rest=None, softmax_scale=None):
    lists = columns.indices, columns.counts, columns.query_group
    return ref.column_sparse_attention(q, k, v, *lists, rest=rest, softmax_scale=softmax_scale)


def dense_attention_column_sums(q, k, v, *, out, **options):
    assert out[2].shape[:2] == q.shape[:2]
    return ref.dense_attention_column_sums(q, k, v, **options)


def column_sparse_mlp(x, w1, b1, w2t, columns, cache, *, activation):
    lists = columns.indices, columns.counts
    return ref.column_sparse_mlp(
        x, w1, b1, w2t, *lists, cache.activations, cache.output, activation=activation
    )


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, op in {
        "ColumnLists": ColumnLists,
        "MlpCache": MlpCache,
        "column_sparse_attention": column_sparse_attention,
        "column_sparse_mlp": column_sparse_mlp,
        "dense_attention": ref.dense_attention,
        "dense_attention_column_sums": dense_attention_column_sums,
        "merge_attention": ref.merge_attention,
        "rest_of_attention": ref.rest_of_attention,
        "select_columns": select_columns,
    }.items():
        monkeypatch.setattr(ck, name, op, raising=False)

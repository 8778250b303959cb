"""The one list of arguments, and what is derived from it."""

from __future__ import annotations

import inspect
import re

import pytest

import chipmunk_kernels as ck
from chipmunk_kernels import _core
from chipmunk_kernels.ops import stub
from chipmunk_kernels.ops.schemas import OPS


def test_the_stub_is_the_generated_one():
    written = stub.PATH.read_text()
    assert stub.stub(written) == written
    assert stub.stub("# by hand\n").startswith("# by hand\n")


@pytest.mark.parametrize("op", OPS)
def test_the_extension_takes_these_arguments(op):
    """pybind11 writes the signature into the docstring."""
    signature = getattr(_core, op).__doc__.splitlines()[0]
    taken = re.findall(r"(\w+): ", signature)
    assert taken == [*OPS[op].names, "cpu_threads", "stream"]


def test_names_in_messages():
    def public(op, **options):
        return {name: shown for shown, name in OPS[op].arrays(OPS[op].names, **options).items()}

    attention = public("column_sparse_attention")
    assert attention["indices"] == "columns.indices"
    assert attention["rest_lse"] == "rest.lse"
    assert attention["lse"] == "lse"
    assert public("column_sparse_mlp", written=True)["out"] == "cache.output"
    assert public("column_sparse_fc2", written=True) == {"out": "out"}


def test_arguments_by_name():
    op = OPS["columns_to_mask"]
    assert op.arrange(mask=3, counts=2, indices=1) == (1, 2, 3)
    with pytest.raises(TypeError):
        op.arrange(indices=1, counts=2, masks=3)


def test_the_functions_are_those_of_the_list():
    public = {name for name in ck.__all__ if inspect.isfunction(getattr(ck, name))} - {"info"}
    assert public == OPS.keys() - {"columns_to_mask"}  # that one is ColumnLists.to_mask
    reads_lists = {
        op.name
        for op in OPS.values()
        for a in op.arguments
        if a.name == "counts" and not a.is_written
    }
    assert reads_lists == {op.name for op in OPS.values() if op.columns}

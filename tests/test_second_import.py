"""The package imported again in one process, as autoreload and test runners do."""

from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

START = """
import importlib, sys
import torch
import chipmunk_kernels as ck
q = torch.randn(1, 2, 70, 64)
expected = ck.dense_attention(q, q, q)[0]
"""
END = """
assert torch.equal(ck.dense_attention(q, q, q)[0], expected)
scores = torch.rand(2, 3, 50)
assert (ck.select_columns(scores, count=5).counts == 5).all()
try:
    ck.dense_attention(q.requires_grad_(), q, q)
except ck.UnsupportedError:
    pass
else:
    raise AssertionError
"""
SECOND_IMPORTS = {
    "reload": "importlib.reload(ck)",
    "reload of every module": """
for name in [name for name in sys.modules if name.startswith("chipmunk_kernels.")]:
    if not name.endswith("._core"):
        importlib.reload(sys.modules[name])
ck = importlib.reload(ck)
""",
    "purge, with compiled code that lives on": """
run = torch.compile(lambda x: ck.dense_attention(x, x, x)[0], fullgraph=True, backend="eager")
assert torch.equal(run(q), expected)
for name in [name for name in sys.modules if name.startswith("chipmunk_kernels")]:
    del sys.modules[name]
import chipmunk_kernels as ck
assert torch.equal(run(q), expected)
""",
    "purge of all but the extension": """
for name in [name for name in sys.modules if name.startswith("chipmunk_kernels")]:
    if not name.endswith("._core"):
        del sys.modules[name]
import chipmunk_kernels as ck
""",
    "other arguments": """
registry = torch.ops.chipmunk_kernels.__dict__["_registration"]
registry.schemas[0] += " "  # as if an edit had changed them
for name in [name for name in sys.modules if name.startswith("chipmunk_kernels")]:
    del sys.modules[name]
import chipmunk_kernels as ck
""",
}


@pytest.mark.parametrize("name", SECOND_IMPORTS)
def test_importing_again(name):
    program = START + SECOND_IMPORTS[name] + END
    subprocess.run([sys.executable, "-c", program], check=True)

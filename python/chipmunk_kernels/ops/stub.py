"""Writes the ops into `_core.pyi`, the extension's types: `python -m chipmunk_kernels.ops.stub`.

What stands in the stub above the mark is written by hand.
"""

from __future__ import annotations

from pathlib import Path

from chipmunk_kernels.ops.schemas import OPS, Op

PATH = Path(__file__).parents[1] / "_core.pyi"
_MARK = "# The ops, written by `python -m chipmunk_kernels.ops.stub`.\n"
_TYPES = {
    "Tensor": "Any",
    "Tensor?": "Any",
    "SymInt": "int",
    "SymInt?": "int | None",
    "float": "float",
    "float?": "float | None",
    "str": "str",
}


def stub(existing: str) -> str:
    """The whole stub, given the one that there is."""
    by_hand, _, _ = existing.partition(_MARK)
    return by_hand + _MARK + "".join(map(_function, OPS.values()))


def _function(op: Op) -> str:
    arguments = [f"{a.name}: {_TYPES[a.kind]}" for a in op.arguments]
    arguments += ["cpu_threads: int = 0", "stream: int | None = None"]
    return f"def {op.name}(\n    " + ",\n    ".join(arguments) + ",\n) -> None: ...\n"


if __name__ == "__main__":
    PATH.write_text(stub(PATH.read_text()))

"""Token orders: permutations that keep neighbours together, on numpy and torch."""

from __future__ import annotations

import numpy as np
import pytest

from chipmunk_kernels.token_order import TokenOrder

SHAPES = [(4, 8, 12), (5, 7, 9), (1, 1, 1), (3, 4, 4), (9, 2, 30)]


def coordinates(order: TokenOrder, shape: tuple[int, ...]) -> np.ndarray:
    """[grid tokens, dimensions] in the new order."""
    grid = order.permutation[~order.text_mask]
    return np.stack(np.unravel_index(grid - grid.min(), shape), axis=-1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", ["first", "last"])
@pytest.mark.parametrize("text_tokens", [0, 5])
def test_is_a_permutation_with_text_in_place(shape, text, text_tokens):
    order = TokenOrder.voxels(shape, text=text, text_tokens=text_tokens)
    tokens = int(np.prod(shape)) + text_tokens
    assert len(order) == tokens
    assert sorted(order.permutation.tolist()) == list(range(tokens))
    assert order.permutation[order.inverse].tolist() == list(range(tokens))
    assert order.text_mask.sum() == text_tokens
    where = np.flatnonzero(order.text_mask)
    first = 0 if text == "first" else tokens - text_tokens
    assert where.tolist() == list(range(first, first + text_tokens))
    assert order.permutation[where].tolist() == where.tolist()


def test_voxels_are_consecutive_and_row_by_row_inside():
    order = TokenOrder.voxels((8, 8, 8), (4, 4, 4))
    blocks = coordinates(order, (8, 8, 8)).reshape(8, 64, 3)
    inside = np.stack(np.indices((4, 4, 4)), axis=-1).reshape(64, 3)
    for block in blocks:
        assert (block - block.min(0)).tolist() == inside.tolist()
        assert (block.min(0) % 4).tolist() == [0, 0, 0]
    corners = [tuple(b.min(0) // 4) for b in blocks]
    assert corners == [
        (0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 1, 0), (1, 1, 1), (1, 0, 1), (1, 0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(12, 20, 28), (8, 12, 4), (4, 4, 12), (4, 12, 20)])
def test_consecutive_voxels_touch(shape):
    order = TokenOrder.voxels(shape)
    corners = coordinates(order, shape).reshape(-1, 64, 3).min(1) // 4
    assert (np.abs(np.diff(corners, axis=0)).sum(-1) == 1).all()


def test_a_query_group_is_three_voxels():
    where = coordinates(TokenOrder.voxels((12, 20, 28)), (12, 20, 28))
    for start in range(0, len(where), 192):
        group = where[start : start + 192]
        assert (group.max(0) - group.min(0) + 1).max() <= 12


@pytest.mark.parametrize("shape", [(12, 20, 28), (13, 21, 30)])
def test_query_groups_are_compacter_than_row_by_row(shape):
    def spread(where: np.ndarray) -> float:
        return float(np.mean([where[i : i + 192].std(0).sum() for i in range(0, len(where), 192)]))

    row_by_row = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=-1)
    assert spread(coordinates(TokenOrder.voxels(shape), shape)) < 0.6 * spread(row_by_row)


def test_patches_are_nested():
    order = TokenOrder.patches((16, 24), (8, 4), text_tokens=3)
    where = coordinates(order, (16, 24))
    for start in range(0, len(where), 64):
        assert len({tuple(c) for c in where[start : start + 64] // 8}) == 1
    for start in range(0, len(where), 16):
        assert len({tuple(c) for c in where[start : start + 16] // 4}) == 1
    outer = [tuple(c) for c in where[::64] // 8]
    assert outer == [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0)]
    assert order.permutation[:3].tolist() == [0, 1, 2]


def test_apply_and_restore_on_numpy():
    order = TokenOrder.patches((5, 6), (4, 2), text="last", text_tokens=4)
    x = np.random.default_rng(0).normal(size=(2, 34, 3)).astype(np.float32)
    y = order.apply(x)
    assert np.array_equal(y, x[:, order.permutation])
    assert np.array_equal(order.restore(y), x)
    z = order.apply(x.transpose(1, 0, 2), dim=0)
    assert np.array_equal(z, x.transpose(1, 0, 2)[order.permutation])


def test_apply_and_restore_on_torch():
    torch = pytest.importorskip("torch")
    order = TokenOrder.voxels((3, 5, 6), (2, 2, 2), text_tokens=4)
    x = torch.randn(2, 3, 94, 8)
    for _ in range(2):  # the second time from the copy kept for the device
        y = order.apply(x)
        assert torch.equal(y, x[:, :, torch.tensor(order.permutation)])
        assert torch.equal(order.restore(y), x)
    assert torch.equal(order.apply(x.transpose(1, 2), dim=1), order.apply(x).transpose(1, 2))


def test_does_not_import_torch():
    import subprocess
    import sys

    code = (
        "import sys, numpy; from chipmunk_kernels.token_order import TokenOrder;"
        "o = TokenOrder.voxels((4, 4, 5)); o.restore(o.apply(numpy.zeros((80, 2))));"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: TokenOrder.voxels((4, 4)),
            "TokenOrder.voxels: block: expected 2 positive extents, one per dimension of shape "
            "(4, 4), got (4, 4, 4)",
        ),
        (
            lambda: TokenOrder.voxels((4, 0, 4)),
            "TokenOrder.voxels: shape: expected positive extents, got (4, 0, 4)",
        ),
        (
            lambda: TokenOrder.voxels((4, 4, 4), text_tokens=-1),
            "TokenOrder.voxels: text_tokens: expected at least 0, got -1",
        ),
        (
            lambda: TokenOrder.voxels((4, 4, 4), text="middle"),  # type: ignore[arg-type]
            'TokenOrder.voxels: text: expected "first" or "last", got \'middle\'',
        ),
        (
            lambda: TokenOrder.patches((8, 8), (8, 3)),
            "TokenOrder.patches: sizes: expected each to divide the one before, got (8, 3)",
        ),
        (
            lambda: TokenOrder.patches((8, 8), ()),
            "TokenOrder.patches: sizes: expected at least one",
        ),
        (
            lambda: TokenOrder.patches((8, 8)).apply(np.zeros((2, 63, 3))),
            "TokenOrder.apply: x: expected 64 tokens in dimension -2, got shape [2, 63, 3]",
        ),
        (
            lambda: TokenOrder.patches((8, 8)).restore(np.zeros(64)),
            "TokenOrder.restore: x: expected 64 tokens in dimension -2, got shape [64]",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value) == message


def test_other_types_are_refused():
    with pytest.raises(TypeError) as error:
        TokenOrder.patches((8, 8)).apply([0] * 64)
    assert str(error.value) == (
        "TokenOrder.apply: x: expected a torch tensor or a numpy array, got list"
    )

"""What a scheme makes of a product, against plain loops in float64: both sides rounded as the runtime's kernels do."""

import numpy as np
import pytest
import torch

from compress.quantize.rounding import block_product, channel_product, round_rows


def rows(count: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Inputs of non-zero mean; the last row is small, and one has a block of zeros."""
    values = np.random.default_rng(seed).normal(0.7, 2.0, (count, columns))
    values[-1] *= 1e-3
    values[0, :32] = 0
    return torch.tensor(values, dtype=torch.float32)


def rounded_block(values: np.ndarray, largest: int) -> np.ndarray:
    """Integers of -largest..largest and their scale, multiplied again."""
    scale = np.abs(values).max() / largest
    return values if scale == 0 else np.array([round(value / scale) for value in values]) * scale


@pytest.mark.parametrize(("columns", "block_size"), [(96, 32), (70, 32), (33, 16), (128, 128), (5, 16)])
def test_inputs_are_rounded_by_row_and_block(columns: int, block_size: int) -> None:
    """Stops a scale of the whole row, and a last block that is shorter and takes what pads it."""
    inputs = rows(3, columns)
    found = round_rows(inputs, block_size).numpy()
    for row in range(3):
        for start in range(0, columns, block_size):
            part = slice(start, min(start + block_size, columns))
            expected = rounded_block(inputs[row, part].numpy().astype(np.float64), 127)
            np.testing.assert_allclose(found[row, part], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("columns", [64, 70])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_of_blocks_has_both_sides_rounded(bits: int, columns: int) -> None:
    """Stops a product whose inputs, or whose weights, are as they were."""
    inputs, weight = rows(4, columns), rows(9, columns, seed=1).T
    stored = np.empty((9, columns))
    for row, start in np.ndindex(9, -(-columns // 32)):
        part = slice(start * 32, min(start * 32 + 32, columns))
        values = weight.T[row, part].numpy().astype(np.float64)
        extreme = values[np.abs(values).argmax()]
        # 8 bits are symmetric; at 4 bits the extreme, with its sign, is the level -8.
        scale = abs(extreme) / 127 if bits == 8 else extreme / -8
        low, high = (-127, 127) if bits == 8 else (-8, 7)
        stored[row, part] = np.clip(np.rint(values / scale), low, high) * scale if scale else 0
    expected = round_rows(inputs, 32).numpy().astype(np.float64) @ stored.T
    found = block_product(inputs, weight, bits, 32).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_product_of_channels_has_one_grid_for_all_inputs() -> None:
    """Stops a grid by row, one without zero, and inputs that are multiplied unrounded."""
    inputs, weight = rows(4, 40), rows(6, 40, seed=1).T
    low, high = min(0.0, float(inputs.min())), max(0.0, float(inputs.max()))
    scale = (high - low) / 255
    zero = round(-low / scale)
    levels = np.clip(np.rint(inputs.numpy().astype(np.float64) / scale) + zero, 0, 255)
    stored = np.stack([rounded_block(row, 127) for row in weight.T.numpy().astype(np.float64)])
    np.testing.assert_allclose(
        channel_product(inputs, weight), (levels - zero) * scale @ stored.T, rtol=1e-4, atol=1e-4
    )

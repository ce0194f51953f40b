"""Products as the kernels round them: against loops in float64 over widths that blocks do not divide."""

import numpy as np
import pytest
import torch

from compress.quantize.blockwise import LIMITS, dequantize_blocks, fake_quantize_blocks, quantize_blocks
from compress.quantize.rounding import block_product, channel_product, round_rows


def problem(rows: int = 9, inputs: int = 330, outputs: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(rows, inputs, generator=draw) * 3 + 1, torch.randn(inputs, outputs, generator=draw) * 0.1


def rounded_block(values: np.ndarray, bits: int) -> np.ndarray:
    extreme = max(values, key=abs)
    scale = abs(extreme) / 127 if bits == 8 else extreme / -8
    return np.clip(np.rint(values / scale), *LIMITS[bits]) * scale if scale else values * 0


def in_blocks(rows: np.ndarray, bits: int, size: int) -> np.ndarray:
    parts = [[rounded_block(row[at : at + size], bits) for at in range(0, len(row), size)] for row in rows]
    return np.array([np.concatenate(part) for part in parts])


@pytest.mark.parametrize(("bits", "block_size"), [(4, 32), (8, 128)])
def test_a_product_of_blocks_rounds_both_sides(bits: int, block_size: int) -> None:
    """Stops blocks along the wrong axis, and inputs that share a scale with another row."""
    inputs, weight = problem()
    inputs[3] = 0
    exact = in_blocks(inputs.double().numpy(), 8, block_size) @ in_blocks(weight.T.double().numpy(), bits, block_size).T
    np.testing.assert_allclose(block_product(inputs, weight, bits, block_size), exact, atol=0.02, rtol=1e-3)
    np.testing.assert_allclose(
        round_rows(inputs, block_size), in_blocks(inputs.double().numpy(), 8, block_size), atol=1e-5
    )


def test_a_product_of_channels_has_one_grid_for_all_inputs() -> None:
    """Stops a grid without its zero point, and weights with a scale an input."""
    inputs, weight = problem()
    low, high = float(inputs.min()), float(inputs.max())
    step = (high - low) / 255
    zero = np.rint(-low / step)
    x = (np.clip(np.rint(inputs.double().numpy() / step) + zero, 0, 255) - zero) * step
    w = np.array([rounded_block(column, 8) for column in weight.T.double().numpy()])
    np.testing.assert_allclose(channel_product(inputs, weight), x @ w.T, atol=0.02, rtol=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_tried_is_what_would_be_stored(bits: int) -> None:
    """Stops a trial on other numbers than the integers stand for."""
    weight = problem()[1].T.contiguous().numpy()
    stored = dequantize_blocks(quantize_blocks(weight, bits, 64))
    np.testing.assert_array_equal(fake_quantize_blocks(weight, bits, 64), stored)


def normal_rows(count: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Inputs of non-zero mean; the last row is small, and one has a block of zeros."""
    values = np.random.default_rng(seed).normal(0.7, 2.0, (count, columns))
    values[-1] *= 1e-3
    values[0, :32] = 0
    return torch.tensor(values, dtype=torch.float32)


def nearest_in_block(values: np.ndarray, largest: int) -> np.ndarray:
    """Integers of -largest..largest and their scale, multiplied again."""
    scale = np.abs(values).max() / largest
    return values if scale == 0 else np.array([round(value / scale) for value in values]) * scale


@pytest.mark.parametrize(("columns", "block_size"), [(96, 32), (70, 32), (33, 16), (128, 128), (5, 16)])
def test_inputs_are_rounded_by_row_and_block(columns: int, block_size: int) -> None:
    """Stops a scale of the whole row, and a last block that is shorter and takes what pads it."""
    inputs = normal_rows(3, columns)
    found = round_rows(inputs, block_size).numpy()
    for row in range(3):
        for start in range(0, columns, block_size):
            part = slice(start, min(start + block_size, columns))
            expected = nearest_in_block(inputs[row, part].numpy().astype(np.float64), 127)
            np.testing.assert_allclose(found[row, part], expected, rtol=1e-5, atol=1e-9)

"""How much each channel of the residual stream carries, read off the outputs of the norms.

Minitron (arXiv 2407.14679): the L2 norm over conversations of the mean magnitude over tokens, summed over all norms.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]


class ChannelMagnitudes:
    """Of one norm: sums over conversations, batch by batch."""

    def __init__(self, width: int) -> None:
        self._squares = torch.zeros(width, dtype=torch.float64)

    def add(self, outputs: Tensor, mask: Tensor) -> None:
        """Add a batch of conversations: float [batch, tokens, width], and which positions count, [batch, tokens]."""
        counted = mask.to(outputs.dtype)[..., None]
        means = (outputs.abs() * counted).sum(dim=1) / counted.sum(dim=1)  # [batch, width]
        self._squares += means.double().square().sum(dim=0).cpu()

    @property
    def scores(self) -> Floats:
        """float64 [width]."""
        found: Floats = self._squares.sqrt().numpy()
        return found

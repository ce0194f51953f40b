"""The pruner: one model, ready to be pruned to any shape.

What ranks layers and units is measured once, on the uncut model, and serves every shape that is tried. A cut takes out
whole layers, slices out units, and repairs what is left in closed form.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from transformers import PreTrainedModel

from chitchat.data.dataset import ChatData
from chitchat.training.objective import fused_gelu
from compress.calibrate.batches import Batch, calibration_batches
from compress.prune.importance import Scores, score_units
from compress.prune.layers import keep_layers, removal_order
from compress.prune.refit import Sliced, refit
from compress.prune.slicing import slice_model
from serve.geometry import Geometry

# Units are ranked and refitted on more tokens than layers are tried on, since every trial of a layer is a run.
RANKING_TOKENS, LAYER_TOKENS, REFIT_TOKENS, TRIAL_TOKENS = 16_384, 2_048, 32_768, 8_192


@dataclass(frozen=True)
class PrunedModel:
    """A pruned model, refitted and not healed, and the numbers of the layers that stayed."""

    student: PreTrainedModel
    layers: list[int]


class Pruner:
    """Prunes copies of `model`; the same data, ranking and seed give the same weights."""

    def __init__(
        self, model: PreTrainedModel, data: ChatData, importance: str = "obs", refits: bool = True, seed: int = 0
    ) -> None:
        self.model = model
        self.importance, self.refits, self.seed = importance, refits, seed
        self._windows = data.windows("train", model.config.max_position_embeddings)
        self._pad_id = data.dialogue.pad_id
        self._order: list[int] = []
        self._scores: Scores | None = None

    def prune(self, shape: Geometry, refit_tokens: int = REFIT_TOKENS) -> PrunedModel:
        """A copy of the model in `shape` (of its vocabulary and positions)."""
        return self.prune_to_all([shape], refit_tokens)[0]

    def prune_to_all(self, shapes: Sequence[Geometry], refit_tokens: int = REFIT_TOKENS) -> list[PrunedModel]:
        """A copy of the model in each of the shapes; they are in memory together."""
        sliced = []
        for shape in shapes:
            layers = self.layers(shape.layers)
            kept = self.scores().of_layers(layers).keep(shape)
            sliced.append(Sliced(slice_model(keep_layers(self.model, layers), kept), layers, kept))
        if self.refits:
            with ExitStack() as fused:
                for model in (self.model, *(one.student for one in sliced)):
                    fused.enter_context(fused_gelu(model))
                refit(sliced, self.model, self.calibration(refit_tokens))
        return [PrunedModel(one.student, list(one.layers)) for one in sliced]

    def layers(self, keep: int) -> list[int]:
        """The `keep` layers that stay, ascending. Fewer layers are a part of more."""
        every = range(self.model.config.num_hidden_layers)
        count = len(every) - keep
        if len(self._order) < count:
            with fused_gelu(self.model):
                self._order = removal_order(self.model, self.calibration(LAYER_TOKENS), count, self._order)
        gone = self._order[:count]
        return [layer for layer in every if layer not in gone]

    def scores(self) -> Scores:
        """The ranking of the units of all layers."""
        if self._scores is None:
            batches = self.calibration(RANKING_TOKENS)
            with fused_gelu(self.model):
                self._scores = score_units(self.model, batches, self.importance, self.seed)
        return self._scores

    def calibration(self, tokens: int, seed: int | None = None) -> Sequence[Batch]:
        """Windows of training conversations, the same ones for the same seed (default: the pruner's)."""
        return calibration_batches(self._windows, self._pad_id, tokens, self.seed if seed is None else seed)

"""One pruning: what is pruned, who teaches, what was asked for, and where it keeps what is finished."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from chitchat.checkpoint import load_model, save_checkpoint
from chitchat.data.dataset import ChatData
from chitchat.lineage import LINEAGE, Stage, read_lineage
from chitchat.system.folder import staged_folder
from chitchat.training.distributed import Distributed
from chitchat.training.stopwatch import Stopwatch
from chitchat.training.workfolder import WorkFolder
from compress.distill.options import HealOptions
from compress.prune.options import PruneOptions
from compress.prune.pruner import Pruner

HEALING_BATCH = 4  # windows of an optimizer step


@dataclass(frozen=True)
class PruneSource:
    """A model with its tokenizer and the conversations in that tokenizer's ids."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    data: ChatData


@dataclass(frozen=True)
class PruneRun:
    """`source` is what is cut, `teacher` what it is healed from: the vocabulary and the context of both are trimmed.

    `folder` holds what is finished, `key` is what a run that is resumed must share. Under a launcher every process has
    one.
    """

    source: PruneSource
    teacher: PreTrainedModel
    options: PruneOptions
    folder: WorkFolder
    key: Mapping[str, Any]
    resume: bool = False
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def work(self) -> Path:
        """The path of the work folder."""
        return self.folder.path

    @property
    def distributed(self) -> Distributed:
        """The processes of the run."""
        return self.folder.distributed

    def pruner(self) -> Pruner:
        """What cuts the model."""
        options = self.options
        return Pruner(self.source.model, self.source.data, options.importance, not options.no_refit, options.seed)

    @property
    def ends(self) -> float | None:
        """When the healing ends, in seconds on the stopwatch; None where it is not by minutes."""
        return 60 * self.options.heal_minutes if self.options.heal_minutes else None

    @property
    def healing(self) -> HealOptions | None:
        """The whole healing, or none; one epoch where neither minutes nor epochs are asked for."""
        options = self.options
        if not options.heals:
            return None
        epochs = options.heal_epochs
        if epochs is None and options.heal_minutes is None:
            epochs = 1.0
        return HealOptions(
            heal_minutes=options.heal_minutes,
            heal_epochs=epochs,
            heal_loss=options.heal_loss,
            heal_labels=options.heal_labels,
            own_replies=options.own_replies,
            batch_size=HEALING_BATCH,
            seed=options.seed,
        )

    def store(self, folder: Path, model: PreTrainedModel, metrics: dict[str, Any]) -> None:
        """Write a model that `stored` finds, with figures."""

        def write() -> None:
            with staged_folder(folder, "checkpoint") as staging:
                save_checkpoint(staging, model, self.source.tokenizer, Stage("round", {}, 0, metrics=metrics))

        self.distributed.run_on_main(write)

    def stored(self, folder: Path) -> tuple[PreTrainedModel, dict[str, Any]] | None:
        """What `store` left; all processes see the same, also when one of them comes late."""
        if not self.distributed.broadcast((folder / LINEAGE).is_file()):
            return None
        return load_model(folder), dict(read_lineage(folder)[-1]["metrics"])

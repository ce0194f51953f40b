"""Pruning a model that is in memory: what the stage `prune` does between reading a checkpoint and writing one."""

import copy
import tempfile
from pathlib import Path

from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from chitchat.data.dataset import ChatData
from chitchat.training.stopwatch import Stopwatch
from compress.prune.options import PruneOptions
from compress.prune.rounds import plan_rounds, run_rounds
from compress.prune.stage import PruneSource, _check, _choose, _ends, _shape, _trim


def prune_loaded(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, data: ChatData, options: PruneOptions
) -> GPT2LMHeadModel:
    """A smaller model in float32 on the CPU; `model`, the teacher where it is healed, stays as it is.

    Raises `BadInput` for a shape that cannot be had, and for a data set that is not in the ids of `tokenizer`.
    """
    data.check_tokenizer(tokenizer, "the tokenizer")
    source = PruneSource(copy.deepcopy(model).to("cpu").float().eval(), tokenizer, data)
    _check(source.model, options)
    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="compress-prune-") as folder:
        work = Path(folder)
        with stopwatch.paused():
            trimmed, teacher = _trim(source, source.model, options, work)
        shape, _, pruner, healing = _choose(source.model, trimmed, teacher, options, None, work, False, stopwatch)
        rounds = plan_rounds(_shape(trimmed.model), shape, healing)
        healed = run_rounds(
            rounds, pruner, teacher, trimmed.data, tokenizer, work, False, {}, stopwatch, _ends(options)
        )
    return healed.student.eval()

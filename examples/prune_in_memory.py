"""A transformers model in, a smaller transformers model out; nothing is written but the data set.

    python examples/prune_in_memory.py CHECKPOINT CORPUS [KEEP]

CHECKPOINT is a folder or a hub id of a GPT-2 chat model, CORPUS what `compress data` reads, KEEP the share of the
parameters that stays (0.5). Parameters and shape are printed, before and after.
"""

import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import chitchat_compress as cc


def main(checkpoint: str, corpus: str, keep: str = "0.5") -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        data = cc.build_dataset(corpus, Path(folder) / "data", tokenizer=checkpoint)
        small = cc.prune_model(model, tokenizer, data, keep=float(keep))
    for name, one in (("before", model), ("after", small)):
        config = one.config
        print(
            f"{name}: {one.num_parameters():,} parameters, {config.n_layer} layers of {config.n_embd}, "
            f"FFN {config.n_inner or 4 * config.n_embd}"
        )


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])

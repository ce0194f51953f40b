"""Checkpoints as the three families publish them, with random weights, small shapes and made-up vocabularies.

Each function writes what a user of that family has on disk: which files, under which names, with which fields in
config.json and which names and types of tensors. Facts are from the published files and the code that wrote them:
GPT2-chitchat's `train.py` and README, DialoGPT's `demo.py`, `configs/` and `prepro.py`, openai/gpt-2's
`download_model.py`, and the hub's `gpt2`. The words are ours.
"""

import json
import pickle
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

SHAPE = {"n_layer": 3, "n_embd": 64, "n_head": 4}
CONTEXT = 96
TALKS = 240
HANZI = "你好吗我很天气今不错是的喜欢茶水看电影音乐去哪里玩明吃饭了没有在家上班下雨晴朗谢再见他她们都可以"
ENGLISH = [
    *("hello", "how", "are", "you", "fine", "thanks", "what", "about", "the", "rain"),
    *("and", "sun", "tea", "music", "film", "good", "yes", "no", "maybe", "see", "tomorrow"),
]


@dataclass(frozen=True)
class StandIn:
    """What a user has: the checkpoint, a vocabulary elsewhere (None: beside the weights), and conversations."""

    checkpoint: Path
    tokenizer: Path | None
    corpus: Path


def chitchat(folder: Path, seed: int = 0) -> StandIn:
    """GPT2-chitchat: `model/epoch40/{config.json,pytorch_model.bin}`, `vocab/vocab.txt`, `data/train.pkl`.

    The vocabulary has `<S>` and `<T>`, Roman numerals and Greek signs, pieces (`##a`), small letters alone, and no
    [MASK]. `train.pkl` is a list of conversations as ids, `[CLS] turn [SEP] turn [SEP]`.
    """
    vocabulary = _chinese_vocabulary()
    _write(folder / "vocab" / "vocab.txt", "\n".join(vocabulary) + "\n")
    checkpoint = folder / "model" / "epoch40"
    config = _old_config(len(vocabulary)) | {
        "gradient_checkpointing": False,
        "model_type": "gpt2",
        "output_past": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 400}},
        "tokenizer_class": "BertTokenizer",
        "transformers_version": "4.2.0",
        "use_cache": True,
    }
    _write(checkpoint / "config.json", json.dumps(config, indent=2))
    torch.save(_with_masks(_weights(len(vocabulary), seed), masked_bias=True), checkpoint / "pytorch_model.bin")
    numbers = {token: index for index, token in enumerate(vocabulary)}
    talks = [
        [numbers["[CLS]"], *(i for turn in turns for i in (*(numbers[sign] for sign in turn), numbers["[SEP]"]))]
        for turns in chinese_turns(TALKS, seed)
    ]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "train.pkl").write_bytes(pickle.dumps(talks))
    return StandIn(checkpoint, folder / "vocab" / "vocab.txt", folder / "data" / "train.pkl")


def dialogpt(folder: Path, seed: int = 0) -> StandIn:
    """DialoGPT: `models/medium/{config.json,vocab.json,merges.txt,medium_ft.pkl}` and a TSV of its `prepro.py`.

    The weights are a legacy state dict in float16 with `lm_head.decoder.weight`; the configuration has seven fields
    and no model_type.
    """
    checkpoint = folder / "models" / "medium"
    vocabulary, merges = _byte_level()
    _write(checkpoint / "vocab.json", json.dumps(vocabulary))
    _write(checkpoint / "merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    named = ("initializer_range", "layer_norm_epsilon", "n_ctx", "n_embd", "n_head", "n_layer", "n_positions")
    config = _old_config(len(vocabulary))
    _write(checkpoint / "config.json", json.dumps({name: config[name] for name in (*named, "vocab_size")}, indent=2))
    weights = {name: tensor.half() for name, tensor in _with_masks(_weights(len(vocabulary), seed)).items()}
    weights["lm_head.decoder.weight"] = weights.pop("lm_head.weight")
    torch.save(weights, checkpoint / "medium_ft.pkl", _use_new_zipfile_serialization=False)
    rows = []
    for turns in english_turns(TALKS, seed):
        weighted = [f"{float(number % 2):.1f} {turn}" for number, turn in enumerate(turns)]
        rows.append(" EOS ".join(weighted[:-1]) + "\t" + weighted[-1])
    _write(folder / "data" / "train.tsv", "\n".join(rows) + "\n")
    return StandIn(checkpoint, None, folder / "data" / "train.tsv")


def gpt2(folder: Path, seed: int = 0) -> StandIn:
    """The hub's `gpt2`: bare names of tensors with causal masks, a tokenizer in all its forms; ShareGPT beside it.

    `117M/` is openai/gpt-2's own layout: hparams.json, encoder.json, vocab.bpe and TensorFlow weights.
    """
    checkpoint, original = folder / "gpt2", folder / "models" / "117M"
    vocabulary, merges = _byte_level()
    for home, names in ((checkpoint, ("vocab.json", "merges.txt")), (original, ("encoder.json", "vocab.bpe"))):
        _write(home / names[0], json.dumps(vocabulary))
        _write(home / names[1], "#version: 0.2\n" + "\n".join(merges) + "\n")
    sizes = {
        "n_vocab": len(vocabulary),
        "n_ctx": CONTEXT,
        **{name: SHAPE[name] for name in ("n_embd", "n_head", "n_layer")},
    }
    _write(original / "hparams.json", json.dumps(sizes))
    _write(original / "model.ckpt.index", "")
    _write(original / "checkpoint", 'model_checkpoint_path: "model.ckpt"\n')
    config = _old_config(len(vocabulary)) | {
        "model_type": "gpt2",
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    }
    _write(checkpoint / "config.json", json.dumps(config, indent=2))
    end = config["eos_token_id"]
    _write(
        checkpoint / "generation_config.json",
        json.dumps({"bos_token_id": end, "eos_token_id": end, "_from_model_config": True}),
    )
    _write(checkpoint / "tokenizer_config.json", json.dumps({"model_max_length": CONTEXT}))
    weights = _with_masks(_weights(len(vocabulary), seed))
    del weights["lm_head.weight"]
    bare = {name.removeprefix("transformer."): tensor.clone() for name, tensor in weights.items()}
    save_file(bare, checkpoint / "model.safetensors", {"format": "pt"})
    sides = ("human", "gpt")
    talks = [
        {
            "id": f"talk_{number}",
            "conversations": [{"from": sides[place % 2], "value": turn} for place, turn in enumerate(turns)],
        }
        for number, turns in enumerate(english_turns(TALKS, seed))
    ]
    _write(folder / "sharegpt.json", json.dumps(talks))
    return StandIn(checkpoint, None, folder / "sharegpt.json")


FAMILIES = {"chitchat": chitchat, "dialogpt": dialogpt, "gpt2": gpt2}


def chinese_turns(count: int, seed: int) -> list[list[str]]:
    """Made-up conversations of two to five turns in the signs of the vocabulary."""
    draw = random.Random(seed)
    return [
        ["".join(draw.choices(HANZI, k=draw.randint(2, 9))) for _ in range(draw.randint(2, 5))] for _ in range(count)
    ]


def english_turns(count: int, seed: int) -> list[list[str]]:
    """Made-up conversations of two to five turns."""
    draw = random.Random(seed)
    return [
        [" ".join(draw.choices(ENGLISH, k=draw.randint(1, 8))) for _ in range(draw.randint(2, 5))] for _ in range(count)
    ]


def _chinese_vocabulary() -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    return [
        *("[PAD]", *(f"[unused{number}]" for number in range(1, 8)), "[UNK]", "[CLS]", "[SEP]", "<S>", "<T>"),
        *dict.fromkeys("！？，。、Ⅱ ⅣΩα℃".replace(" ", "") + HANZI),
        *letters,
        *(f"##{letter}" for letter in letters),
        *("wifi", "ok", "qq", "cafe"),
    ]


def _byte_level() -> tuple[dict[str, int], list[str]]:
    """A byte-level BPE with `<|endoftext|>` as its last token, and its merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((" ".join(turns) for turns in english_turns(200, 1)), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = {**model["vocab"], "<|endoftext|>": len(model["vocab"])}
    return vocabulary, [" ".join(pair) for pair in model["merges"]]


def _old_config(vocab_size: int) -> dict[str, Any]:
    """The fields that transformers 2 to 4 wrote for a GPT-2."""
    last = vocab_size - 1 if vocab_size > 300 else 50256  # GPT2-chitchat keeps GPT-2's number, past its own table
    return {
        **SHAPE,
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": last,
        "embd_pdrop": 0.1,
        "eos_token_id": last,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "n_ctx": CONTEXT,
        "n_positions": CONTEXT,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "vocab_size": vocab_size,
    }


def _weights(vocab_size: int, seed: int) -> dict[str, torch.Tensor]:
    config = GPT2Config(vocab_size=vocab_size, n_positions=CONTEXT, bos_token_id=0, eos_token_id=0, **SHAPE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(GPT2LMHeadModel(config).state_dict())


def _with_masks(weights: dict[str, torch.Tensor], masked_bias: bool = False) -> dict[str, torch.Tensor]:
    """The weights with the causal masks that old versions stored beside them."""
    mask = torch.tril(torch.ones(CONTEXT, CONTEXT, dtype=torch.uint8)).view(1, 1, CONTEXT, CONTEXT)
    masks = {f"transformer.h.{layer}.attn.bias": mask.clone() for layer in range(SHAPE["n_layer"])}
    if masked_bias:
        masks |= {f"transformer.h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(SHAPE["n_layer"])}
    return {**weights, **masks}


def _write(path: Path, text: str | Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(text), encoding="utf-8")

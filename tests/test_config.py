"""config.json of any age describes a GPT-2, and nothing else of it is taken over."""

import json
from pathlib import Path

import pytest
from transformers import GPT2Config

from chitchat.architectures.gpt2_config import DEFAULTS
from chitchat.checkpoint import load_model, read_config
from chitchat.errors import BadInput
from chitchat.formats.config import model_config

SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 300, "n_positions": 64}


def test_the_defaults_are_those_of_gpt2config() -> None:
    """A field that is left out must mean what transformers means by it, in every version that we install."""
    theirs = GPT2Config().to_dict()
    assert {name: theirs[name] for name in DEFAULTS} == DEFAULTS
    assert model_config({"model_type": "gpt2"}, "here")["vocab_size"] == 50257


@pytest.mark.parametrize(
    "more",
    [
        {"return_dict": False},
        {"torchscript": True},
        {"output_attentions": True, "output_hidden_states": True},
        {"use_cache": False},
        {"temperature": 0.7, "top_k": 8, "max_length": 40, "do_sample": False, "repetition_penalty": 1.3},
        {"task_specific_params": {"text-generation": {"do_sample": True}}, "num_labels": 3},
        {"attn_implementation": "flash_attention_2", "dtype": "float16", "torch_dtype": "float16"},
        {"tokenizer_class": None, "id2label": {"0": "a"}, "gradient_checkpointing": True, "output_past": True},
        {"problem_type": "single_label_classification", "is_decoder": True, "prune_heads": {}, "pruned_heads": {}},
    ],
)
def test_switches_of_output_and_sampling_change_nothing(more: dict, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`return_dict: false` broke five stages; a temperature in config.json broke the last step of three."""
    record = json.loads((tiny_checkpoint / "config.json").read_text())
    for path in tiny_checkpoint.iterdir():
        if path.name != "lineage.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**record, **more}))
    model, plain = load_model(tmp_path), load_model(tiny_checkpoint)
    assert model.config.to_dict() == plain.config.to_dict()
    assert model.generation_config.to_dict() == plain.generation_config.to_dict()
    model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    "names",
    [
        {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
        {"max_position_embeddings": "n_positions"},
        {"n_ctx": "n_positions"},
    ],
)
def test_other_names_of_the_sizes_are_known(names: dict[str, str]) -> None:
    """GPT2Config takes them, and the files of 2019 have n_ctx alone in places."""
    record = {name: value for name, value in SIZES.items() if name not in names.values()}
    record |= {other: SIZES[name] for other, name in names.items()}
    config = model_config({"model_type": "gpt2", **record}, "here")
    assert {name: config[name] for name in SIZES} == SIZES


def test_a_file_of_2019_names_no_model_type_and_is_known_by_its_sizes(capfd: pytest.CaptureFixture[str]) -> None:
    """DialoGPT's own configs/ were refused as «a None model»."""
    config = model_config({**SIZES, "n_ctx": 64, "initializer_range": 0.02, "layer_norm_epsilon": 1e-5}, "here")
    assert config["n_layer"] == 2
    with pytest.raises(BadInput, match="an unnamed model; compress works on GPT-2"):
        model_config({"hidden_size": 32, "num_hidden_layers": 2}, "here")
    with pytest.raises(BadInput, match="'openai-gpt' model"):
        model_config({**SIZES, "model_type": "openai-gpt"}, "here")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_layer": "2"}, "n_layer '2'"),
        ({"n_layer": 2.0}, "n_layer '2.0'"),
        ({"n_embd": 0}, "n_embd '0'"),
        ({"n_embd": -32}, "n_embd '-32'"),
        ({"vocab_size": True}, "vocab_size 'True'"),
        ({"n_inner": [1]}, "n_inner"),
        ({"n_embd": 30}, "no multiple of n_head 4"),
        ({"attn_pdrop": 1.5}, "attn_pdrop '1.5'"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon"),
        ({"tie_word_embeddings": "yes"}, "write true or false"),
        ({"activation_function": "silu"}, "activation_function 'silu' has no operator"),
        ({"activation_function": {"a": 1}}, "activation_function"),
        ({"add_cross_attention": True}, "cross-attention"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ],
)
def test_a_value_that_no_gpt2_has_is_named_before_any_work(changes: dict, says: str) -> None:
    """Each was a KeyError or a TypeError, or was found by the export after hours of training."""
    with pytest.raises(BadInput, match=says) as caught:
        model_config({"model_type": "gpt2", **SIZES, **changes}, "here")
    assert "\n" not in str(caught.value)


TANH = {"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new"}


@pytest.mark.parametrize(("given", "taken"), [*TANH.items(), ("gelu", "gelu"), ("relu", "relu")])
def test_the_activations_that_the_graph_knows_are_taken(given: str, taken: str) -> None:
    """Names of one function are one function."""
    assert (
        model_config({"model_type": "gpt2", **SIZES, "activation_function": given}, "x")["activation_function"] == taken
    )


def test_special_ids_that_lie_past_the_table_are_left_out() -> None:
    """GPT2-chitchat's config names GPT-2's 50256 in a vocabulary of 13,317; transformers warns of it at every save."""
    config = model_config(
        {"model_type": "gpt2", **SIZES, "bos_token_id": 50256, "eos_token_id": [2], "pad_token_id": -1}, "x"
    )
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (None, 2, None)


@pytest.mark.parametrize("content", ["", "[]", "null", "{" * 100_000, "{\xff"])
def test_a_config_that_is_no_object_is_one_line(content: str, tmp_path: Path) -> None:
    """A truncated download ended in a traceback."""
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(BadInput, match=r"config\.json") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)

"""Slicing: the Linear view, torch-pruning's cut, and an independent index-select oracle."""

import random
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.architectures.registry import architecture_of
from compress.prune.slicing import Kept, slice_model

LAYERS, HEADS, HEAD_DIM, FFN, VOCAB = 3, 4, 8, 80, 101


def make_model(tied: bool = True, **changes: object) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    geometry = {"vocab_size": VOCAB, "n_layer": LAYERS, "n_embd": HEADS * HEAD_DIM, "n_head": HEADS, "n_inner": FFN}
    model = GPT2LMHeadModel(GPT2Config(**geometry, n_positions=24, tie_word_embeddings=tied, **changes)).eval()
    # transformers starts biases at 0 and gains at 1; a slip in cutting those would not show.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def pick(heads: int, ffn: int, seed: int = 0) -> Kept:
    """Random units, other ones in every layer."""
    draw = random.Random(seed)
    return Kept(
        channels=sorted(draw.sample(range(HEADS * HEAD_DIM), heads * HEAD_DIM)),
        heads=[sorted(draw.sample(range(HEADS), heads)) for _ in range(LAYERS)],
        neurons=[sorted(draw.sample(range(FFN), ffn)) for _ in range(LAYERS)],
    )


def oracle(model: GPT2LMHeadModel, kept: Kept) -> dict[str, torch.Tensor]:
    """The sliced state dict by index_select on GPT-2's own tensors, without torch-pruning or the view."""
    channels = torch.tensor(kept.channels)
    width = HEADS * HEAD_DIM
    out = {}
    for name, value in model.state_dict().items():
        if ".h." in name:
            layer = int(name.split(".")[2])
            columns = torch.tensor([head * HEAD_DIM + i for head in kept.heads[layer] for i in range(HEAD_DIM)])
            qkv = torch.cat([columns, columns + width, columns + 2 * width])
            neurons = torch.tensor(kept.neurons[layer])
            rows, cols = {"attn.c_attn": (channels, qkv), "attn.c_proj": (columns, channels)}.get(
                ".".join(name.split(".")[3:5]),
                (channels, neurons) if "c_fc" in name else (neurons, channels) if "mlp" in name else (None, channels),
            )
            value = value[cols] if value.ndim == 1 else value[rows][:, cols]
        else:
            value = value[..., channels]
        out[name] = value
    return out


def logits(model: GPT2LMHeadModel, tokens: int = 17) -> torch.Tensor:
    ids = torch.randint(0, VOCAB, (2, tokens), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("tied", [True, False])
def test_the_view_computes_the_model_and_turns_back_into_it(tied: bool) -> None:
    """Stops a transposed weight or a mixed-up q, k, v: the cut would be exact, of another model."""
    model = make_model(tied)
    known = architecture_of(model)
    view = known.linear_view(model)
    assert (logits(view.model) - logits(model)).abs().max() == 0
    back = known.build(model.config, known.linear_view_weights(view))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in back.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("heads", "ffn"), [(4, 48), (3, 80), (2, 31), (1, 1)])
def test_torch_pruning_cuts_what_index_select_cuts(tied: bool, heads: int, ffn: int) -> None:
    """Stops a dependency that the graph missed (it maps a fused qkv to the query alone, silently)."""
    model, kept = make_model(tied), pick(heads, ffn)
    cut = slice_model(model, kept)
    expected = oracle(model, kept)
    assert set(cut.state_dict()) == set(expected)
    for name, value in cut.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert (cut.lm_head.weight is cut.transformer.wte.weight) == tied


def test_the_config_says_every_size() -> None:
    """Stops `n_inner` left at None, which means four times the new width."""
    model = make_model(activation_function="gelu")
    cut = slice_model(model, pick(2, 48))
    assert (cut.config.n_embd, cut.config.n_head, cut.config.n_inner, cut.config.n_layer) == (16, 2, 48, LAYERS)
    assert cut.config.n_embd == cut.config.n_head * HEAD_DIM
    assert cut.config.activation_function == "gelu"
    assert (model.config.n_embd, model.config.n_head, model.config.n_inner) == (32, 4, FFN)


def test_cut_heads_and_neurons_equal_masked_ones() -> None:
    """Stops a cut that changes more than it removes: neurons and heads whose way out is zero give the same logits."""
    model, kept = make_model(), pick(4, 40)
    kept = Kept(range(HEADS * HEAD_DIM), kept.heads, kept.neurons)
    masked = make_model()
    with torch.no_grad():
        for block, neurons in zip(masked.transformer.h, kept.neurons, strict=True):
            gone = [index for index in range(FFN) if index not in neurons]
            block.mlp.c_proj.weight[gone] = 0
    torch.testing.assert_close(logits(slice_model(model, kept)), logits(masked), rtol=0, atol=1e-6)


def test_heads_without_output_can_be_cut_from_the_graph_alone() -> None:
    """Stops a head cut that takes another head's query or key: zero rows of c_proj mask exactly the cut heads."""
    model, width = make_model(), HEADS * HEAD_DIM
    heads = [[0, 2, 3], [1, 2, 3], [0, 1, 3]]
    dead = sorted(random.Random(2).sample(range(width), HEAD_DIM))
    alive = [channel for channel in range(width) if channel not in dead]
    cut = slice_model(model, Kept(alive, heads, [range(FFN)] * LAYERS))
    # The masked twin: a LayerNorm divides by the number of channels, so it is run with the cut model's own norms.
    masked = make_model()
    with torch.no_grad():
        for block, kept in zip(masked.transformer.h, heads, strict=True):
            gone = [head * HEAD_DIM + i for head in range(HEADS) if head not in kept for i in range(HEAD_DIM)]
            block.attn.c_proj.weight[gone] = 0
    norms = [module for module in masked.modules() if isinstance(module, torch.nn.LayerNorm)]
    hooks = [norm.register_forward_hook(norm_over(torch.tensor(alive))) for norm in norms]
    expected = logits(masked)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(logits(cut), expected, rtol=0, atol=1e-6)


def norm_over(channels: torch.Tensor):
    """A hook that normalises over `channels` only and leaves zeros elsewhere."""

    def hook(module: torch.nn.LayerNorm, inputs: tuple[torch.Tensor], _output: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(inputs[0])
        out[..., channels] = torch.nn.functional.layer_norm(
            inputs[0][..., channels], (len(channels),), module.weight[channels], module.bias[channels], module.eps
        )
        return out

    return hook


@pytest.mark.parametrize("tied", [True, False])
def test_a_cut_model_reloads_bit_identical(tmp_path: Path, tied: bool) -> None:
    """Stops a folder that transformers loads with other sizes, fresh weights or an untied head."""
    cut = slice_model(make_model(tied), pick(3, 33))
    cut.save_pretrained(tmp_path)
    back, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(key != "lm_head.weight" for key in report["missing_keys"])
    assert torch.equal(logits(back.eval()), logits(cut))
    assert (back.lm_head.weight.data_ptr() == back.transformer.wte.weight.data_ptr()) == tied


def test_the_original_is_not_touched() -> None:
    """Stops a teacher that is sliced along with its student."""
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    slice_model(model, pick(2, 16))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_ragged_layers_are_refused() -> None:
    """Stops layers of different sizes, which no GPT2Config can describe."""
    kept = pick(2, 16)
    with pytest.raises(ValueError, match="different numbers"):
        slice_model(make_model(), Kept(kept.channels, kept.heads, [[0], [0, 1], [0]]))
    with pytest.raises(ValueError, match="channels"):
        slice_model(make_model(), Kept([0, 1], kept.heads, kept.neurons))

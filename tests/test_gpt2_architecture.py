"""GPT-2 behind the protocol of architectures: names, shapes, sublayers and the columns of their units."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.architectures.registry import architecture_of, count_parameters, geometry_of
from chitchat.architectures.states import last_hidden
from serve.geometry import Geometry
from tests.support.sublayers import out_inputs, rows_of


def small(**fields: object) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    shape = {"n_layer": 3, "n_embd": 24, "n_head": 4, "n_inner": 40, "vocab_size": 50, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**shape | fields)).eval()


def test_every_parameter_of_a_model_is_named_with_its_shape() -> None:
    """A matrix that the protocol forgets would be neither counted nor quantized."""
    for tied in (True, False):
        model = small(tie_word_embeddings=tied)
        known, geometry = architecture_of(model), geometry_of(model)
        shapes = {
            f"{matrix.module}.weight": (
                (matrix.columns, matrix.rows) if known.is_transposed(matrix.module) else (matrix.rows, matrix.columns)
            )
            for matrix in known.matrices(geometry)
        }
        shapes |= {name: (length,) for name, length in known.vectors(geometry)}
        assert shapes == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        assert count_parameters(geometry) == model.num_parameters()


def test_the_sublayers_add_up_to_the_model() -> None:
    """Walking the stream is the forward pass, or everything that walks measures another model."""
    model = small()
    known, ids = architecture_of(model), torch.randint(50, (2, 9))
    with torch.no_grad():
        stream = known.embed(model, ids)
        for sublayer in known.all_sublayers(model):
            stream = stream + sublayer(stream)
        torch.testing.assert_close(known.final_norm(model)[1](stream), last_hidden(model, ids))
        torch.testing.assert_close(known.head(model)[1](last_hidden(model, ids)), model(ids).logits)


def test_a_units_columns_are_all_that_its_output_hangs_on() -> None:
    """With every other column at zero a head's context is what it was; with its own at zero it is nothing."""
    model = small()
    known, ids = architecture_of(model), torch.randint(50, (1, 9))
    for index, units in ((0, [3, 1]), (1, [30, 2])):
        sublayer = known.sublayers(model, 1)[index]
        rows, (columns,) = rows_of(sublayer, units), sublayer.in_columns(units)
        with torch.no_grad():
            stream = known.embed(model, ids)
            before = out_inputs(sublayer, stream)[..., rows]
            projection = sublayer.in_projs[0]
            others = torch.ones(projection.weight.shape[1], dtype=torch.bool)
            others[columns] = False
            projection.weight[:, others] = 0
            projection.bias[others] = 0
            torch.testing.assert_close(out_inputs(sublayer, stream)[..., rows], before)
            projection.weight.zero_()
            projection.bias.zero_()
            assert not out_inputs(sublayer, stream).any()


def test_the_value_columns_reach_the_out_projection_linearly() -> None:
    """Smoothing rescales them by what it finds in the out-projection's inputs."""
    model = small()
    known, ids = architecture_of(model), torch.randint(50, (1, 9))
    attention, feed_forward = known.sublayers(model, 2)
    assert feed_forward.linear_value is None
    value = attention.linear_value
    assert value is not None
    with torch.no_grad():
        stream = known.embed(model, ids)
        before = out_inputs(attention, stream)
        scale = torch.rand(24) + 0.5
        value.projection.weight[:, value.columns] *= scale
        value.projection.bias[value.columns] *= scale
        torch.testing.assert_close(out_inputs(attention, stream), before * scale)
    assert [attention.part(role).columns for role in ("query", "key", "value")] == [
        slice(0, 24), slice(24, 48), slice(48, 72)
    ]  # fmt: skip


def test_a_configuration_is_made_of_a_geometry_and_read_back() -> None:
    """Every axis arrives under its name, or a pruned model is another one."""
    known = architecture_of(Geometry(1, 1, 8, 8, 8, 8))
    geometry = Geometry(layers=2, heads=3, head_dim=8, ffn=20, vocab=31, context=17, tied=False)
    assert geometry_of(known.new_config(geometry)) == geometry
    config = GPT2Config(n_layer=7, n_embd=64, n_head=2, vocab_size=99, layer_norm_epsilon=1e-3)
    changed = known.configure(config, geometry)
    assert geometry_of(changed) == geometry
    assert (changed.layer_norm_epsilon, config.n_layer) == (1e-3, 7)


def test_attention_scales_survive_a_model_built_from_weights(tiny_model: GPT2LMHeadModel) -> None:
    """A de-quantized model left them out, so quantizing such a checkpoint looked like a great loss."""
    ids = torch.arange(20)[None]
    fields = {**tiny_model.config.to_dict(), "scale_attn_by_inverse_layer_idx": True}
    built = architecture_of(tiny_model).build(GPT2Config.from_dict(fields), tiny_model.state_dict())
    eager = GPT2LMHeadModel._from_config(GPT2Config.from_dict(fields), attn_implementation="eager").eval()
    eager.load_state_dict(tiny_model.state_dict())
    with torch.no_grad():
        assert torch.equal(built(ids).logits, eager(ids).logits)
        assert not torch.allclose(built(ids).logits, tiny_model(ids).logits, atol=1e-6)

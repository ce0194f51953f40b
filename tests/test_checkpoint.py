"""Checkpoints: ordinary Hugging Face folders in, ordinary Hugging Face folders out, nothing that runs code."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from chitchat.checkpoint import fit_tokenizer, load_model, load_tokenizer, read_config, save_checkpoint
from chitchat.dialogue import encode_text, open_dialogue
from chitchat.errors import BadInput
from chitchat.lineage import Stage, read_lineage


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may harm."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def foreign(checkpoint: Path) -> Path:
    """The same checkpoint as if it came from elsewhere."""
    (checkpoint / "lineage.json").unlink()
    return checkpoint


def test_a_checkpoint_is_what_transformers_loads_bit_for_bit(
    tiny_checkpoint: Path, tiny_model: GPT2LMHeadModel
) -> None:
    """Users take our checkpoints to other tools: no class, no loader of ours may be needed."""
    theirs = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    ours = load_model(tiny_checkpoint)
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor)
        assert torch.equal(ours.state_dict()[name], tensor)
    assert ours.lm_head.weight is ours.transformer.wte.weight
    assert AutoTokenizer.from_pretrained(tiny_checkpoint).get_vocab() == load_tokenizer(tiny_checkpoint).get_vocab()
    assert [stage["stage"] for stage in read_lineage(tiny_checkpoint)] == ["train"]
    assert not list(tiny_checkpoint.glob("*.bin")), "no pickle"
    modes = {path.stat().st_mode for path in tiny_checkpoint.iterdir()}
    assert len(modes) == 1, "a server under another user could read some of the files only"


def test_half_precision_weights_are_computed_in_float32(checkpoint: Path) -> None:
    """A float16 checkpoint on a CPU is slow and rounds; it is widened at the door."""
    AutoModelForCausalLM.from_pretrained(checkpoint).half().save_pretrained(foreign(checkpoint))
    assert load_model(checkpoint).dtype == torch.float32


def test_a_foreign_pytorch_bin_is_read_as_plain_tensors(checkpoint: Path, tiny_model: GPT2LMHeadModel) -> None:
    """GPT2-chitchat and DialoGPT ship pytorch_model.bin."""
    (foreign(checkpoint) / "model.safetensors").unlink()
    torch.save(tiny_model.state_dict(), checkpoint / "pytorch_model.bin")
    assert torch.equal(load_model(checkpoint).transformer.wte.weight, tiny_model.transformer.wte.weight)


class _Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_a_pytorch_bin_that_carries_code_is_refused_and_not_run(checkpoint: Path, tmp_path: Path) -> None:
    """A pickle can run anything; loading a stranger's model must not."""
    (foreign(checkpoint) / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": _Bomb(tmp_path / "trace")}, checkpoint / "pytorch_model.bin")
    with pytest.raises(BadInput, match="asks to run code"):
        load_model(checkpoint)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_truncated_or_missing_file_of_ours_is_named(checkpoint: Path, name: str) -> None:
    """The lineage knows each file's hash."""
    whole = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=name.replace(".", r"\.")):
        load_model(checkpoint)
    (checkpoint / name).unlink()
    with pytest.raises(BadInput, match=name.replace(".", r"\.")):
        load_model(checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_truncated_foreign_file_is_one_line(checkpoint: Path, name: str) -> None:
    """Without a lineage the parser finds the damage; its traceback stays inside."""
    foreign(checkpoint)
    (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:100])
    with pytest.raises(BadInput, match=str(checkpoint)) as caught:
        load_model(checkpoint)
    assert "\n" not in str(caught.value)


def _set(checkpoint: Path, **changes: object) -> None:
    path = foreign(checkpoint) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "'llama' model; compress works on GPT-2"),
        ({"add_cross_attention": True}, "cross-attention"),
        ({"n_embd": 64}, "do not fit config.json|cannot be read"),
        ({"n_layer": 3}, "do not fit config.json"),
        ({"quantization_config": {"scheme": "w8", "quant_method": "compress"}}, "already quantized"),
    ],
)
def test_a_model_that_cannot_be_compressed_is_refused_by_name(checkpoint: Path, changes: dict, message: str) -> None:
    """Half-loaded weights (a missing layer at random values) used to pass as a model."""
    _set(checkpoint, **changes)
    with pytest.raises(BadInput, match=message):
        load_model(checkpoint)


def test_a_folder_that_is_no_checkpoint_and_a_path_that_is_none(tmp_path: Path) -> None:
    """A typing error in a path must not become a question to the hub."""
    with pytest.raises(BadInput, match=r"no config\.json"):
        read_config(tmp_path)
    with pytest.raises(BadInput, match="no such checkpoint"):
        read_config(str(tmp_path / "absent"))
    with pytest.raises(BadInput, match="no/such-model: no such folder here, and the model hub cannot be reached"):
        read_config("no/such-model")
    with pytest.raises(BadInput, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_larger_than_the_table_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """An id past the table reads memory that is not there."""
    tokenizer = load_tokenizer(tiny_checkpoint)
    GPT2Config(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    assert fit_tokenizer(tokenizer, tmp_path, "here") is tokenizer
    GPT2Config(vocab_size=len(tokenizer) - 1).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"the tokenizer has .* tokens"):
        fit_tokenizer(tokenizer, tmp_path, "here")


def test_attention_scales_that_fused_attention_ignores_are_computed(checkpoint: Path) -> None:
    """transformers' fused attention leaves out `scale_attn_by_inverse_layer_idx` without a word."""
    ids = torch.arange(20)[None]
    plain = load_model(checkpoint)(ids).logits
    _set(checkpoint, scale_attn_by_inverse_layer_idx=True)
    scaled = load_model(checkpoint)(ids).logits
    assert not torch.allclose(plain, scaled, atol=1e-6)


def test_a_checkpoint_from_elsewhere_leaves_with_the_dialogue_format_in_its_tokenizer(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A pruned DialoGPT could be talked to by our tools only: no template told others how turns are written."""
    (foreign(checkpoint) / "chat_template.jinja").unlink()
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.chat_template is None
    dialogue = open_dialogue(tokenizer, "here")
    assert "here: names no dialogue format; by its special tokens it is taken for chitchat" in capfd.readouterr().err
    (tmp_path / "saved").mkdir()
    save_checkpoint(
        tmp_path / "saved", load_model(checkpoint), tokenizer, Stage("prune", {}, seed=0), parent=checkpoint
    )
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "fine"}]
    assert list(saved.apply_chat_template(messages, return_dict=False)) == dialogue.encode(
        encode_text(saved, ["hello", "fine"])
    )
    assert open_dialogue(saved, "there") == dialogue
    assert capfd.readouterr().err == ""

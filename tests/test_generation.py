"""Generation settings that transformers refuses to save cost nobody the work of hours."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import GenerationConfig

from chitchat.checkpoint import load_model
from chitchat.formats.generation import savable_generation

REFUSED = {
    "temperature without sampling": {"temperature": 0.7, "top_p": 0.9},
    "sampling that is off": {"do_sample": False, "top_k": 8, "typical_p": 0.9},
    "beams that are one": {"num_beams": 1, "early_stopping": True, "length_penalty": 0.8},
    "returns more than it has": {"num_return_sequences": 3},
    "a length of nothing": {"max_new_tokens": 0, "repetition_penalty": 1.2},
}


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint as if it came from elsewhere."""
    shutil.copytree(tiny_checkpoint, tmp_path / "it")
    (tmp_path / "it" / "lineage.json").unlink()
    return tmp_path / "it"


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_loaded_can_be_saved(case: str, checkpoint: Path, tmp_path: Path) -> None:
    """train, prune and quantize computed everything, then ended with exit code 1; --resume as well."""
    given = REFUSED[case]
    (checkpoint / "generation_config.json").write_text(json.dumps(given))
    model = load_model(checkpoint)
    model.generation_config.validate(strict=True)
    model.save_pretrained(tmp_path / "saved")
    kept = {name: value for name, value in model.generation_config.to_dict().items() if name in given}
    assert all(given[name] == value for name, value in kept.items() if value is not None)
    found, said = savable_generation(checkpoint)
    left_out = [name for name in given if getattr(found, name) != given[name]]
    assert left_out, "the case is refused by transformers, so something must go"
    (line,) = said
    assert line.startswith(f"{checkpoint}/generation_config.json: {', '.join(left_out)} left out")


def test_settings_that_can_be_saved_stay(checkpoint: Path) -> None:
    """A user's sampling settings went away with the repair."""
    given = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2, "max_new_tokens": 30}
    (checkpoint / "generation_config.json").write_text(json.dumps({**given, "eos_token_id": 2}))
    found, said = savable_generation(checkpoint)
    assert found is not None
    assert {name: getattr(found, name) for name in given} == given
    assert said == []


@pytest.mark.parametrize("content", ["{", "[1]", "", "\xff"])
def test_a_file_that_cannot_be_read_is_left_out_with_a_word(content: str, checkpoint: Path) -> None:
    """It decides nothing that our stages do, so it must not stop them."""
    (checkpoint / "generation_config.json").write_bytes(content.encode("latin-1"))
    found, (said,) = savable_generation(checkpoint)
    assert found is None
    assert "generation_config.json" in said
    model = load_model(checkpoint)
    assert model.generation_config.to_dict() == GenerationConfig.from_model_config(model.config).to_dict()

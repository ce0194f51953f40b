"""Reading and writing checkpoints: ordinary Hugging Face folders with safetensors and a lineage.

A checkpoint is a local folder, a file of weights with its `config.json` beside it, or a hub id, of any age and tool
(`chitchat.formats`). Whatever is read can be saved again. Unknown architectures, and files whose reading would run
code, are refused. Repairs and assumptions are told on stderr.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chitchat.architectures.registry import architecture_of
from chitchat.dialogue import dialogue_of, set_chat_template
from chitchat.errors import BadInput
from chitchat.formats.config import model_config, read_json
from chitchat.formats.generation import savable_generation
from chitchat.formats.hub import fetch_model, looks_like_hub_id
from chitchat.formats.kinds import refuse_other_kinds
from chitchat.formats.weights import read_weights, weight_files
from chitchat.lineage import Stage, verify_lineage, write_lineage
from chitchat.system.notices import announce_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def locate(source: str | Path, weights: bool = True) -> Path:
    """The local folder, or file of weights, of a checkpoint; a hub id is fetched, without its weights if `weights` is
    false. Raises `BadInput` for a missing path, a hub id that cannot be fetched, and for anything but a checkpoint."""
    path = _local_path(source, weights, "no such checkpoint folder")
    refuse_other_kinds(path)
    return path


def _local_path(source: str | Path, weights: bool, missing: str) -> Path:
    path = Path(source).expanduser()
    if path.exists():
        return path
    if isinstance(source, Path) or not looks_like_hub_id(source):
        raise BadInput(f"{source}: {missing}")
    return fetch_model(source, weights)


def read_config(source: str | Path) -> dict[str, Any]:
    """The model's fields of `config.json` with defaults, after the lineage is verified; `quantization_config` is kept.

    Raises `BadInput` for a folder that is not a checkpoint, was altered, or is of another architecture.
    """
    path = locate(source, weights=False)
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        if path.is_file():
            raise BadInput(f"{path}: there is no config.json beside it; put the model's there")
        raise BadInput(
            f"{path}: is not a checkpoint (no config.json); give a folder that compress or transformers saved"
        )
    verify_lineage(folder)
    record = read_json(folder / "config.json")
    config = model_config(record, source)
    if "model_type" not in record:
        found = architecture_of(config)
        sizes = ", ".join(found.telltale)
        announce_once(f"{source}: config.json names no model_type; by its sizes ({sizes}) it is a {found.title}")
    return config


def load_model(source: str | Path) -> "PreTrainedModel":
    """The model of a checkpoint in float32 on the CPU, in eval mode; its head is tied unless the weights have another.

    Raises `BadInput` for a folder that is missing, incomplete, altered, quantized, or of another architecture, and for
    weights that are a pickle with code, do not fit config.json, or are not all finite.
    """
    config = read_config(source)
    if "quantization_config" in config:
        quantization = config["quantization_config"]
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        if method != "compress":
            raise BadInput(f"{source}: was quantized by {method or 'another tool'}; give the float checkpoint")
        scheme = quantization.get("scheme")
        raise BadInput(f"{source}: is already quantized ({scheme}); give the checkpoint that it was made from")
    path = locate(source)
    files = [path] if path.is_file() else weight_files(path)
    if not files:
        names = "model.safetensors or pytorch_model.bin"
        raise BadInput(f"{source}: holds no weights ({names}); fetch the checkpoint again")
    if files[0].name not in ("model.safetensors", "pytorch_model.bin") and len(files) == 1 and path.is_dir():
        announce_once(f"{source}: its weights are read from {files[0].name}")
    weights, tied, notes = read_weights(files, config["tie_word_embeddings"], architecture_of(config))
    folder = path if path.is_dir() else path.parent
    generation, more = savable_generation(folder)
    for note in (*notes, *more):
        announce_once(note)
    return _assembled(source, {**config, "tie_word_embeddings": tied}, weights, generation)


def _assembled(
    source: str | Path, config: dict[str, Any], weights: dict[str, Any], generation: Any
) -> "PreTrainedModel":
    """The model. Raises `BadInput` unless the weights are exactly those of the configuration."""
    import torch

    architecture = architecture_of(config)
    described = architecture.to_config(config)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in architecture.new_model(described).state_dict().items()}
    if described.tie_word_embeddings:
        del shapes[f"{architecture.head_name}.weight"]
    missing = [name for name in shapes if name not in weights]
    left_over = [name for name in weights if name not in shapes]
    others = [
        f"{name} {list(weights[name].shape)} for {list(shape)}"
        for name, shape in shapes.items()
        if name in weights and weights[name].shape != shape
    ]
    found = (("missing", missing), ("left over", left_over), ("of another shape", others))
    if reason := "; ".join(f"{what} {', '.join(names[:2])}" for what, names in found if names):
        raise BadInput(f"{source}: the weights do not fit config.json ({reason}); fetch the checkpoint again")
    with torch.random.fork_rng(devices=[]):
        return architecture.build(described, weights, generation)


def load_tokenizer(source: str | Path) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of a checkpoint or of any folder with one, fitted by `fit_tokenizer`. Raises `BadInput`."""
    from chitchat.formats.tokenizer_files import read_tokenizer

    folder = tokenizer_folder(source)
    return fit_tokenizer(read_tokenizer(folder), folder, str(source))


def tokenizer_folder(source: str | Path) -> Path:
    """The folder where the tokenizer of `source` belongs; a hub id is fetched. Raises `BadInput`."""
    path = _local_path(source, weights=False, missing="no such folder; give the one that holds the tokenizer")
    return path if path.is_dir() else path.parent


def fit_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path, where: str) -> "PreTrainedTokenizerFast":
    """The tokenizer without appended special tokens that have no row in the table of the checkpoint in `folder`.

    It is returned as it is if the folder is not a checkpoint. Raises `BadInput` if other tokens have no row.
    """
    from chitchat.formats.tokenizer_files import without_rows

    if not (folder / "config.json").is_file():
        return tokenizer
    rows = model_config(read_json(folder / "config.json"), folder)["vocab_size"]
    past = sorted(token for token, index in tokenizer.get_vocab().items() if index >= rows)
    if not past:
        return tokenizer
    fitted = without_rows(tokenizer, rows)
    if fitted is None:
        raise BadInput(
            f"{where}: the tokenizer has {len(tokenizer)} tokens and the model's table {rows} rows; "
            "give the tokenizer that the model was trained with (--tokenizer)"
        )
    announce_once(f"{where}: {', '.join(past)} left out, since the model's table has {rows} rows and none for it")
    return fitted


def save_checkpoint(
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    stage: Stage,
    parent: str | Path | None = None,
) -> None:
    """Write model, tokenizer and lineage into `folder`, an empty staging folder.

    A tokenizer without a chat template gets that of its dialogue format.
    """
    from chitchat.formats.tokenizer_files import save_tokenizer

    if tokenizer.chat_template is None:
        set_chat_template(tokenizer, dialogue_of(tokenizer).family)
    model.config.architectures = [architecture_of(model).class_name]
    save_model(model, folder)
    save_tokenizer(tokenizer, folder)
    known = Path(parent) if parent is not None and Path(parent).is_dir() else None
    write_lineage(folder, stage, parent=known)


def save_model(model: "PreTrainedModel", folder: Path) -> None:
    """Write weights and configuration into `folder`, without a progress bar."""
    with no_progress_bar():
        model.save_pretrained(folder)


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """A context in which transformers draws no progress bars: it also does if stderr is not a terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

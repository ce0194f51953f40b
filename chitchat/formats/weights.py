"""The tensors of a checkpoint, renamed to those of its model.

They are read from safetensors (whole or sharded), from `pytorch_model.bin` of any age, or from a state dict under
another name, as in DialoGPT (`*_ft.pkl`). Pickles are read by `torch.load(weights_only=True)`, which runs no code. A
tensor that is neither a weight nor a stored mask is left out with a notice.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chitchat.architectures.protocol import Architecture
from chitchat.errors import BadInput, one_line
from chitchat.formats.config import read_json

if TYPE_CHECKING:
    from torch import Tensor

# Safetensors first: if a folder has both, they are the same weights.
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_OTHERS = ("*.safetensors", "*.bin", "*.pkl", "*.pt", "*.pth")
# Files of the Trainer and of compress that hold other tensors.
_NO_WEIGHTS = re.compile(r"(optimizer|scheduler|scaler|rng_state.*|training_args|.*\.quantized|adapter_model)\.[a-z]+")
# Keys under which training scripts store the state dict beside other state.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
# Prefixes of every name by launchers, compilers and wrapping modules.
_PREFIXES = ("module.", "_orig_mod.")


def weight_files(folder: Path) -> list[Path]:
    """The files of weights of a checkpoint folder; [] if there are none.

    Raises `BadInput` for a missing shard, and for several files that could be the weights.
    """
    for whole, index in zip(_WHOLE, _SHARDED, strict=True):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            return _shards(folder, index)
    for pattern in _OTHERS:
        found = [path for path in sorted(folder.glob(pattern)) if not _NO_WEIGHTS.fullmatch(path.name)]
        if len(found) > 1:
            names = ", ".join(path.name for path in found[:4])
            raise BadInput(f"{folder}: holds several files of weights ({names}); give one of them, {found[0]}")
        if found:
            return found
    return []


def _shards(folder: Path, index: str) -> list[Path]:
    named = read_json(folder / index).get("weight_map")
    if not isinstance(named, Mapping) or not named or not all(isinstance(name, str) for name in named.values()):
        raise BadInput(f"{folder / index}: has no weight_map of files; fetch the checkpoint again")
    names = sorted(set(named.values()))
    for name in names:
        if Path(name).name != name:
            raise BadInput(f"{folder / index}: lists {name}, which is outside the folder; fetch the checkpoint again")
        if not (folder / name).is_file():
            raise BadInput(f"{folder / name}: missing, although {index} lists it; fetch the checkpoint again")
    return [folder / name for name in names]


def read_weights(
    files: Sequence[Path], tied: bool, architecture: Architecture
) -> tuple[dict[str, "Tensor"], bool, list[str]]:
    """The weights in float32 by their names in the architecture's model, whether the head is tied, and notices.

    `tied` is the setting in config.json. A head that differs from the table is kept in any case; one that equals it is
    left out if it is tied. Raises `BadInput` for a file that cannot be read, that contains code or another model, and
    for a tensor with numbers that are not finite.
    """
    where = files[0] if len(files) == 1 else files[0].parent
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _read_file(file)
    named = _named(tensors, where, architecture)
    notices = _left_out_notices(named, where, architecture)
    weights = {name: tensor for name, tensor in named.items() if architecture.is_weight(name)}
    table, title = f"{architecture.table_name}.weight", architecture.title
    if table not in weights:
        raise BadInput(f"{where}: holds no weights of a {title} (no {table}); give the checkpoint of a {title} model")
    weights = _checked_numbers(weights, where)
    tied, head_notices = _settle_head(weights, tied, where, architecture)
    return weights, tied, [*notices, *head_notices]


def _read_file(file: Path) -> dict[str, "Tensor"]:
    """The tensors of safetensors or of a pickle. Raises `BadInput` for anything that the loaders raise."""
    import pickle

    import torch
    from safetensors.torch import load_file

    try:
        safe = file.suffix == ".safetensors"
        found: Any = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(found, Mapping):
            raise ValueError(f"holds a {type(found).__name__} and no tensors by name")
        wrapper = next((name for name in _WRAPPERS if isinstance(found.get(name), Mapping)), None)
        tensors = found if wrapper is None else found[wrapper]
        return {str(name): tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    except MemoryError as error:
        raise BadInput(f"{file}: does not fit into memory; use a machine with more") from error
    except Exception as error:  # SafetensorError, OSError, EOFError, KeyError, …
        if any(isinstance(cause, pickle.UnpicklingError) for cause in _causes(error)):
            reason = "its weights are a pickle that asks to run code or is damaged"
            raise BadInput(f"{file}: {reason}; only safetensors and plain tensors are read") from error
        raise BadInput(f"{file}: cannot be read ({one_line(error)}); fetch the file again") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes: loaders wrap each other's errors."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _named(tensors: Mapping[str, "Tensor"], where: Path, architecture: Architecture) -> dict[str, "Tensor"]:
    """The tensors under their current names, without prefixes."""
    prefixes = (*_PREFIXES, *architecture.wrapper_prefixes)
    stripped = {_stripped(name, prefixes): tensor for name, tensor in tensors.items()}
    if len(stripped) < len(tensors):
        raise BadInput(f"{where}: holds a tensor twice, with and without a prefix; save the model's state dict alone")
    return {architecture.rename(name): tensor for name, tensor in stripped.items()}


def _stripped(name: str, prefixes: Sequence[str]) -> str:
    while prefix := next((prefix for prefix in prefixes if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def _left_out_notices(names: Collection[str], where: Path, architecture: Architecture) -> list[str]:
    """A notice on tensors that no chat model has. Raises `BadInput` if the model would not be the same without them."""
    title, head_bias = architecture.title, f"{architecture.head_name}.bias"
    others = [name for name in names if not (architecture.is_weight(name) or architecture.is_buffer(name))]
    if any("lora_" in name for name in names):
        raise BadInput(f"{where}: has LoRA weights beside the model's; merge them first (PEFT's merge_and_unload)")
    if head_bias in others:
        raise BadInput(
            f"{where}: its head has a bias ({head_bias}), unlike a {title}; give the checkpoint of a {title}"
        )
    if not others:
        return []
    more = "" if len(others) <= 3 else f" and {len(others) - 3} more"
    return [f"{where}: {', '.join(others[:3])}{more} left out, since a {title} chat model has no such weights"]


def _checked_numbers(weights: Mapping[str, "Tensor"], where: Path) -> dict[str, "Tensor"]:
    """The weights in float32. Raises `BadInput` for integers, and for numbers that are not finite."""
    import torch

    checked = {}
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise BadInput(f"{where}: {name} has {kind} numbers, so the model is quantized; give the float checkpoint")
        tensor = tensor.float().contiguous()
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise BadInput(
                f"{where}: {name} has {bad:,} of {tensor.numel():,} numbers that are NaN or infinite; "
                "the training of this checkpoint diverged, give an earlier one"
            )
        checked[name] = tensor
    return checked


def _settle_head(
    weights: dict[str, "Tensor"], tied: bool, where: Path, architecture: Architecture
) -> tuple[bool, list[str]]:
    """Whether the head is tied, and a notice if config.json says otherwise; a tied head is removed from `weights`."""
    import torch

    name = f"{architecture.head_name}.weight"
    head, table = weights.get(name), weights[f"{architecture.table_name}.weight"]
    if head is None:
        if tied:
            return True, []
        raise BadInput(
            f"{where}: config.json says that the head is not tied (tie_word_embeddings false), but there is no {name}; "
            'fetch the checkpoint again, or write "tie_word_embeddings": true if the table is the head'
        )
    if tied and head.shape == table.shape and torch.equal(head, table):
        del weights[name]
        return True, []
    if not tied:
        return False, []
    return False, [f"{where}: {name} is not the table, so it is kept, although config.json ties them"]

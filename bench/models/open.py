"""Any model that is measured, described, or talked to: a checkpoint, a quantized checkpoint, a bundle, or a hub id.

`open_model` recognises which and reads the cheap facts: shape, parameters, bytes, vocabulary, dialogue. Weights are
loaded only by `load()` and `generator()`, which for a bundle is the runtime that ships. Nothing is timed here.
"""

import struct
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.models.handle import ModelHandle
from bench.models.torch import CHECKPOINT, QUANTIZED, CheckpointModel
from chitchat.architectures.registry import count_parameters, geometry_of
from chitchat.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from chitchat.generate import TorchGenerator
    from serve.dialogue import Dialogue
    from serve.geometry import Geometry

# What another machine needs of a checkpoint folder; notes, curves and corpora that lie beside it do not count.
_SHIPPED = (
    *("config.json", "generation_config.json", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"),
)


def open_model(spec: str, dialogue: str | None = None, tokenizer: str | None = None) -> ModelHandle:
    """Recognise `spec` and verify it. Raises `BadInput` for what is no model of ours or was altered.

    `dialogue` is the family of a checkpoint that does not say its own, `tokenizer` that of one whose vocabulary lies
    elsewhere.
    """
    folder = Path(spec).expanduser()
    if (folder / "bundle.json").exists():
        for option, value in (("--dialogue", dialogue), ("--tokenizer", tokenizer)):
            if value is not None:
                raise BadInput(f"{option} {value}: {spec} is a bundle, which has its own from its export; leave it out")
        from bench.models.bundle import BundleHandle

        return BundleHandle(spec, folder)
    from chitchat.checkpoint import locate, read_config

    config = read_config(spec)
    kind = QuantizedHandle if "quantization_config" in config else CheckpointHandle
    return kind(spec, locate(spec), config, dialogue, tokenizer)


def for_missing(spec: str, tokenizer: str | None) -> str | None:
    """--tokenizer for a model that holds none of its own, where several are given; None for one that does."""
    if tokenizer is None:
        return None
    from chitchat.checkpoint import tokenizer_folder
    from chitchat.formats.tokenizer_files import has_tokenizer

    return None if has_tokenizer(tokenizer_folder(spec)) else tokenizer


class CheckpointHandle(ModelHandle):
    """A GPT-2 checkpoint, computed by torch in float32: a Hugging Face folder, or a file of weights in one."""

    runtime_kind = CHECKPOINT

    def __init__(
        self,
        spec: str,
        path: Path,
        config: dict[str, Any],
        family: str | None = None,
        tokenizer_option: str | None = None,
    ) -> None:
        super().__init__(spec, path if path.is_dir() else path.parent)
        self.path = path  # the folder, or the file that its weights are in
        self.config = config
        self.family = family
        self.tokenizer_option = tokenizer_option

    @property
    def runtime(self) -> str:
        return "torch fp32"

    @cached_property
    def geometry(self) -> "Geometry":
        """That in config.json; the weights must fit it, whatever they tie."""
        return geometry_of(self.config)

    @cached_property
    def stored_geometry(self) -> "Geometry":
        """That of the weights. Where we wrote config.json it tells the truth, and nothing is read.

        Of a checkpoint from elsewhere the weights are read for it: its config.json may tie what is not. Raises
        `BadInput` for weights that are not there, damaged, or do not fit.
        """
        return self.geometry if self.lineage() else geometry_of(self.torch_model())

    @property
    def parameters(self) -> int:
        return count_parameters(self.stored_geometry)

    @property
    def weight_bytes(self) -> int:
        return sum(_payload_bytes(path) for path in self.weight_files)

    @property
    def file_bytes(self) -> int:
        return _shipped_bytes(self.folder) + sum(path.stat().st_size for path in self.weight_files)

    @property
    def weight_files(self) -> list[Path]:
        """The files that the weights are read from."""
        from chitchat.formats.weights import weight_files

        return [self.path] if self.path.is_file() else weight_files(self.folder)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The fast tokenizer of the checkpoint."""
        from chitchat.tokenizer import tokenizer_of

        return tokenizer_of(self.folder, self.tokenizer_option)

    @cached_property
    def dialogue(self) -> "Dialogue":
        from chitchat.dialogue import dialogue_of_model, open_dialogue

        found = open_dialogue(self.tokenizer, self.spec, self.family)
        return dialogue_of_model(found, self.tokenizer, self.config["vocab_size"], self.spec)

    def tokenizer_json(self) -> str:
        return str(self.tokenizer.backend_tokenizer.to_str())

    def torch_model(self) -> "PreTrainedModel":
        """The model in float32, with its weights."""
        from chitchat.checkpoint import load_model

        model = load_model(self.path)
        if not self.lineage():
            self.__dict__["stored_geometry"] = geometry_of(model)  # which need not read the weights again
        return model

    def load(self, threads: int | None = None) -> CheckpointModel:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        return CheckpointModel(self.torch_model())

    def generator(self, threads: int | None = None, device: str | None = None) -> "TorchGenerator":
        from chitchat.generate import TorchGenerator

        return TorchGenerator(self.torch_model().to(torch_device(device)), self.dialogue, threads=threads)


class QuantizedHandle(CheckpointHandle):
    """A quantized checkpoint; torch computes it after de-quantizing, so its speed is not that of what ships."""

    runtime_kind = QUANTIZED

    @property
    def runtime(self) -> str:
        return f"torch, de-quantized {self.config['quantization_config'].get('scheme', 'integers')}"

    def torch_model(self) -> "PreTrainedModel":
        from compress.quantize.checkpoint import load_quantized

        return load_quantized(self.folder).dequantized_model()

    @property
    def weight_files(self) -> list[Path]:
        from compress.quantize.checkpoint import WEIGHTS

        return [self.folder / WEIGHTS]


def torch_device(device: str | None) -> str:
    """The device that a checkpoint runs on. Raises `BadInput` for one that is not there."""
    if device not in (None, "cpu", "cuda"):
        raise BadInput(f"--device {device}: no such device; give cpu or cuda")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise BadInput("--device cuda: torch finds no CUDA GPU on this machine; use --device cpu")
    return device or "cpu"


def _shipped_bytes(folder: Path) -> int:
    """Bytes of the files beside the weights that another machine needs: configuration and tokenizer."""
    return sum((folder / name).stat().st_size for name in _SHIPPED if (folder / name).is_file())


def _payload_bytes(path: Path) -> int:
    """Bytes of the tensors in a weight file: a safetensors file less its header."""
    size = path.stat().st_size
    if path.suffix != ".safetensors":
        return size
    with path.open("rb") as file:
        (header,) = struct.unpack("<Q", file.read(8))
    return size - 8 - int(header)

"""Any model that is measured, told, or talked to: a checkpoint, a quantized checkpoint, a bundle, or a hub id.

`open_model` recognises which and reads the cheap facts: shape, parameters, bytes, vocabulary, dialogue. Weights are
loaded only by `load()` and `generator()`, which for a bundle is the runtime that ships. Nothing is timed here.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from bench.files import payload_bytes, shipped_bytes, weight_files
from bench.measured import MeasuredModel
from chitchat.errors import BadInput


def open_model(spec: str, dialogue: str | None = None) -> MeasuredModel:
    """Recognise `spec` and verify it. Raises `BadInput` for what is no model of ours or was altered.

    `dialogue` is the family of a checkpoint that does not say its own.
    """
    folder = Path(spec).expanduser()
    if (folder / "bundle.json").exists():
        if dialogue is not None:
            raise BadInput(f"--dialogue {dialogue}: {spec} is a bundle, whose format was fixed at export; leave it out")
        from bench.bundle import BundleModel

        return BundleModel(spec, folder)
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{spec}: is a file, not a model; give a checkpoint folder, a bundle folder or a hub id")
    if not folder.exists():
        folder = _fetch(spec)
    return _checkpoint(spec, folder, dialogue)


def _checkpoint(spec: str, folder: Path, dialogue: str | None) -> MeasuredModel:
    from chitchat.checkpoint import read_config

    config = read_config(folder)
    kind = QuantizedModel if "quantization_config" in config else CheckpointModel
    return kind(spec, folder, config, dialogue)


def _fetch(spec: str) -> Path:
    """The local folder of a hub model, holding just the files that the loaders take."""
    from transformers.utils import cached_file

    from chitchat.checkpoint import load_model, load_tokenizer, read_config

    read_config(spec)
    load_model(spec)
    load_tokenizer(spec)
    return Path(str(cached_file(spec, "config.json"))).parent


class CheckpointModel(MeasuredModel):
    """A Hugging Face GPT-2 folder, computed by torch in float32."""

    kind: ClassVar[str] = "checkpoint"

    def __init__(self, spec: str, folder: Path, config: dict[str, Any], family: str | None = None) -> None:
        super().__init__(spec, folder)
        self.config = config
        self.family = family

    @property
    def runtime(self) -> str:
        return "torch fp32"

    @cached_property
    def shape(self) -> Any:
        """The `compress.prune.shape.Shape` in config.json."""
        from compress.prune.shape import Shape

        return Shape.of(self.config)

    @property
    def geometry(self) -> dict[str, int]:
        shape = self.shape
        sizes = {name: getattr(shape, name) for name in ("layers", "width", "heads", "ffn", "vocab")}
        return {**sizes, "context": shape.positions}

    @property
    def parameters(self) -> int:
        return int(self.shape.parameters)

    @property
    def weight_bytes(self) -> int:
        return sum(payload_bytes(path) for path in weight_files(self.folder))

    @property
    def file_bytes(self) -> int:
        return shipped_bytes(self.folder)

    @cached_property
    def tokenizer(self) -> Any:
        """The fast tokenizer of the checkpoint."""
        from chitchat.checkpoint import load_tokenizer

        return load_tokenizer(self.folder)

    @cached_property
    def dialogue(self) -> Any:
        from chitchat.dialogue import open_dialogue

        return open_dialogue(self.tokenizer, self.spec, self.family)

    def tokenizer_json(self) -> str:
        return str(self.tokenizer.backend_tokenizer.to_str())

    def torch_model(self) -> Any:
        """The weights as a `GPT2LMHeadModel` in float32."""
        from chitchat.checkpoint import load_model

        return load_model(self.folder)

    def load(self, threads: int | None = None) -> Any:
        import torch

        from bench.quality.runtime import TorchRuntime

        if threads is not None:
            torch.set_num_threads(threads)
        return TorchRuntime(self.torch_model())

    def generator(self, threads: int | None = None, device: str | None = None) -> Any:
        from chitchat.generate import TorchGenerator

        return TorchGenerator(self.torch_model().to(torch_device(device)), self.dialogue, threads=threads)


class QuantizedModel(CheckpointModel):
    """A quantized checkpoint; torch computes it after de-quantizing, so its speed is not that of what ships."""

    kind: ClassVar[str] = "quantized"

    @property
    def runtime(self) -> str:
        return f"torch, de-quantized {self.config['quantization_config'].get('scheme', 'integers')}"

    def torch_model(self) -> Any:
        from compress.quantize.checkpoint import load_quantized

        return load_quantized(self.folder).dequantized_model()


def torch_device(device: str | None) -> str:
    """The device that a checkpoint runs on. Raises `BadInput` for one that is not there."""
    if device not in (None, "cpu", "cuda"):
        raise BadInput(f"--device {device}: no such device; give cpu or cuda")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise BadInput("--device cuda: torch finds no CUDA GPU on this machine; use --device cpu")
    return device or "cpu"

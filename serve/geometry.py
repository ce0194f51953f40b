"""The geometry of a decoder: one torch-free type from config.json to bundle.json."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# In this order in bundle.json, in every one of them.
FIELDS = ("layers", "heads", "head_dim", "width", "ffn", "vocab", "context")


@dataclass(frozen=True)
class Geometry:
    """Counts, and sizes in numbers (not bytes). Two geometries with the same numbers may belong to two families.

    heads, kv_heads  attention heads, and those of them that have keys and values of their own (a divisor)
    head_dim         numbers a head; `width` is the residual stream's and need not be `heads` * `head_dim`
    ffn              units of a feed-forward
    vocab, context   rows of the token table; positions that a model reads
    tied             whether the head is the token table
    architecture     which family it is a geometry of: `model_type` of config.json

    A `width` of 0 becomes `heads` * `head_dim`, `kv_heads` of 0 become `heads`.
    """

    layers: int
    heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    width: int = 0
    kv_heads: int = 0
    tied: bool = True
    architecture: str = "gpt2"

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", self.width or self.heads * self.head_dim)
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)

    def with_heads(self, heads: int) -> "Geometry":
        """The same with so many heads; key-value heads and width keep their share of a head.

        Raises ValueError for a number of heads of which these are no whole numbers.
        """
        width, kv_heads = self.width * heads / self.heads, self.kv_heads * heads / self.heads
        if width % 1 or kv_heads % 1 or heads < 1:
            raise ValueError(f"{heads} heads of {self}")
        return replace(self, heads=heads, width=int(width), kv_heads=int(kv_heads))

    @property
    def kv_head_dim(self) -> int:
        """Numbers a head takes in the cache: onnxruntime's attention takes multiples of 8; zeros fill up the rest."""
        return -(-self.head_dim // 8) * 8

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the float32 KV cache that one token takes."""
        return 2 * 4 * self.layers * self.kv_heads * self.kv_head_dim

    @property
    def name(self) -> str:
        """The shape in one word: `5x320-ffn288`."""
        return f"{self.layers}x{self.width}-ffn{self.ffn}"

    def __str__(self) -> str:
        return f"{self.layers} layers x {self.width} wide ({self.heads} heads), FFN {self.ffn}"

    def as_json(self) -> dict[str, Any]:
        """The object of bundle.json: `FIELDS`, and what is not as in GPT-2 (a runtime that does not know it is old)."""
        values = {name: getattr(self, name) for name in FIELDS}
        others: dict[str, Any] = {} if self.kv_heads == self.heads else {"kv_heads": self.kv_heads}
        if not self.tied:
            others["tied"] = False
        if self.architecture != Geometry.architecture:
            others["architecture"] = self.architecture
        return values | others

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Geometry":
        """Read `as_json` back. Raises ValueError with one phrase that names the field."""
        sizes = {name: record.get(name) for name in FIELDS} | {"kv_heads": record.get("kv_heads", record.get("heads"))}
        for name, value in sizes.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}, not a positive number")
        tied, architecture = record.get("tied", True), record.get("architecture", Geometry.architecture)
        if type(tied) is not bool or not isinstance(architecture, str):
            raise ValueError(f"tied is {tied!r} and architecture {architecture!r}, not a switch and a name")
        geometry = cls(**sizes, tied=tied, architecture=architecture)  # type: ignore[arg-type]
        if architecture == Geometry.architecture and geometry.heads * geometry.head_dim != geometry.width:
            raise ValueError(f"width {geometry.width} is not heads * head_dim")
        if geometry.heads % geometry.kv_heads:
            raise ValueError(f"kv_heads {geometry.kv_heads} is no divisor of the heads")
        return geometry

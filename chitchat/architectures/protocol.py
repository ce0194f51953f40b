"""The interface of a family of decoders: names, shapes, and residual sublayers with projections.

A decoder is a residual stream: embeddings, then per layer a few sublayers, each of which reads the stream through a
norm and its in-projections and adds the output of its out-projection; then a last norm and a head. Pruning,
quantization, healing and export use this interface and name no module. `chitchat.architectures.gpt2` is the one
implementation; docs/architectures.md says what a second one needs. Nothing outside a family's own files assumes that

- a sublayer has one in-projection (`in_projs` is a tuple: query, key and value; gate and up) or a bias (None);
- there is a table of positions (`position_table` is None, and a shorter context is a number of the configuration);
- `heads` equals `kv_heads` (it is a multiple) or `head_dim` equals `width` / `heads`;
- the activation is a GELU, or linears are stored as [in, out] (`Projection.transposed`).

torch and transformers are imported when a model is needed: the command line reads configurations without them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chitchat.architectures.sublayers import Projection, Sublayer
from serve.geometry import Geometry

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

Config = Mapping[str, Any]  # config.json


@dataclass(frozen=True)
class Matrix:
    """A weight matrix of a model: `module` multiplies by [rows, columns] = [out, in].

    `table`: it is an embedding or a head (tokens, positions, an untied head), not a linear layer; `transposed`: the
    module stores it as [in, out].
    """

    module: str
    rows: int
    columns: int
    table: bool = False
    transposed: bool = False


@dataclass(frozen=True)
class LinearView:
    """A copy of a model whose layers consist of nn.Linear, for torch-pruning.

    `model` maps `input_ids` to logits; the columns of `table` are the channels of the stream; `head_inputs` of each
    layer is the linear whose inputs are the heads, `inner_outputs` the linear whose outputs are the feed-forward units.
    """

    model: "nn.Module"
    table: "nn.Module"
    head_inputs: "tuple[nn.Module, ...]"
    inner_outputs: "tuple[nn.Module, ...]"


class Architecture(ABC):
    """One family of decoders. Models, configurations and weights are those of transformers.

    model_type, class_name  `model_type` and `architectures` in config.json
    title                   the family's name in messages
    telltale                fields by which a config.json without model_type is recognised
    gguf_type               its name in GGUF
    table_name, head_name   modules of the token table and of the head
    wrapper_prefixes        possible prefixes of all names in a file of weights

    `config` is a `config.json` as `read_config` gives it, or a configuration of transformers.
    """

    model_type: str
    class_name: str
    title: str
    telltale: tuple[str, ...] = ()
    gguf_type: str
    table_name: str
    head_name: str = "lm_head"
    wrapper_prefixes: tuple[str, ...] = ()

    # Configuration; no torch.

    @abstractmethod
    def claims(self, record: Config) -> bool:
        """Whether a config.json without model_type is of this family."""

    @abstractmethod
    def read_config(self, record: Config, where: str | Path) -> dict[str, Any]:
        """The fields that describe the model, with defaults, from a config.json of any age.

        Raises `BadInput`, which names `where` and the field, for an invalid value.
        """

    @abstractmethod
    def geometry(self, config: "Config | PretrainedConfig") -> Geometry:
        """The geometry that a config.json or a configuration describes."""

    @abstractmethod
    def config_fields(self, geometry: Geometry) -> dict[str, Any]:
        """The fields of config.json for a geometry. Raises ValueError for one that the family cannot have."""

    @abstractmethod
    def dropout_fields(self, share: float) -> dict[str, float]:
        """The fields of config.json for dropout."""

    @abstractmethod
    def norm_epsilon(self, config: Config) -> float:
        """The epsilon that the norms add to the variance."""

    def refuses_layer_cut(self, config: "PretrainedConfig") -> str:
        """Why no layer can be removed from this model, as a phrase that names the field; "" if one can."""
        return ""

    # Weights by name; no torch.

    @abstractmethod
    def matrices(self, geometry: Geometry) -> Iterator[Matrix]:
        """Every weight matrix and table, in the model's order; a tied head is its table."""

    @abstractmethod
    def vectors(self, geometry: Geometry) -> Iterator[tuple[str, int]]:
        """`(parameter, length)` of every bias and norm."""

    def parameters(self, geometry: Geometry) -> int:
        """Numbers in the model, a tied table counted once."""
        matrices = sum(matrix.rows * matrix.columns for matrix in self.matrices(geometry))
        return matrices + sum(length for _, length in self.vectors(geometry))

    @abstractmethod
    def is_transposed(self, module: str) -> bool:
        """Whether transformers stores the weight of this module as [in, out]."""

    @abstractmethod
    def layer_prefix(self, layer: int) -> str:
        """The prefix of the names of a layer's weights, with the dot."""

    @abstractmethod
    def rename(self, name: str) -> str:
        """The current name of a tensor of a checkpoint of any age, without prefixes of wrappers."""

    @abstractmethod
    def is_weight(self, name: str) -> bool:
        """Whether a tensor of this name, as `rename` gives it, is a weight of the model."""

    def is_buffer(self, name: str) -> bool:
        """Whether older versions stored a tensor of this name that is computed, such as a causal mask."""
        return False

    @abstractmethod
    def gguf_tensor(self, name: str) -> str | None:
        """GGUF's name of a weight; None for one that is not stored there (a tied head)."""

    # Models.

    @abstractmethod
    def model_class(self) -> "type[PreTrainedModel]":
        """The class of transformers that computes it."""

    @abstractmethod
    def config_class(self) -> "type[PretrainedConfig]":
        """The class of transformers that describes it."""

    def to_config(self, fields: Config) -> "PretrainedConfig":
        """The configuration that the fields of a config.json describe."""
        others = ("model_type", "quantization_config")
        return self.config_class().from_dict({name: value for name, value in fields.items() if name not in others})

    def configure(self, config: "PretrainedConfig", geometry: Geometry) -> "PretrainedConfig":
        """A copy of a configuration with another geometry. Raises ValueError for one that the family cannot be."""
        import copy

        changed = copy.deepcopy(config)
        for name, value in self.config_fields(geometry).items():
            setattr(changed, name, value)
        return changed

    def new_config(self, geometry: Geometry, dropout: float = 0.0, **token_ids: int | None) -> "PretrainedConfig":
        """The configuration of a model from scratch; `token_ids` are bos_token_id, eos_token_id and pad_token_id."""
        return self.config_class()(**self.config_fields(geometry), **self.dropout_fields(dropout), **token_ids)

    def new_model(self, config: "PretrainedConfig") -> "PreTrainedModel":
        """A model with random weights, drawn from torch's generator."""
        return self.model_class()(config)

    def build(
        self, config: "PretrainedConfig", weights: "Mapping[str, Tensor]", generation: "GenerationConfig | None" = None
    ) -> "PreTrainedModel":
        """A model in eval mode with exactly these weights, its head tied as `config` says.

        `weights` is its state dict; the head's may be left out where it is tied. Raises `RuntimeError` when a weight is
        missing, unknown or of another shape than `config` gives it.
        """
        import copy

        try:
            from transformers.initialization import no_init_weights
        except ImportError:  # transformers 4, where optimum runs
            from transformers.modeling_utils import no_init_weights

        with no_init_weights():
            model = self.new_model(config).eval()
        if config.tie_word_embeddings:
            weights = {**weights, f"{self.head_name}.weight": weights[f"{self.table_name}.weight"]}
        model.load_state_dict(weights, strict=True)
        model.tie_weights()
        if generation is not None:
            model.generation_config = copy.deepcopy(generation)
        return model

    @abstractmethod
    def layers(self, model: Any) -> "nn.ModuleList":
        """The layers, in order."""

    @abstractmethod
    def sublayers(self, model: Any, layer: int) -> tuple[Sublayer, ...]:
        """The sublayers of a layer, in the order in which they run."""

    def all_sublayers(self, model: Any) -> list[Sublayer]:
        """The sublayers of all layers, in the order in which they run."""
        return [sublayer for layer in range(len(self.layers(model))) for sublayer in self.sublayers(model, layer)]

    def projections(self, model: Any) -> list[Projection]:
        """The projections of all sublayers, each sublayer's in-projections before its out-projection."""
        found = self.all_sublayers(model)
        return [projection for sublayer in found for projection in (*sublayer.in_projs, sublayer.out_proj)]

    def norms(self, model: Any) -> "list[nn.Module]":
        """Every norm that reads the stream, in order, the last one included."""
        return [*(sublayer.norm for sublayer in self.all_sublayers(model)), self.final_norm(model)[1]]

    def token_table(self, model: Any) -> "tuple[str, nn.Module]":
        """Name and module of the token embedding, [vocab, width]; a tied head is this table."""
        return self.table_name, model.get_input_embeddings()

    def position_table(self, model: Any) -> "tuple[str, nn.Module] | None":
        """Name and module of learned positions, [positions, width]; None where positions are rotary."""
        return None

    def tables(self, model: Any) -> "list[tuple[str, nn.Module]]":
        """The tables that the stream begins with."""
        positions = self.position_table(model)
        return [self.token_table(model), *([] if positions is None else [positions])]

    @abstractmethod
    def final_norm(self, model: Any) -> "tuple[str, nn.Module]":
        """Name and module of the norm before the head."""

    def head(self, model: Any) -> "tuple[str, nn.Module]":
        """Name and module of the head, weight [vocab, width]."""
        return self.head_name, model.get_output_embeddings()

    def embed(self, model: Any, ids: "Tensor") -> "Tensor":
        """Where the residual stream begins: ids int64 [batch, tokens] to [batch, tokens, width]."""
        stream: Tensor = self.token_table(model)[1](ids)
        positions = self.position_table(model)
        return stream if positions is None else stream + positions[1].weight[: ids.shape[1]]

    @abstractmethod
    def linear_view(self, model: Any) -> LinearView:
        """A copy of a model in eval mode that is made of nn.Linear; the model is not touched."""

    @abstractmethod
    def linear_view_weights(self, view: LinearView) -> "dict[str, Tensor]":
        """The state dict of the ordinary model with the weights of a view; `build` takes it."""

"""A smaller vocabulary and a shorter context: rows that leave the two tables at a model's foot, and the tokenizer.

Nothing is trained and nothing is approximated. The rows that stay are the old ones bit for bit, so the hidden states of
a text are too, and each kept id's logit is the same dot product. The matrix product may add up in another order when it
has fewer columns: with 8 positions or more at a time the logits came out bit-identical for every size that was tried
(16 to 13,316 rows, 32 to 768 wide, one thread and two); with fewer they differ by at most 1e-6. Since the softmax has
fewer terms, no token of a text that is tokenised as before becomes less likely.

What stays is chosen so that such a text is a common one: a BPE token stays with every merge that makes it and with the
parts of these, so a text all of whose ids stay gets the same ids again; greedy WordPiece has that property by itself.
Text that used a token that went is spelled with the tokens that are left (`retokenize` does it to a data set).
"""

import copy
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from chitchat.architectures.registry import architecture_of
from chitchat.data.dataset import ChatData
from chitchat.errors import BadInput

_ROWS_AT_ONCE = 1000
# What a model's configuration and its generation configuration say in ids: one, or a list of them.
_ID_FIELDS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
)


def used_ids(data: ChatData) -> NDArray[np.int64]:
    """How often each id occurs in the training conversations: int64 [highest id + 1]. Reads the split in streams."""
    counts = np.zeros(max(data.tokenizer.get_vocab().values()) + 1, dtype=np.int64)
    for rows in data.train.with_format("arrow").iter(_ROWS_AT_ONCE):
        ids = rows.column("input_ids").combine_chunks().flatten()
        counts += np.bincount(ids.to_numpy(zero_copy_only=False), minlength=len(counts))
    return counts


def choose_vocabulary(
    tokenizer: PreTrainedTokenizerFast, counts: NDArray[np.integer], size: int | None = None
) -> list[int]:
    """Old ids of the `size` tokens that stay, ascending; without a size, of those that the corpus needs.

    Always stay: special and other added tokens, the unknown token, and the base symbols, which anything else can be
    spelled with. These are the bytes of a byte-level BPE; for WordPiece the single characters that longer pieces are
    written with, plain and continuing (a Chinese character that stands for itself is a token like any other).

    Of the rest the rarest token goes first, among those that no longer token is made of; in BPE its occurrences then
    count for its two parts. Equally rare ones go by descending id, single characters last. `counts` is what `used_ids`
    gives.

    Raises `BadInput` for a size below what always stays, for one above the present vocabulary, and for a tokenizer that
    is neither BPE nor WordPiece.
    """
    option = "--vocab" if size is None else f"--vocab {size}"
    pieces = _Pieces.of(tokenizer, option)
    if len(counts) <= max(pieces.ids):
        raise ValueError(f"{len(counts)} counts for ids up to {max(pieces.ids)}")
    if size is not None and not len(pieces.base) <= size <= len(pieces.ids):
        raise BadInput(
            f"{option}: the tokenizer has {len(pieces.ids)} tokens, {len(pieces.base)} of them special tokens and base "
            f"symbols that must stay; choose {len(pieces.base)} to {len(pieces.ids)}"
        )
    return sorted(_most_used(pieces, counts, size))


@dataclass(frozen=True)
class _Pieces:
    """A vocabulary by ids. `base` always stays; `made_of` are, for a BPE token, the pairs that are merged into it;
    `single` are tokens of one character."""

    ids: frozenset[int]
    base: frozenset[int]
    single: frozenset[int]
    made_of: Mapping[int, Sequence[tuple[int, int]]]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, option: str) -> "_Pieces":
        state, ids = json.loads(tokenizer.backend_tokenizer.to_str()), tokenizer.get_vocab()
        model, kind = state["model"], state["model"]["type"]
        if kind not in ("BPE", "WordPiece"):
            raise BadInput(
                f"{option}: the tokenizer is a {kind} model, and only vocabularies of BPE and WordPiece can be cut; "
                "leave --vocab out"
            )
        always = {token["id"] for token in state["added_tokens"]} | {ids.get(model["unk_token"], -1)} - {-1}
        prefix = model["continuing_subword_prefix"] or ""
        bodies = {index: token.removeprefix(prefix) for token, index in ids.items() if index not in always}
        single = frozenset(index for index, body in bodies.items() if len(body) == 1)
        made_of: dict[int, list[tuple[int, int]]] = {}
        for left, right, made in _merges(model):
            made_of.setdefault(ids[made], []).append((ids[left], ids[right]))
        if kind == "WordPiece":
            letters = {letter for body in bodies.values() if len(body) > 1 for letter in body}
            base = {index for index in single if bodies[index] in letters}
        else:
            parts = {part for pairs in made_of.values() for pair in pairs for part in pair}
            unmade = bodies.keys() - made_of.keys()
            base = {index for index in unmade if index in single or index in parts or model["byte_fallback"]}
        return cls(frozenset(ids.values()), frozenset(_closure(always | base, made_of)), single, made_of)


def _merges(model: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """`(left, right, what they are merged into)` of each merge of a BPE model, in order."""
    prefix = len(model.get("continuing_subword_prefix") or "")
    for pair in model.get("merges", ()):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        yield left, right, left + right[prefix:]


def _closure(ids: set[int], made_of: Mapping[int, Sequence[tuple[int, int]]]) -> set[int]:
    """`ids` and all that they are made of."""
    found, ahead = set(ids), list(ids)
    while ahead:
        for pair in made_of.get(ahead.pop(), ()):
            ahead += [part for part in pair if part not in found]
            found.update(pair)
    return found


def _most_used(pieces: _Pieces, counts: NDArray[np.integer], size: int | None) -> set[int]:
    """What is left when the rarest leaf goes again and again: down to `size`, or while it is not used at all."""
    kept = set(pieces.ids)
    worth = {index: int(counts[index]) for index in kept}
    # How many merges of kept tokens each token is a part of: one that is part of none is a leaf.
    wanted = Counter(part for pairs in pieces.made_of.values() for pair in pairs for part in pair)

    def leaf(index: int) -> tuple[int, bool, int]:
        return worth[index], index in pieces.single, -index

    leaves = [leaf(index) for index in kept - pieces.base if not wanted[index]]
    heapq.heapify(leaves)
    while leaves and (leaves[0][0] == 0 if size is None else len(kept) > size):
        *_, rarest = heapq.heappop(leaves)
        gone = -rarest
        kept.remove(gone)
        pairs = pieces.made_of.get(gone, ())
        for part in pairs[0] if pairs else ():
            worth[part] += worth[gone]  # the first merge is the one that is applied
        for part in (part for pair in pairs for part in pair):
            wanted[part] -= 1
            if not wanted[part] and part not in pieces.base:
                heapq.heappush(leaves, leaf(part))
    return kept


def trim_tokenizer(tokenizer: PreTrainedTokenizerFast, keep: Sequence[int]) -> PreTrainedTokenizerFast:
    """A tokenizer of the ids in `keep` (ascending), renumbered in their order; `tokenizer` is not touched.

    Merges keep their order, special tokens, post-processor and chat template their meaning. Raises `ValueError` when
    an added token or the unknown token is not in `keep`.
    """
    new_id = {old: new for new, old in enumerate(_checked(keep))}
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, unknown = state["model"], state["model"].get("unk_token")
    needed = {token["content"]: token["id"] for token in state["added_tokens"]}
    if unknown in model["vocab"]:
        needed[unknown] = model["vocab"][unknown]
    lost = [token for token, index in needed.items() if index not in new_id]
    if lost:
        raise ValueError(f"special tokens must stay: {', '.join(lost)}")
    by_id = sorted(model["vocab"].items(), key=lambda item: item[1])
    model["vocab"] = vocab = {token: new_id[index] for token, index in by_id if index in new_id}
    if "merges" in model:
        merges = _merges(model)
        model["merges"] = [[left, right] for left, right, made in merges if {left, right, made} <= vocab.keys()]
    for token in state["added_tokens"]:
        token["id"] = new_id[token["id"]]
    if state["padding"]:
        state["padding"]["pad_id"] = new_id.get(state["padding"]["pad_id"], 0)
    _renumber(state["post_processor"], new_id)
    small = copy.deepcopy(tokenizer)
    small.init_kwargs.pop("added_tokens_decoder", None)  # the old ids
    small._tokenizer = Tokenizer.from_str(json.dumps(state))
    return small


def _renumber(processor: dict[str, Any] | None, new_id: Mapping[int, int]) -> None:
    """Put new ids into a post-processor of tokenizer.json: a template, BERT's, RoBERTa's, or a sequence of them."""
    if processor is None:
        return
    for part in processor.get("processors", ()):
        _renumber(part, new_id)
    for name in ("cls", "sep"):
        if name in processor:
            token, index = processor[name]
            processor[name] = [token, new_id[index]]
    for special in processor.get("special_tokens", {}).values():
        special["ids"] = [new_id[index] for index in special["ids"]]


def trim_vocabulary(model: PreTrainedModel, keep: Sequence[int]) -> PreTrainedModel:
    """An ordinary model of the table rows in `keep` (ascending), bit-identical; `model` is not touched.

    A tied head stays tied, a head of its own loses the same rows. Ids in the configurations are renumbered; one whose
    row goes is unset. Raises `ValueError` for rows that are not ascending or that there are not.
    """
    rows = model.config.vocab_size
    new_id = {old: new for new, old in enumerate(_checked(keep, rows))}
    config, generation = copy.deepcopy(model.config), copy.deepcopy(model.generation_config)
    config.vocab_size = len(new_id)
    for settings in (config, generation):
        for name in _ID_FIELDS:
            value = getattr(settings, name, None)
            if isinstance(value, list):
                setattr(settings, name, [new_id[index] for index in value if index in new_id] or None)
            elif value is not None:
                setattr(settings, name, new_id.get(value))
    architecture, weights = architecture_of(model), dict(model.state_dict())
    for module in (architecture.table_name, architecture.head_name):
        weights[f"{module}.weight"] = weights[f"{module}.weight"][list(new_id)]
    return architecture.build(config, weights, generation)


def trim_positions(model: PreTrainedModel, count: int) -> PreTrainedModel:
    """An ordinary model that reads `count` positions; every logit within them is bit-identical, `model` not touched.

    Raises `BadInput` for a count below 1 and above the model's context.
    """
    most = model.config.max_position_embeddings
    if not 1 <= count <= most:
        raise BadInput(f"--context {count}: the model has {most}; choose 1 to {most}")
    architecture, weights = architecture_of(model), dict(model.state_dict())
    config = copy.deepcopy(model.config)
    config.max_position_embeddings = count
    table = architecture.position_table(model)
    if table is not None:
        weights[f"{table[0]}.weight"] = weights[f"{table[0]}.weight"][:count]
    return architecture.build(config, weights, model.generation_config)


def _checked(keep: Sequence[int], rows: int | None = None) -> Sequence[int]:
    if not keep or keep[0] < 0 or any(low >= high for low, high in pairwise(keep)):
        raise ValueError("the ids that stay must be ascending, and at least one")
    if rows is not None and keep[-1] >= rows:
        raise ValueError(f"id {keep[-1]} of a table of {rows} rows")
    return keep

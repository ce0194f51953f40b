"""Two tiny tokenizers, trained on a few sentences in many scripts; for the tests of text, terminal and server."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from serve.text import TextCodec

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|endoftext|>"]
SENTENCES = [
    "How are you today? I'm fine, thanks; and you?",
    "你好，今天天气怎么样？我觉得很好。",
    "𠀀𠮷野家の牛丼はおいしい",
    "Привет! Ça va? Él está aquí.",
    "👩‍👩‍👧‍👦 family 😀😅 🇨🇳 flags",
    "e\u0301 combining, a\u0300\u0301 stacked, zero\u200dwidth",
]


def byte_level() -> TextCodec:
    """Byte-level BPE with few merges, so that most characters above ASCII take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return TextCodec(Tokenizer.from_str(tokenizer.to_str()))


def word_piece() -> TextCodec:
    """A BERT tokenizer, as the Chinese chit-chat models have."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return TextCodec(Tokenizer.from_str(tokenizer.to_str()))

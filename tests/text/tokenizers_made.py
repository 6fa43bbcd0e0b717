"""Tokenizers of the three kinds that ``sllmd.text.pieces`` tells apart, made on the spot."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from tokenizers.normalizers import Prepend, Replace, Sequence

CORPUS = ["the quick brown fox jumps over the lazy dog", "naïve café 漢字 かな 🙂👩‍👩‍👧 e\u0301 don't stop."]
SPECIALS = ["<unk>", "<s>", "</s>", "<|user|>"]
CHAT = "{{ bos_token }}{% for m in messages %}<|user|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def byte_level(vocabulary_size: int = 320) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.add_tokens(["    ", "→→"])
    return inner


def byte_fallback() -> tokenizers.Tokenizer:
    """As SentencePiece models (Llama 2, Gemma) come: ▁ for a space, <0xNN> for what the vocabulary lacks."""
    words = ["▁the", "▁fox", "▁", "a", "b", "c", "▁a", ".", "漢", "fox"]
    names = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    inner = tokenizers.Tokenizer(
        models.BPE(
            vocab={name: place for place, name in enumerate(names)},
            merges=[],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    inner.add_special_tokens(SPECIALS)
    inner.normalizer = Sequence([Prepend("▁"), Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return inner


def word_piece() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIALS, show_progress=False)
    )
    return inner


def write_model_directory(directory: Path, inner: tokenizers.Tokenizer, **changes: object) -> Path:
    """The small files of a checkpoint; ``changes``: file stem -> content, None: leave it out."""
    files: dict[str, object] = {
        "config": {"vocab_size": inner.get_vocab_size(), "max_position_embeddings": 128, "eos_token_id": 2},
        "tokenizer_config": {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": CHAT},
    }
    files.update(changes)
    directory.mkdir(parents=True, exist_ok=True)
    inner.save(str(directory / "tokenizer.json"))
    for stem, content in files.items():
        if content is not None:
            (directory / f"{stem}.json").write_text(json.dumps(content))
    return directory

"""Texts as numbers of words: byte-pair encoding, learnt from captions with the `tokenizers` package.

The file of a text tokenizer is one that `tokenizers.Tokenizer.from_file` reads. Words are pieces of words, at worst
bytes, so that every text can be written in them.

Shapes: n texts, t words of the longest one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from codegrid.codes import PAD
from codegrid.errors import InputError, import_extra, reason_of
from codegrid.extra_files import TEXT_TOKENIZER
from codegrid.strict_json import parse_json, to_json
from codegrid.tensors import sha256

UNKNOWN = 1  # what an unknown word would be; there is none, as every byte is known
SPECIAL = ("[PAD]", "[UNK]")  # by their numbers
FEWEST = len(SPECIAL) + 256  # words: every byte is one
FAULTY = f"{TEXT_TOKENIZER} of this prior is damaged: copy or make the model again"


class TextTokenizer:
    """Turns texts into numbers of words, from `UNKNOWN` + 1 to `num_words` - 1, and PAD after the end of a text.

    Upper and lower case, and any amount of blank space, are the same to it.

    Args:
        content: the JSON file of a byte-pair encoding. It is parsed, by the `tokenizers` package, at first use.

    Examples:
        >>> tokenizer = TextTokenizer.learn(["a red heart", "a red car"], 300)
        >>> tokenizer.encode(["A red heart"]) == tokenizer.encode([" a  RED heart "])
        True
    """

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextTokenizer) and self.content == other.content

    def __hash__(self) -> int:
        return hash(self.content)

    @classmethod
    def learn(cls, texts: Iterable[str], num_words: int) -> Self:
        """Return a tokenizer whose words are the pieces that are most frequent in texts, at most `num_words`.

        Raises `InputError` if the package is missing, or fewer words are asked for than there are bytes.
        """
        if num_words < FEWEST:
            raise InputError(f"`num_words` {num_words}: it must be at least {FEWEST}, as each byte is a word")
        package = _package("captions")
        whole = package.Tokenizer(package.models.BPE(unk_token=SPECIAL[UNKNOWN]))
        rules = package.normalizers
        blank = rules.Replace(package.Regex(r"\s+"), " ")
        whole.normalizer = rules.Sequence([rules.NFC(), rules.Lowercase(), blank, rules.Strip()])
        whole.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=True)
        whole.decoder = package.decoders.ByteLevel()
        trainer = package.trainers.BpeTrainer(
            vocab_size=num_words,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(package.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        whole.train_from_iterator(map(_clean, texts), trainer)
        fields = json.loads(whole.to_str())
        fields["added_tokens"] = []  # or a user's text "[PAD]" would become PAD
        return cls(to_json(fields, ensure_ascii=False, indent=1).encode())

    @property
    def sha256(self) -> str:
        """Digest of the file."""
        return sha256(self.content)

    @property
    def num_words(self) -> int:
        """The size of the vocabulary, with [PAD] and [UNK]."""
        return int(self._parsed.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the numbers of the words of each text; an empty list for a text without any.

        Raises `InputError` if the package is missing, or the file is damaged.
        """
        try:
            found = [each.ids for each in self._parsed.encode_batch(list(map(_clean, texts)), add_special_tokens=False)]
        except InputError:
            raise
        except Exception as error:  # the rules in an untrusted file can fail in any way
            raise InputError(f"{FAULTY} ({reason_of(error)})") from error
        if any(not PAD < number < self.num_words for row in found for number in row):
            raise InputError(FAULTY)
        return found

    @property
    def _parsed(self) -> Any:
        return _parse(self.content)


@lru_cache(maxsize=8)
def _parse(content: bytes) -> Any:
    """Return the tokenizer in a file. Raises `InputError` if the package is missing, or the file is damaged."""
    package = _package("prompts")
    try:
        dropout = parse_json(content)["model"].get("dropout")
        whole = package.Tokenizer.from_str(content.decode())
    except Exception as error:  # an untrusted file can be wrong in any way
        raise InputError(f"{FAULTY} ({reason_of(error)})") from error
    if dropout or [whole.token_to_id(word) for word in SPECIAL] != [PAD, UNKNOWN]:
        raise InputError(FAULTY)
    whole.no_truncation()
    whole.no_padding()
    return whole


def pad_texts(rows: Sequence[Sequence[int]], length: int) -> Tensor:
    """Return the words of texts as one tensor (n, length) int64, cut there, and PAD after the end of each."""
    padded = torch.full((len(rows), length), PAD)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = torch.tensor(row[:length], dtype=torch.int64)
    return padded


def _package(use: str) -> Any:
    return import_extra("tokenizers", f"`{use}`", "text")


def _clean(text: str) -> str:
    """Return a text that has an encoding: half a pair of surrogates has none."""
    return text.encode(errors="replace").decode()

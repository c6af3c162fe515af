"""From a text to word pieces and back: which piece came from which word of the original.

DGM4 annotates whitespace words, the model reads word pieces. The published code tokenises the cleaned caption as a
whole and loses the way back (`$5`, `president's`); here every word is cleaned and tokenised by itself, and its
index goes along.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from asap.errors import AnnotationError, CheckpointError, ConfigError, TextInvalid, TextMissing
from asap.preprocessing.words import MAX_CHARACTERS, clean_caption, clean_word, replace_unreadable, split_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_KNOWN_WORDS = 2**16
"""Words whose pieces are kept; beyond, they are looked up anew."""


@dataclass(frozen=True, kw_only=True)
class EncodedPass:
    """One run of the model over (a part of) a text."""

    input_ids: list[int]
    """[CLS] and the word pieces, no [SEP]."""
    word_index: list[int]
    """The whitespace word that each piece came from: one entry less than `input_ids`, [CLS] having none."""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class LabelledText:
    """The start of an annotated text, as much as one pass holds."""

    input_ids: list[int]
    """[CLS] and the word pieces, no [SEP]."""
    token_labels: list[int]
    """For each piece, 1 if its word was manipulated, else 0: one entry less than `input_ids`."""
    word_index: list[int]
    """The whitespace word that each piece came from, in step with `token_labels`."""


class _Pieces(NamedTuple):
    """Of a word, wherever it stands."""

    ids: list[int]
    parts: list[int]
    """For each piece, which of the word's cleaned words it belongs to."""
    cleaned: int
    """Cleaned words that have a piece."""


class _WordPieces(NamedTuple):
    """The pieces of one whitespace word of a text; as `_Pieces`."""

    place: int
    """The word's, among the words of the text."""
    ids: list[int]
    parts: list[int]
    cleaned: int


class TextCodec:
    """Texts to token ids, with the way back to the words.

    `tokenizer`: a fast transformers tokenizer with [CLS] and [PAD]. `max_words` (cleaned words) and `max_tokens`
    ([CLS] included) bound one pass, `max_characters` a whole text: a pair must not cost thousands of passes.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_words: int = 50,
        max_tokens: int = 128,
        max_characters: int = MAX_CHARACTERS,
    ) -> None:
        if max_words < 1 or max_tokens < 2 or max_characters < 1:
            raise ConfigError(
                f"max_words {max_words}, max_tokens {max_tokens}, max_characters {max_characters}: a pass holds at "
                "least 1 word, 2 tokens ([CLS] is one) and 1 character"
            )
        _check_tokenizer(tokenizer, "the tokenizer")
        self.tokenizer = tokenizer
        self._word_pieces = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._word_pieces.no_truncation()  # a saved tokenizer may bring either; a copy leaves the caller's alone
        self._word_pieces.no_padding()
        self._known: dict[str, _Pieces] = {}
        self.pad_id: int = tokenizer.pad_token_id
        self.max_words = max_words
        self.max_tokens = max_tokens
        self.max_characters = max_characters

    def encode(self, text: str | None) -> list[EncodedPass]:
        """Tokenise the whole text, in as many passes as it needs; words are not split over passes.

        Passes of a long text are of about equal length, so that none is left with a word or two and no context.
        A word that no pass can hold is cut, and `warnings` says so. A word without cleaned content (`--`) has no
        piece. Raises: `TextMissing`, `TextInvalid`.
        """
        whole = self._tokenise(self._check(text))
        words = [fitting for word in whole for fitting in _cut([word], self.max_words, self.max_tokens - 1)]
        warnings = [
            f"word {word.place} has {len(word.ids)} pieces; only the first {len(fitting.ids)} were analysed"
            for word, fitting in zip(whole, words, strict=True)
            if len(fitting.ids) < len(word.ids)
        ]
        return [
            EncodedPass(input_ids=self._ids(part), word_index=_word_index(part), warnings=[] if i else warnings)
            for i, part in enumerate(self._passes(words))
        ]

    def encode_labelled(self, text: str, fake_text_pos: Sequence[int] = ()) -> LabelledText:
        """Tokenise the start of an annotated text, cut after `max_words` cleaned words and `max_tokens` tokens.

        `fake_text_pos`: positions of the manipulated whitespace words, as DGM4 gives them. Raises `AnnotationError`
        for a position that the text does not have, `TextMissing`, `TextInvalid`.
        """
        count = len(split_words(self._check(text)))
        for position in fake_text_pos:
            if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position < count:
                raise AnnotationError(
                    f"fake_text_pos has {position!r}, but the text has words 0 to {count - 1}: {text!r}"
                )
        part = list(_cut(self._tokenise(text), self.max_words, self.max_tokens - 1))
        manipulated, word_index = set(fake_text_pos), _word_index(part)
        labels = [int(index in manipulated) for index in word_index]
        return LabelledText(input_ids=self._ids(part), token_labels=labels, word_index=word_index)

    def label_as_published(self, text: str, fake_text_pos: Sequence[int] = ()) -> list[int]:
        """The labels that the published code gives to the same pieces, for figures beside those of the papers.

        It cleans and tokenises the caption as a whole and takes position i for the i-th word of BERT's splitting. That
        parts at punctuation which cleaning leaves (`$5` is two words), and no longer sees which words cleaning parted
        (`tell-all`) or dropped (`--`), so behind such a word labels drift to a neighbour. Positions from `max_words`
        on are left out, and the cut is a piece shorter than in `encode_labelled`, which keeps [SEP]'s place.
        """
        caption = clean_caption(replace_unreadable(text), self.max_words)
        word_ids = self._word_pieces.encode(caption, add_special_tokens=False).word_ids[: self.max_tokens - 2]
        manipulated = {position for position in fake_text_pos if position < self.max_words}
        return [int(index in manipulated) for index in word_ids]

    def _check(self, text: str | None) -> str:
        if text is None:
            raise TextMissing("the pair has no text")
        if not isinstance(text, str):
            raise TextInvalid(f"the text is a {type(text).__name__}, not a string")
        if len(text) > self.max_characters:
            raise TextInvalid(
                f"the text has {len(text)} characters, the limit is {self.max_characters}; give a part of it"
            )
        if not text.strip():
            raise TextMissing("the text is blank")
        return text

    def _tokenise(self, text: str) -> list[_WordPieces]:
        """The pieces of every word that has any."""
        words = [
            _WordPieces(place, *pieces)
            for place, word in enumerate(replace_unreadable(text).split())
            if (pieces := self._pieces(word)).ids
        ]
        if not words:
            raise TextInvalid(f"no word is left of the text after cleaning: {text[:80]!r}")
        return words

    def _pieces(self, word: str) -> _Pieces:
        """Of one whitespace word. Words come again: to ask for those of every text takes three times as long."""
        if (known := self._known.get(word)) is not None:
            return known
        encoding = self._word_pieces.encode(clean_word(word), is_pretokenized=True, add_special_tokens=False)
        parts = cast("list[int]", encoding.word_ids)  # None only for special and padding tokens, here are neither
        if len(self._known) >= _KNOWN_WORDS:
            self._known.clear()
        return self._known.setdefault(word, _Pieces(encoding.ids, parts, len(set(parts))))

    def _passes(self, words: list[_WordPieces]) -> list[list[_WordPieces]]:
        """As few passes as the limits allow, of about equal length."""
        passes = self._fill(words, self.max_words)
        share = -(-sum(word.cleaned for word in words) // len(passes))
        fills = (self._fill(words, limit) for limit in range(share, self.max_words + 1))
        return next((even for even in fills if len(even) == len(passes)), passes)

    def _fill(self, words: list[_WordPieces], max_words: int) -> list[list[_WordPieces]]:
        """Put words into passes in order, opening the next one when a word no longer fits."""
        passes: list[list[_WordPieces]] = []
        room_words = room_pieces = 0
        for word in words:
            if not passes or word.cleaned > room_words or len(word.ids) > room_pieces:
                passes.append([])
                room_words, room_pieces = max_words, self.max_tokens - 1
            passes[-1].append(word)
            room_words -= word.cleaned
            room_pieces -= len(word.ids)
        return passes

    def _ids(self, words: list[_WordPieces]) -> list[int]:
        return [self.tokenizer.cls_token_id, *(piece for word in words for piece in word.ids)]


def _cut(words: list[_WordPieces], max_words: int, max_pieces: int) -> Iterator[_WordPieces]:
    """The first words, as far as both limits allow; the last of them may lose its last pieces."""
    for word in words:
        if word.cleaned <= max_words and len(word.ids) <= max_pieces:
            yield word
            max_words -= word.cleaned
            max_pieces -= len(word.ids)
            continue
        within = sorted(set(word.parts))[:max_words]
        kept = [piece for piece in range(len(word.ids)) if word.parts[piece] in within][:max_pieces]
        if not kept:
            return
        ids, parts = [word.ids[piece] for piece in kept], [word.parts[piece] for piece in kept]
        yield _WordPieces(word.place, ids, parts, len(set(parts)))
        max_words -= len(within)
        max_pieces -= len(kept)


def _word_index(words: list[_WordPieces]) -> list[int]:
    return [word.place for word in words for _ in word.ids]


def pad_batch(input_ids: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, L) and their attention mask (B, L), both int64, padded to the longest of the batch."""
    longest = max(map(len, input_ids), default=0)
    ids = torch.full((len(input_ids), longest), pad_id)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(input_ids):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return ids, mask


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_tokens: int = 512) -> PreTrainedTokenizerFast:
    """Train a lower-case BERT WordPiece vocabulary of at most `vocab_size` on cleaned texts.

    Every character of the texts is a piece, up to a quarter of the vocabulary. The same texts give the same
    vocabulary, in any order.
    """
    from transformers import BertTokenizerFast  # takes seconds to import, and only two functions need it

    normalizer = normalizers.BertNormalizer(lowercase=True)
    cleaned = [normalizer.normalize_str(" ".join(clean_word(text))) for text in texts]
    counts = Counter(character for text in cleaned for character in text if not character.isspace())
    alphabet = sorted(sorted(counts, key=lambda character: (-counts[character], character))[: vocab_size // 4])
    # The trainer breaks ties by token id, and gives ids in hash order to pieces that it was not told beforehand.
    known = [*_SPECIAL_TOKENS.values(), *alphabet, *(f"##{character}" for character in alphabet)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=known,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer = Tokenizer(models.WordPiece(unk_token=_SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(cleaned, trainer)
    return BertTokenizerFast(vocab=tokenizer.get_vocab(), model_max_length=max_tokens, **_SPECIAL_TOKENS)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read a tokenizer from a local folder; nothing is downloaded and no code of the folder is run."""
    from transformers import AutoTokenizer  # takes seconds to import, and only two functions need it

    if not folder.is_dir():
        raise CheckpointError(f"tokenizer folder {str(folder)!r} does not exist")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what transformers raises of a broken folder is not documented
        raise CheckpointError(f"tokenizer folder {str(folder)!r} cannot be used: {error}") from error
    _check_tokenizer(tokenizer, f"the tokenizer in {str(folder)!r}")
    return tokenizer


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast, what: str) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"{what} is not a fast one, so its pieces cannot be traced to words; save it as tokenizer.json"
        )
    # transformers saves several chat templates as files of their names; only its later versions look at the names.
    templates = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if odd := [name for name in templates if "/" in str(name) or "\0" in str(name)]:
        raise CheckpointError(f"{what} has a chat template whose name is no file name: {odd[0]!r}. Rename it.")
    for name in ("cls_token_id", "pad_token_id"):
        if getattr(tokenizer, name) is None:
            raise CheckpointError(f"{what} has no {name.removesuffix('_id')}; a BERT tokenizer has one")

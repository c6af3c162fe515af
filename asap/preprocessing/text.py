"""Texts to word pieces and back: each piece keeps the index of the original word it came from.

DGM4 annotates whitespace words, and the model reads word pieces. The published code tokenizes the cleaned caption as a
whole and cannot map pieces back to words (`$5`, `president's`). Here every word is cleaned and tokenized by itself, and
its index is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from asap.errors import AnnotationError, CheckpointError, ConfigError
from asap.preprocessing.rereading import MAX_REREAD, hides, is_latin, other_readings
from asap.preprocessing.words import (
    MAX_CHARACTERS,
    check_text,
    clean_caption,
    clean_word,
    no_word_left,
    replace_unreadable,
    split_words,
)

if TYPE_CHECKING:
    # Both take seconds to load, and processes that only read texts need neither.
    import torch
    from transformers import PreTrainedTokenizerFast

Ids = Sequence[int] | NDArray[np.integer]
_SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_CACHED_WORDS = 2**16
"""Words whose pieces are cached. A full cache is emptied."""


@dataclass(frozen=True, kw_only=True)
class EncodedPass:
    """The input of one run of the model over a text or a part of it."""

    input_ids: Ids
    """Ids of [CLS] and the word pieces, without [SEP]."""
    word_index: Ids
    """Index of the whitespace word that each piece came from: one entry less than `input_ids`, without [CLS]."""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """A whole text as the model reads it."""

    text: str
    passes: Sequence[EncodedPass]
    word_count: int
    """Number of whitespace words of the text."""
    share_read: float
    """Share of the text's characters that the vocabulary reads, 0 to 1. Characters that cleaning drops do not count;
    those that a cut leaves out count as unread."""


@dataclass(frozen=True, kw_only=True)
class ReaderSource:
    """Everything that a `TextReader` is made of. It travels to processes that have neither torch nor the model."""

    tokenizer: str
    """The tokenizer in the form of tokenizer.json."""
    cls_id: int
    pad_id: int
    unknown_id: int
    """Id of [UNK]; -1 for a vocabulary of bytes, which reads everything and has no such token."""
    max_words: int
    max_tokens: int
    max_characters: int = MAX_CHARACTERS

    @cached_property
    def reader_id(self) -> str:
        """The first 12 hex digits of a SHA-256 over all fields. Readers of one id read every text alike."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class LabeledText:
    """The start of an annotated text, as much as one pass holds."""

    input_ids: list[int]
    """Ids of [CLS] and the word pieces, without [SEP]."""
    token_labels: list[int]
    """The label of each piece, 1 if its word was manipulated, else 0: one entry less than `input_ids`."""
    word_index: list[int]
    """Index of the whitespace word that each piece came from, aligned with `token_labels`."""


class _Pieces(NamedTuple):
    """The pieces of a word, independent of its position in a text."""

    ids: list[int]
    parts: list[int]
    """For each piece, the index of the cleaned word it belongs to: cleaning can split a word."""
    cleaned: int
    """Number of cleaned words that have a piece."""
    lengths: list[int]
    """For each piece, its characters; a word of which the vocabulary reads nothing is one piece."""
    changes: tuple[str, ...] = ()
    """The changes of the reading that was chosen, if the word was read anew."""


class _WordPieces(NamedTuple):
    """The pieces of one whitespace word of a text. The other fields are those of `_Pieces`."""

    position: int
    """Index of the word among the words of the text."""
    ids: list[int]
    parts: list[int]
    cleaned: int
    lengths: list[int]
    changes: tuple[str, ...] = ()


class TextReader:
    """Texts to token ids, with the index of the word that each token came from."""

    def __init__(self, source: ReaderSource) -> None:
        """Build a reader. Raises `ConfigError` if a limit of the source is too small."""
        if source.max_words < 1 or source.max_tokens < 2 or source.max_characters < 1:
            raise ConfigError(
                f"max_words {source.max_words}, max_tokens {source.max_tokens}, max_characters "
                f"{source.max_characters}: a pass holds at least 1 word, 2 tokens ([CLS] is one) and 1 character"
            )
        self.source = source
        self.pad_id = source.pad_id
        self.max_words, self.max_tokens = source.max_words, source.max_tokens
        self.max_characters = source.max_characters
        self._word_pieces = Tokenizer.from_str(source.tokenizer)
        self._cache: dict[str, _Pieces] = {}
        self._reread: dict[tuple[str, bool], _Pieces] = {}

    def encode(self, text: str | None) -> list[EncodedPass]:
        """Tokenize the whole text, in as many passes as it needs; no word is split over two passes.

        A word that no pass can hold is cut, and `warnings` reports it. A word without cleaned content (`--`) has no
        piece. A word that hides what it says, or of which the vocabulary cannot read a piece, is read anew
        (`asap.preprocessing.rereading`), and `warnings` says what was changed; `word_index` is that of the original
        words. Raises `TextMissing` or `TextInvalid`.
        """
        return list(self.read(text).passes)

    def read(self, text: str | None) -> EncodedText:
        """Return the text with the passes of `encode`. Raises `TextMissing` or `TextInvalid`."""
        checked = check_text(text, self.max_characters)
        whole = self._tokenize(checked, anew=True)
        words = [fitting for word in whole for fitting in _cut([word], self.max_words, self.max_tokens - 1)]
        warnings = [
            f"word {word.position} has {len(word.ids)} pieces; only the first {len(fitting.ids)} were analyzed"
            for word, fitting in zip(whole, words, strict=True)
            if len(fitting.ids) < len(word.ids)
        ]
        if changed := [word for word in whole if word.changes]:
            changes = ", ".join(dict.fromkeys(change for word in changed for change in word.changes))
            warnings.append(f"{len(changed)} word{'s' if len(changed) > 1 else ''} read anew for the model: {changes}")
        # First find how few passes the limits allow. Then lower the word limit as far as that number of passes
        # allows: passes of about equal length leave none with a word or two and no context.
        passes = self._fill(words, self.max_words)
        even_length = -(-sum(word.cleaned for word in words) // len(passes))
        evened = (self._fill(words, limit) for limit in range(even_length, self.max_words + 1))
        passes = next((even for even in evened if len(even) == len(passes)), passes)
        encoded = [
            EncodedPass(input_ids=self._ids(part), word_index=_word_index(part), warnings=[] if i else warnings)
            for i, part in enumerate(passes)
        ]
        pieces = ((piece, length) for word in words for piece, length in zip(word.ids, word.lengths, strict=True))
        legible = sum(length for piece, length in pieces if piece != self.source.unknown_id)
        share = legible / sum(sum(word.lengths) for word in whole)
        return EncodedText(text=checked, passes=encoded, word_count=len(checked.split()), share_read=share)

    def readable_share(self, text: str | None) -> float:
        """Return the share of `read`. Raises `TextMissing` or `TextInvalid`."""
        return self.read(text).share_read

    def _tokenize(self, text: str, *, anew: bool = False) -> list[_WordPieces]:
        """Return the pieces of every word that has any; with `anew`, in the reading that the vocabulary reads best."""
        text = replace_unreadable(text)
        in_latin_text = anew and is_latin(text)
        words = [
            _WordPieces(position, *pieces)
            for position, word in enumerate(text.split())
            if (pieces := self._pieces_anew(word, in_latin_text) if anew else self._pieces(word)).ids
        ]
        if not words:
            raise no_word_left(text)
        return words

    def _pieces(self, word: str) -> _Pieces:
        """Return the pieces of a whitespace word. Words recur: without the cache, this takes three times as long."""
        if (cached := self._cache.get(word)) is not None:
            return cached
        pieces = self._pieces_of(clean_word(word))
        if len(self._cache) >= _CACHED_WORDS:
            self._cache.clear()
        # Threads may share a codec: setdefault keeps the first entry, and both are equal.
        return self._cache.setdefault(word, pieces)

    def _pieces_of(self, cleaned: list[str], changes: tuple[str, ...] = ()) -> _Pieces:
        encoding = self._word_pieces.encode(cleaned, is_pretokenized=True, add_special_tokens=False)
        # A word id is None only for special and padding tokens, and here are neither.
        parts = cast("list[int]", encoding.word_ids)
        lengths = [end - start for start, end in encoding.offsets]
        return _Pieces(encoding.ids, parts, len(set(parts)), lengths, changes)

    def _pieces_anew(self, word: str, in_latin_text: bool) -> _Pieces:
        """Return the pieces of a word in the reading with the fewest unreadable ones.

        A word that hides nothing, and of which every piece is read, keeps its pieces. At a tie a word that hides
        nothing stays as it is, and a word that does gets the reading with the fewest pieces.
        """
        pieces = self._pieces(word)
        if len(word) > MAX_REREAD:
            return pieces
        is_hiding = hides(word)
        if not is_hiding and self.source.unknown_id not in pieces.ids:
            return pieces
        if (cached := self._reread.get((word, in_latin_text))) is not None:
            return cached
        readings = other_readings(word, in_latin_text=in_latin_text)
        cleaned = [clean_word(reading.word) for reading in readings]
        anew = [
            self._pieces_of(words, reading.changes) for words, reading in zip(cleaned, readings, strict=True) if words
        ]
        if is_hiding and not all(cleaned):  # such as &nbsp; alone, which is no word
            pieces, anew = self._pieces_of([]), []

        def cost(one: _Pieces) -> tuple[int, bool, int]:
            return one.ids.count(self.source.unknown_id), is_hiding and one is pieces, len(one.ids)

        best = min([pieces, *anew], key=cost) if pieces.ids else min(anew, key=cost, default=pieces)
        if best.ids == pieces.ids:
            best = pieces
        if len(self._reread) >= _CACHED_WORDS:
            self._reread.clear()
        return self._reread.setdefault((word, in_latin_text), best)

    def _fill(self, words: list[_WordPieces], max_words: int) -> list[list[_WordPieces]]:
        """Put words into passes in order, and open the next pass when a word no longer fits."""
        passes: list[list[_WordPieces]] = []
        words_left = pieces_left = 0
        for word in words:
            if not passes or word.cleaned > words_left or len(word.ids) > pieces_left:
                passes.append([])
                words_left, pieces_left = max_words, self.max_tokens - 1
            passes[-1].append(word)
            words_left -= word.cleaned
            pieces_left -= len(word.ids)
        return passes

    def _ids(self, words: list[_WordPieces]) -> list[int]:
        return [self.source.cls_id, *(piece for word in words for piece in word.ids)]


class TextCodec(TextReader):
    """A reader that has its tokenizer, and encodes labeled texts too."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_words: int = 50,
        max_tokens: int = 128,
        max_characters: int = MAX_CHARACTERS,
    ) -> None:
        """Build a codec.

        Args:
            tokenizer: a fast transformers tokenizer with [CLS] and [PAD].
            max_words: cleaned words in one pass.
            max_tokens: tokens in one pass, [CLS] included.
            max_characters: characters in a whole text, so that one pair cannot cost thousands of passes.

        Raises `ConfigError` if a limit is too small, `CheckpointError` if the tokenizer is not of that kind.
        """
        _check_tokenizer(tokenizer, "the tokenizer")
        self.tokenizer = tokenizer
        source = ReaderSource(
            tokenizer=_without_limits(tokenizer.backend_tokenizer.to_str()),
            cls_id=tokenizer.cls_token_id,
            pad_id=tokenizer.pad_token_id,
            unknown_id=-1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id,
            max_words=max_words,
            max_tokens=max_tokens,
            max_characters=max_characters,
        )
        super().__init__(source)

    def encode_labeled(self, text: str, fake_text_pos: Sequence[int] = ()) -> LabeledText:
        """Tokenize the start of an annotated text, cut after `max_words` cleaned words and `max_tokens` tokens.

        `fake_text_pos` holds the positions of the manipulated whitespace words, as DGM4 gives them. Raises
        `AnnotationError` for a position that the text does not have, `TextMissing` or `TextInvalid`.
        """
        count = len(split_words(check_text(text, self.max_characters)))
        for position in fake_text_pos:
            if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position < count:
                raise AnnotationError(
                    f"fake_text_pos has {position!r}, but the text has words 0 to {count - 1}: {text!r}"
                )
        part = list(_cut(self._tokenize(text), self.max_words, self.max_tokens - 1))
        manipulated, word_index = set(fake_text_pos), _word_index(part)
        labels = [int(index in manipulated) for index in word_index]
        return LabeledText(input_ids=self._ids(part), token_labels=labels, word_index=word_index)

    def label_as_published(self, text: str, fake_text_pos: Sequence[int] = ()) -> list[int]:
        """Return the labels that the published code gives to the same pieces, to compare with the papers' metrics.

        The published code cleans and tokenizes the caption as a whole, and takes position i for the i-th word of
        BERT's own splitting. BERT splits at punctuation that cleaning leaves (`$5` is two words), and it cannot see
        which words cleaning split (`re-opens`) or dropped (`--`). After such a word, labels drift to a neighbor.
        Positions from `max_words` on are left out. The cut is one piece shorter than in `encode_labeled`, because
        the published code reserves a token for [SEP].
        """
        caption = clean_caption(replace_unreadable(text), self.max_words)
        word_ids = self._word_pieces.encode(caption, add_special_tokens=False).word_ids[: self.max_tokens - 2]
        manipulated = {position for position in fake_text_pos if position < self.max_words}
        return [int(index in manipulated) for index in word_ids]


def _cut(words: list[_WordPieces], max_words: int, max_pieces: int) -> Iterator[_WordPieces]:
    """Yield the first words that both limits allow; the last word may lose its last pieces."""
    for word in words:
        if word.cleaned <= max_words and len(word.ids) <= max_pieces:
            yield word
            max_words -= word.cleaned
            max_pieces -= len(word.ids)
            continue
        # The word does not fit: keep its first cleaned words, and of those the first pieces.
        within = sorted(set(word.parts))[:max_words]
        kept = [piece for piece in range(len(word.ids)) if word.parts[piece] in within][:max_pieces]
        if not kept:
            return
        ids, parts, lengths = ([values[piece] for piece in kept] for values in (word.ids, word.parts, word.lengths))
        yield _WordPieces(word.position, ids, parts, len(set(parts)), lengths, word.changes)
        max_words -= len(within)
        max_pieces -= len(kept)


def _word_index(words: list[_WordPieces]) -> list[int]:
    return [word.position for word in words for _ in word.ids]


def pad_batch(input_ids: Sequence[Ids], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids (B, L) and their attention mask (B, L), int64, padded to the longest of the batch."""
    import torch

    lengths_B = np.fromiter(map(len, input_ids), np.int64, len(input_ids))
    mask_BL = np.arange(lengths_B.max(initial=0)) < lengths_B[:, None]
    ids_BL = np.full(mask_BL.shape, pad_id, np.int64)
    if len(input_ids):
        ids_BL[mask_BL] = np.concatenate(input_ids)  # row by row, as the mask is read
    return torch.from_numpy(ids_BL), torch.from_numpy(mask_BL.astype(np.int64))


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_tokens: int = 512) -> PreTrainedTokenizerFast:
    """Train a lower-case BERT WordPiece vocabulary of at most `vocab_size` on cleaned texts.

    Every character of the texts becomes a piece, up to a quarter of the vocabulary. The same texts give the same
    vocabulary, in any order.
    """
    from transformers import BertTokenizerFast  # takes seconds to import, and only two functions need it

    normalizer = normalizers.BertNormalizer(lowercase=True)
    cleaned = [normalizer.normalize_str(" ".join(clean_word(text))) for text in texts]
    counts = Counter(character for text in cleaned for character in text if not character.isspace())
    alphabet = sorted(sorted(counts, key=lambda character: (-counts[character], character))[: vocab_size // 4])
    # The trainer breaks ties by token id, and it assigns ids in hash order to pieces that are not special tokens.
    # Listing the alphabet among the special tokens makes the vocabulary deterministic.
    listed = [*_SPECIAL_TOKENS.values(), *alphabet, *(f"##{character}" for character in alphabet)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=listed,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer = Tokenizer(models.WordPiece(unk_token=_SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(cleaned, trainer)
    return BertTokenizerFast(vocab=tokenizer.get_vocab(), model_max_length=max_tokens, **_SPECIAL_TOKENS)


def read_reader_source(folder: str | Path, *, max_words: int, max_tokens: int) -> ReaderSource | None:
    """Read the source of a model's `TextReader` from its tokenizer folder, without transformers.

    None for a folder whose files alone do not say which tokenizer transformers makes of them. `reader_id` tells if it
    makes the same one.
    """
    try:
        names = json.loads((Path(folder) / "tokenizer_config.json").read_text("utf-8"))
        content = _without_limits((Path(folder) / "tokenizer.json").read_text("utf-8"))
        tokenizer = Tokenizer.from_str(content)
        cls_id, pad_id, unknown_id = (tokenizer.token_to_id(names[f"{token}_token"]) for token in ("cls", "pad", "unk"))
    except Exception:  # tokenizers raises nothing more special; `load_tokenizer` reports what is broken
        return None
    if cls_id is None or pad_id is None or unknown_id is None:
        return None
    return ReaderSource(
        tokenizer=content, cls_id=cls_id, pad_id=pad_id, unknown_id=unknown_id, max_words=max_words,
        max_tokens=max_tokens,
    )  # fmt: skip


def _without_limits(tokenizer: str) -> str:
    """Return a tokenizer.json in the form that tokenizers writes, without the truncation and padding it may hold."""
    plain = Tokenizer.from_str(tokenizer)
    plain.no_truncation()
    plain.no_padding()
    return str(plain.to_str())


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Read a tokenizer from a local folder. Nothing is downloaded, and no code in the folder is run.

    Raises `CheckpointError` if the folder holds no tokenizer that `TextCodec` can use.
    """
    from transformers import AutoTokenizer  # takes seconds to import, and only two functions need it

    folder = Path(folder)
    if folder.is_file():
        raise CheckpointError(f"tokenizer {str(folder)!r} is a file. Name the folder that it is in.")
    if not folder.is_dir():
        raise CheckpointError(f"tokenizer folder {str(folder)!r} does not exist")
    files = {path.name for path in folder.iterdir()}
    if "vocab.txt" in files and not files & {"tokenizer.json", "tokenizer_config.json", "config.json"}:
        raise CheckpointError(
            f"tokenizer folder {str(folder)!r} has vocab.txt alone, which does not say how texts are split. Add "
            'tokenizer_config.json; for an uncased BERT: {"tokenizer_class": "BertTokenizer", "do_lower_case": true}'
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers does not document what it raises for a broken folder
        raise CheckpointError(f"tokenizer folder {str(folder)!r} cannot be used: {error}") from error
    _check_tokenizer(tokenizer, f"the tokenizer in {str(folder)!r}")
    return tokenizer


def as_tokenizer(tokenizer: PreTrainedTokenizerFast | str | Path) -> PreTrainedTokenizerFast:
    """Return a tokenizer, or read it if it is given as its folder. Raises as `load_tokenizer` does."""
    if isinstance(tokenizer, str | Path):
        return load_tokenizer(tokenizer)
    _check_tokenizer(tokenizer, "the tokenizer")
    return tokenizer


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    if not hasattr(tokenizer, "save_pretrained"):
        raise CheckpointError(
            f"{name} is no tokenizer but a {type(tokenizer).__name__}. Pass a tokenizer of transformers, or its folder."
        )
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"{name} is not a fast one, so its pieces cannot be traced to words. Save it as tokenizer.json."
        )
    # transformers saves multiple chat templates as files with their names, and only later versions check the names.
    templates = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if odd := [template for template in templates if "/" in str(template) or "\0" in str(template)]:
        raise CheckpointError(f"{name} has a chat template whose name is not a file name: {odd[0]!r}. Rename it.")
    for token_id in ("cls_token_id", "pad_token_id"):
        if getattr(tokenizer, token_id) is None:
            token = token_id.removesuffix("_id")
            raise CheckpointError(f"{name} has no {token}, which the model needs. Use a BERT tokenizer.")

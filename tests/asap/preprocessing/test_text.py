"""Words to word pieces, and pieces back to words."""

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from asap.errors import AnnotationError, CheckpointError, ConfigError, TextInvalid, TextMissing
from asap.preprocessing.text import (
    TextCodec,
    TextReader,
    load_tokenizer,
    pad_batch,
    read_reader_source,
    train_tokenizer,
)
from asap.preprocessing.words import MAX_CHARACTERS, clean_caption, estimate_passes, split_words

CORPUS = [
    "The president's well-known speech cost $5 million, he said.",
    "A crowd cheers/waves as the ex-minister leaves the café in July!",
    "one two three four five six seven eight nine ten president million",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS * 3, vocab_size=300)


@pytest.fixture
def codec(tokenizer):
    return TextCodec(tokenizer)


def pieces(codec, encoded):
    return codec.tokenizer.convert_ids_to_tokens(encoded.input_ids)


def words_of(text, encoded):
    """Return the original word of each piece."""
    words = text.split()
    return [words[index] for index in encoded.word_index]


def test_a_text_begins_with_cls_and_has_no_sep(codec):
    (encoded,) = codec.encode("the president said")
    assert encoded.input_ids[0] == codec.tokenizer.cls_token_id
    assert codec.tokenizer.sep_token_id not in encoded.input_ids
    assert len(encoded.word_index) == len(encoded.input_ids) - 1


def test_every_piece_has_the_index_of_its_whitespace_word(codec):
    text = "He -- the president's $5 ex-minister, re-opens"
    (encoded,) = codec.encode(text)
    by_word = {}
    for piece, index in zip(pieces(codec, encoded)[1:], encoded.word_index, strict=True):
        by_word[index] = by_word.get(index, "") + piece.removeprefix("##")
    assert by_word == {0: "he", 2: "the", 3: "presidents", 4: "$5", 5: "exminister", 6: "reopens"}
    assert encoded.warnings == []


def test_the_pieces_are_those_of_the_cleaned_caption(codec):
    text = "All smiles in July, as the President's ex-minister; announces/denies the $5 deal."
    (encoded,) = codec.encode(text)
    whole = codec.tokenizer(clean_caption(text, 50), add_special_tokens=False)["input_ids"]
    assert encoded.input_ids[1:] == whole


def test_a_long_text_is_analyzed_to_its_end_in_even_passes(tokenizer):
    codec = TextCodec(tokenizer, max_words=10, max_tokens=64)
    text = " ".join(f"one two-{i}" for i in range(10))  # 20 words, 30 cleaned
    passes = codec.encode(text + " end")
    assert sorted({index for one in passes for index in one.word_index}) == list(range(21))
    assert [index for one in passes for index in one.word_index] == sorted(i for one in passes for i in one.word_index)
    assert all(
        len(clean_caption(" ".join(dict.fromkeys(words_of(text + " end", one))), 99).split()) <= 10 for one in passes
    )
    sizes = [len(set(one.word_index)) for one in passes]
    assert min(sizes) * 2 >= max(sizes)


def test_fifty_one_words_are_split_evenly_over_two_passes(codec):
    first, second = codec.encode("one " * 51)
    assert (len(first.word_index), len(second.word_index)) == (26, 25)


def test_fifty_words_are_one_pass(codec):
    assert len(codec.encode("one " * 50)) == 1


def test_words_are_not_split_over_passes_and_tokens_are_bounded(tokenizer):
    codec = TextCodec(tokenizer, max_words=50, max_tokens=12)
    text = "the unfathomable xylophonist quietly juxtaposed zebras $1,000,000 well-known " * 3
    passes = codec.encode(text)
    seen = [set(one.word_index) for one in passes]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 24
    assert all(len(one.input_ids) <= 12 for one in passes)
    assert all(one.warnings == [] for one in passes)


def test_a_word_with_more_pieces_than_a_pass_holds_is_cut_with_a_warning(tokenizer):
    codec = TextCodec(tokenizer, max_tokens=8)
    passes = codec.encode("one " + "$" * 40 + " two")
    assert max(len(one.input_ids) for one in passes) == 8
    assert passes[0].warnings == ["word 1 has 40 pieces; only the first 7 were analyzed"]
    assert {index for one in passes for index in one.word_index} == {0, 1, 2}


def test_a_word_of_more_cleaned_words_than_a_pass_holds_is_cut_with_a_warning(tokenizer):
    codec = TextCodec(tokenizer, max_words=3)
    (encoded,) = codec.encode("one-two-three-four-five")
    assert pieces(codec, encoded)[1:] == ["one", "two", "three"]
    assert "only the first 3" in encoded.warnings[0]


def shifted(text):
    return "".join(chr(ord(letter) + 0xFEE0) if letter.isalpha() else letter for letter in text)


PLAIN = "The president speech crowd cheers"


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (shifted(PLAIN), "5 words read anew for the model: fullwidth and other forms replaced by plain ones"),
        (PLAIN.replace("e", "\u0435"), "4 words read anew for the model: look-alike letters replaced"),
        ("The pres\u200bident speech cr\u00adowd cheers", None),
        (
            "The president\u200bspeech crowd\u2060cheers",
            "2 words read anew for the model: invisible characters removed",
        ),
        ("The &#112;resident speech crow&#x64; cheers", "2 words read anew for the model: entities undone"),
        ("The \u03c1resident speech crowd cheers", "1 word read anew for the model: look-alike letters replaced"),
        ("".join(letter + "\u20dd" if letter.isalpha() else letter for letter in PLAIN), "combining marks removed"),
    ],
)
def test_a_hidden_text_is_read_as_its_plain_form(codec, text, changes):
    (hidden,), (plain,) = codec.encode(text), codec.encode(PLAIN)
    assert hidden.input_ids == plain.input_ids
    assert codec.readable_share(text) == 1
    if changes:
        assert changes in hidden.warnings[0]
    else:
        assert hidden.warnings == []


def test_words_keep_their_positions_if_they_are_read_anew(codec):
    text = f"The {shifted('president')} leaves &amp; cheers"
    (encoded,) = codec.encode(text)
    assert words_of(text, encoded)[-1] == "cheers"
    assert {text.split()[index] for index in encoded.word_index} >= {shifted("president"), "leaves", "cheers"}


@pytest.mark.parametrize("text", ["The &nbsp; president", "The president &quot;", "&#8203; The president"])
def test_an_entity_of_something_invisible_is_no_word(codec, text):
    (encoded,) = codec.encode(text)
    assert encoded.input_ids == codec.encode("The president")[0].input_ids


@pytest.mark.parametrize("text", ["&#" + "1" * 5000 + "; The", "a\u0431" + "\u0344" * 9000 + "\u0316" * 9000 + " The"])
def test_a_word_that_is_made_to_cost_much_is_read_as_it_stands(codec, text):
    assert codec.encode(text)[0].word_index[-1] == 1


def test_a_quoted_language_is_not_turned_into_latin_words(codec):
    assert codec.readable_share("The president said \u0441\u043e\u0440 \u0434\u043e\u043c") < 0.8


@pytest.mark.parametrize("text", CORPUS)
def test_plain_texts_are_read_to_the_token_as_before(codec, text):
    (encoded,) = codec.encode(text)
    assert encoded.input_ids == codec.encode_labeled(text).input_ids
    assert encoded.warnings == []


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("الرئيس يفتتح الجسر", 0),
        ("总统今天在首都为新桥揭幕并发表讲话", 0),
        ("Президент открывает мост", 0),
        ("The president", 1),
        ("president Привет", 9 / 15),
        ("-- president /", 1),
        ("😀 😀", 0),
    ],
)
def test_the_readable_share_counts_the_characters_that_the_vocabulary_reads(codec, text, share):
    assert codec.readable_share(text) == pytest.approx(share)


def test_a_part_that_a_cut_leaves_out_counts_as_unread(tokenizer):
    codec = TextCodec(tokenizer, max_tokens=8)
    assert codec.readable_share("$" * 70) == pytest.approx(0.1)


def test_a_word_of_another_script_stays_as_it_is_though_its_letters_look_latin(codec):
    assert codec.readable_share("рост") == 0
    (encoded,) = codec.encode("The president speech \u0441\u043e\u0440 crowd cheers")
    assert encoded.warnings == ["1 word read anew for the model: look-alike letters replaced"]


@pytest.mark.parametrize("text", [None, "", " \n\t\u00a0"])
def test_none_and_blank_texts_are_missing(codec, text):
    with pytest.raises(TextMissing):
        codec.encode(text)


@pytest.mark.parametrize("text", [7, b"bytes", ["a", "list"], float("nan")])
def test_a_text_that_is_not_a_string_is_invalid_and_its_type_is_reported(codec, text):
    with pytest.raises(TextInvalid, match=type(text).__name__):
        codec.encode(text)


@pytest.mark.parametrize("text", ["!!!", "-- / ...", "\0", "\ud800 \udfff", "\ufffd"])
def test_a_text_without_a_word_is_invalid(codec, text):
    with pytest.raises(TextInvalid, match="no word is left"):
        codec.encode(text)


def test_a_text_beyond_the_limit_is_invalid_and_the_limit_is_reported(codec):
    with pytest.raises(TextInvalid, match="20000"):
        codec.encode("word " * 2_000_000)
    assert len(codec.encode("a " * 10_000)) == 200


def test_surrogates_and_nuls_do_not_change_the_offsets(codec):
    text = "the\ud83d presi\0dent \udc00said"
    (encoded,) = codec.encode(text)
    clean = codec.encode("the president said")[0]
    assert encoded.input_ids == clean.input_ids
    assert encoded.word_index == clean.word_index
    assert [text[word.start : word.end] for word in split_words(text)] == ["the\ud83d", "presi\0dent", "\udc00said"]


def test_any_string_is_encoded_or_refused_with_a_typed_error(codec):
    stream = random.Random(0)
    ranges = (
        (0, 0x7F),
        (0x80, 0x2FF),
        (0x300, 0x36F),
        (0x2000, 0x206F),
        (0xD800, 0xDFFF),
        (0x4E00, 0x9FFF),
        (0, 0x10FFFF),
    )
    for _ in range(400):
        text = "".join(chr(stream.randint(*stream.choice(ranges))) for _ in range(stream.randrange(60)))
        count = len(split_words(text))
        assert count == len(text.split())
        try:
            passes = codec.encode(text)
        except (TextMissing, TextInvalid):
            continue
        assert all(0 <= index < count for one in passes for index in one.word_index)
        assert all(len(one.word_index) == len(one.input_ids) - 1 > 0 for one in passes)


def test_labels_follow_the_words_through_cleaning(codec):
    text = "He -- the president's $5 ex-minister smiles"
    labeled = codec.encode_labeled(text, [3, 5])
    marked = {index for index, label in zip(labeled.word_index, labeled.token_labels, strict=True) if label}
    assert marked == {3, 5}
    assert all(
        (index in marked) == bool(label) for index, label in zip(labeled.word_index, labeled.token_labels, strict=True)
    )
    assert labeled.input_ids == codec.encode(text)[0].input_ids
    assert len(labeled.token_labels) == len(labeled.input_ids) - 1


def test_a_manipulated_word_without_content_labels_no_piece(codec):
    assert sum(codec.encode_labeled("one -- two", [1]).token_labels) == 0


def test_a_labeled_text_is_cut_where_the_published_one_is(tokenizer):
    codec = TextCodec(tokenizer, max_words=4)
    labeled = codec.encode_labeled("one two-three four-five six", [2, 3])
    assert codec.tokenizer.convert_ids_to_tokens(labeled.input_ids) == ["[CLS]", "one", "two", "three", "four"]
    assert labeled.token_labels == [0, 0, 0, 1]
    short = TextCodec(tokenizer, max_tokens=3).encode_labeled("one two three")
    assert len(short.input_ids) == 3
    assert short.token_labels == [0, 0]


@pytest.mark.parametrize("position", [3, -1, 1.0, True, "1", None])
def test_a_position_that_the_text_does_not_have_is_an_annotation_error(codec, position):
    with pytest.raises(AnnotationError, match="words 0 to 2"):
        codec.encode_labeled("one two three", [0, position])


def labeled_pieces(codec, text, positions):
    """Return the pieces that the published code labels as manipulated."""
    ids = codec.encode_labeled(text, positions).input_ids[1:]
    labels = codec.label_as_published(text, positions)
    return codec.tokenizer.convert_ids_to_tokens([piece for piece, label in zip(ids, labels, strict=True) if label])


def test_published_labels_match_the_words_if_no_word_is_split(codec):
    text = "one two three, four five six!"
    assert codec.label_as_published(text, (1, 4)) == codec.encode_labeled(text, (1, 4)).token_labels


@pytest.mark.parametrize(
    ("text", "position", "drifted"),
    [
        ("$ one two three", 2, "two"),  # `$` is a word for both: no drift
        ("$one two three four", 2, "two"),  # BERT splits `$` and `one`
        ("president’s two three four five six", 3, "two"),  # BERT splits it into three words
        ("well-known two three four", 2, "two"),  # cleaning splits the first word
        ("-- one two three", 1, "two"),  # cleaning drops the first word
    ],
)
def test_published_labels_drift_after_punctuation(codec, text, position, drifted):
    assert labeled_pieces(codec, text, (position,)) == [drifted]


def test_published_labels_that_drift_past_the_end_are_lost(codec):
    text = "one -- two"
    assert codec.label_as_published(text, (2,)) == [0, 0]
    assert codec.encode_labeled(text, (2,)).token_labels == [0, 1]


def test_published_labels_are_cut_as_in_the_published_code(tokenizer):
    short = TextCodec(tokenizer, max_words=3, max_tokens=4)
    assert short.label_as_published("one two three four", (1, 3)) == [0, 1]
    assert len(short.encode_labeled("one two three four").token_labels) == 3
    assert TextCodec(tokenizer, max_words=3).label_as_published("one $two three", (2, 3)) == [0, 0, 1, 0]


def test_every_piece_of_any_text_has_a_published_label(codec):
    alphabet = "ab é$-/'’\u0301\u200d漢字\u00a0\x1f\x85#<person>.\ud800\0"
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choices(alphabet, k=draw.randint(1, 30)))
        try:
            pieces = codec.encode_labeled(text).token_labels
        except (TextMissing, TextInvalid):
            continue
        assert len(codec.label_as_published(text)) == len(pieces), repr(text)


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("", 1),
        (" -- ", 1),
        ("one " * 50, 1),
        ("one, two! " * 25, 1),
        ("one " * 51, 2),
        ("one-two " * 26, 2),
        ("a " * 10_000, 200),
        ("漢" * 20_000, 1),
        (("漢" * 32 + " ") * 606, 606),
        (("漢" * 63 + " a ") * 303, 606),
        ("☂" * 20_000, 1),
        ("☂ " * 10_000, 200),
        ("x" * 20_000, 1),
    ],
)
def test_the_estimated_passes_are_those_of_the_codec(tokenizer, text, passes):
    assert estimate_passes(text) == passes
    try:
        assert len(TextCodec(tokenizer, max_words=50, max_tokens=64).encode(text)) == passes
    except (TextMissing, TextInvalid):
        assert passes == 1


@pytest.mark.parametrize("length", [1, 4, 12, 13, 20, 32, 63, 99])
def test_random_words_take_at_most_ten_times_the_estimated_passes(codec, length):
    drawn = random.Random(length)
    words = ("".join(drawn.choices("bcdfghjklmnpqrstvwxz", k=length)) for _ in range(20_000 // (length + 1)))
    text = " ".join(words)
    assert len(TextCodec(codec.tokenizer, max_tokens=64).encode(text)) <= 10 * estimate_passes(text)


def test_the_estimate_for_a_text_that_is_too_long_is_one_pass():
    assert estimate_passes("a " * (MAX_CHARACTERS // 2) + "a") == 1


def test_texts_are_padded_to_the_longest_and_padding_is_masked():
    ids, mask = pad_batch([[2, 5, 6], [2]], pad_id=9)
    assert ids.tolist() == [[2, 5, 6], [2, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64


def test_an_empty_batch_is_padded_to_nothing():
    ids, mask = pad_batch([], pad_id=0)
    assert ids.shape == mask.shape == (0, 0)
    assert ids.dtype == torch.int64


def test_a_trained_tokenizer_keeps_its_size_limit_and_puts_padding_first(tokenizer):
    assert len(tokenizer) <= 300
    assert tokenizer.pad_token_id == 0
    assert tokenizer.unk_token_id == 1
    assert "".join(tokenizer.tokenize("CAFÉ")).replace("##", "") == "cafe"


def test_training_is_deterministic_for_any_order_of_the_texts():
    texts = [f"word{i % 37} of {i % 11} people re-open{i % 5}s the bazaar" for i in range(400)]
    shuffled = random.Random(1).sample(texts, len(texts))
    vocabularies = [train_tokenizer(some, 150).get_vocab() for some in (texts, texts, shuffled, texts)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


def test_an_alphabet_beyond_a_quarter_of_the_vocabulary_keeps_the_frequent_characters():
    tokenizer = train_tokenizer(["".join(chr(0x4E00 + i) for i in range(90)), "\u4e05 " * 9], 80)
    assert len(tokenizer) <= 80
    assert tokenizer.tokenize("\u4e05") == ["\u4e05"]


def test_a_saved_tokenizer_loads_and_encodes_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = load_tokenizer(tmp_path / "tokenizer")
    text = "the president's $5 café, re-opened by xylophonists"
    assert TextCodec(again).encode(text) == TextCodec(tokenizer).encode(text)


def test_a_reader_that_is_made_without_transformers_reads_as_the_codec_does(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    loaded.backend_tokenizer.enable_truncation(3)
    codec = TextCodec(loaded, max_words=10, max_tokens=16)
    source = read_reader_source(tmp_path, max_words=10, max_tokens=16)
    assert source == codec.source
    assert source.reader_id == codec.source.reader_id
    for text in (*CORPUS, "fullwidth \uff4d\uff49\uff4e\uff49", "$" * 40, " ".join(CORPUS)):
        assert TextReader(source).read(text) == codec.read(text)


def test_readers_of_other_tokenizers_or_limits_have_other_ids(tokenizer, codec):
    ids = {
        codec.source.reader_id,
        TextCodec(tokenizer, max_words=49).source.reader_id,
        TextCodec(tokenizer, max_tokens=64).source.reader_id,
        TextCodec(train_tokenizer(CORPUS[:2], 100)).source.reader_id,
    }
    assert len(ids) == 4
    assert TextCodec(tokenizer).source.reader_id == codec.source.reader_id


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", None), ("tokenizer.json", None), ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "{}"), ("tokenizer_config.json", '{"cls_token": {"content": "[CLS]"}}'),
        ("tokenizer_config.json", '{"cls_token": "[FOREIGN]", "pad_token": "[PAD]", "unk_token": "[UNK]"}'),
    ],
)  # fmt: skip
def test_files_that_do_not_say_which_tokenizer_they_make_give_no_source(tokenizer, tmp_path, file, content):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    assert read_reader_source(tmp_path, max_words=50, max_tokens=128) is None


def test_truncation_and_padding_saved_with_a_tokenizer_are_ignored(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    again.backend_tokenizer.enable_truncation(3)
    again.backend_tokenizer.enable_padding(length=9)
    (encoded,) = TextCodec(again).encode("one two three four five")
    assert again.backend_tokenizer.truncation is not None
    assert encoded.word_index == [0, 1, 2, 3, 4]


def test_a_folder_without_a_tokenizer_is_refused_by_name(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "gone", Path("bert-base-uncased")):
        with pytest.raises(CheckpointError, match=folder.name):
            load_tokenizer(folder)


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "a\0"])
def test_a_chat_template_whose_name_is_not_a_file_name_is_refused(tokenizer, name, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    templates = [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "x"}]
    config = json.loads(file.read_text()) | {"chat_template": templates}
    file.write_text(json.dumps(config))
    assert set(load_tokenizer(tmp_path).chat_template) == {"default", "tool_use"}
    templates[1]["name"] = name
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="chat template whose name is not a file name") as caught:
        load_tokenizer(tmp_path)
    assert repr(name) in str(caught.value)


def test_a_tokenizer_without_cls_is_refused(tmp_path):
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordPiece({"a": 0}, unk_token="a")), unk_token="a")
    with pytest.raises(CheckpointError, match="cls_token"):
        TextCodec(bare)


def test_a_tokenizer_that_is_not_fast_is_refused():
    class Slow:
        def save_pretrained(self, folder):
            raise AssertionError("not reached")

    with pytest.raises(CheckpointError, match="not a fast one"):
        TextCodec(Slow())
    with pytest.raises(CheckpointError, match="is no tokenizer but a str"):
        TextCodec("bert-base-uncased")


@pytest.mark.parametrize("limit", [{"max_words": 0}, {"max_tokens": 1}, {"max_characters": 0}])
def test_limits_that_allow_nothing_are_refused(tokenizer, limit):
    with pytest.raises(ConfigError, match=next(iter(limit))):
        TextCodec(tokenizer, **limit)

"""A truncated text, tokenized again, has the tokens it was cut to."""

import functools

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from llmrec_plugin.pipeline.cutting import cut

TEXTS = (
    "Unbelievably interoperable, internationalized multithreading; don't under-estimate it 1234567890 times!",
    "naïve café e\u0301te\u0301 Straße İstanbul Ａｂｃ ﬁne  double   spaces\tand\n\nlines",
    "Loved it! 🎬🍿 Ten out of ten, 👨\u200d👩\u200d👧 would watch again 🎬🎬🎬🎬",
    "سرویس پیشنهاد فیلم برای همه\u200cی خانواده",
    "这部电影讲述了一个机器人学会做梦的故事。",
    "a library to multiply matrices, a librarian's multiplication of libraries",
)


@functools.cache
def tokenizer(kind):
    """A real tokenizer of each kind, trained on the texts, which add two special tokens to every text."""
    special = ["[UNK]", "[CLS]", "[SEP]"]
    if kind == "WordPiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    elif kind == "byte-level BPE":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=150, special_tokens=special, unk_token="[UNK]", show_progress=False
        )
    made.train_from_iterator(TEXTS * 3, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return made


def cases(kind):
    """Per text and length: the text, the tokens wanted, those of the cut text, those of a text cut without a check."""
    made = Tokenizer.from_str(tokenizer(kind).to_str())
    whole = Tokenizer.from_str(tokenizer(kind).to_str())  # what a server has: it reads more tokens than are wanted
    found = []
    for text in TEXTS:
        for length in range(7, len(whole.encode(text).ids)):  # the first character fits
            made.enable_truncation(length)
            encoding = made.encode(text)
            plain = text[: max(end for _, end in encoding.offsets)]
            again = whole.encode(cut(text, encoding, made))
            found.append((text, *map(_content, (encoding, again, whole.encode(plain)))))
    assert len(found) > 100
    return found


@pytest.mark.parametrize("kind", ["WordPiece", "byte-level BPE", "Unigram"])
def test_a_cut_text_has_the_first_tokens_and_none_besides(kind):
    for text, wanted, got, _ in cases(kind):
        assert got, text
        assert got == wanted[: len(got)], text


def test_wordpiece_loses_no_token():
    assert all(got == wanted for _, wanted, got, _ in cases("WordPiece"))


@pytest.mark.parametrize("kind", ["byte-level BPE", "Unigram"])
def test_of_others_a_cut_inside_a_character_loses_its_tokens_and_no_more(kind):
    shorter = [(text, len(wanted) - len(got)) for text, wanted, got, _ in cases(kind) if got != wanted]
    assert {text for text, _ in shorter}.isdisjoint({TEXTS[0], TEXTS[5]})  # their characters are one byte each
    assert all(lost <= 6 for _, lost in shorter)  # a token may hold the end of one character and the start of another


@pytest.mark.parametrize("kind", ["byte-level BPE", "Unigram"])
def test_a_plain_cut_would_give_a_server_other_tokens(kind):
    assert any(plain[: len(wanted)] != wanted or len(plain) > len(wanted) for _, wanted, _, plain in cases(kind))


def test_a_text_whose_first_character_does_not_fit_keeps_it():
    made = Tokenizer.from_str(tokenizer("byte-level BPE").to_str())
    made.enable_truncation(3)
    assert cut("👨 watches", made.encode("👨 watches"), made) == "👨"


def test_a_text_that_is_not_truncated_is_left_alone():
    made = tokenizer("WordPiece")
    assert cut("  café \n", made.encode("  café \n"), made) == "  café \n"


def _content(encoding):
    assert (encoding.tokens[0], encoding.tokens[-1]) == ("[CLS]", "[SEP]")
    return encoding.ids[1:-1]

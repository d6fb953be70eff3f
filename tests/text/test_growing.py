from __future__ import annotations

import pytest
from helpers import tiny_model, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from memspan.text.growing import GrowingText
from memspan.text.template import PromptTemplate

INCOMPLETE = "\ufffd"


@pytest.fixture(scope="module")
def template() -> PromptTemplate:
    return PromptTemplate(tiny_model().config.template_spec, tiny_tokenizer())


def _shown(template: PromptTemplate, ids: list[int]) -> list[str | None]:
    growing = GrowingText(template)
    return [growing.read(ids[:end]) for end in range(1, len(ids) + 1)]


def _whole(template: PromptTemplate, ids: list[int]) -> list[str | None]:
    texts = [template.text(ids[:end]) for end in range(1, len(ids) + 1)]
    return [None if text.endswith(INCOMPLETE) else text for text in texts]


@given(st.lists(st.integers(0, 511), max_size=40))
@settings(max_examples=60, deadline=None)
def test_whatever_tokens_come_the_text_is_that_of_all(template: PromptTemplate, ids: list[int]) -> None:
    assert _shown(template, ids) == _whole(template, ids)


def test_characters_of_several_tokens(template: PromptTemplate) -> None:
    text = "naïve 日本 😀 a\u0301!"
    ids = template.tokenizer(text).input_ids
    shown = _shown(template, ids)
    assert shown == _whole(template, ids)
    assert shown[-1] == text and None in shown


def _words(decoder: decoders.Decoder, *words: str) -> PromptTemplate:
    vocab = {word: place for place, word in enumerate((*words, "<|im_start|>", "<|im_end|>"))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=words[0]))
    tokenizer.decoder = decoder
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    return PromptTemplate(tiny_model().config.template_spec, fast)


def test_a_tokenizer_that_drops_the_first_space() -> None:
    template = _words(decoders.Metaspace(), "▁The", "▁otter", "s", "▁swim")
    assert _shown(template, [0, 1, 2, 3, 1]) == [
        "The",
        "The otter",
        "The otters",
        "The otters swim",
        "The otters swim otter",
    ]


def test_a_tokenizer_that_changes_what_it_wrote_before() -> None:
    template = _words(decoders.WordPiece(prefix="##", cleanup=True), "do", "not", "n't", "##ing", ".", "we")
    ids = [5, 0, 2, 3, 4, 5, 0, 1, 4]
    assert _shown(template, ids) == _whole(template, ids)

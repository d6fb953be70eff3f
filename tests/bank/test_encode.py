from __future__ import annotations

import random
import string
from pathlib import Path

import pytest
from helpers import bits, tiny_loaded

from memspan.bank.edits import NewDocument
from memspan.bank.encode import Part, batches, encode_batch, manifest_of, tokenise
from memspan.model.convert import LoadedModel
from memspan.text.parts import split_document
from memspan.text.template import encoded_text
from memspan.types import Document, Span

MAX_TOKENS = 64


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded(max_document_tokens=MAX_TOKENS)


def _text(generator: random.Random, num_words: int) -> str:
    return " ".join("".join(generator.choices(string.ascii_lowercase, k=5)) for _ in range(num_words))


@pytest.mark.parametrize("num_words", [1, 9, 10, 11, 12, 13, 14, 15, 20, 40])
def test_every_part_fits_even_with_an_id_of_thirteen_digits(loaded: LoadedModel, num_words: int) -> None:
    document = Document("a", _text(random.Random(num_words), num_words), title="Title")
    for span in split_document(document, loaded.template, 2 * MAX_TOKENS):
        text = encoded_text(document.title, document.text[span.start : span.end])
        assert len(loaded.template.document(9_999_999_999_999, text)) <= 2 * MAX_TOKENS


def test_a_title_longer_than_a_document_may_be_leaves_half_for_the_text(loaded: LoadedModel) -> None:
    document = Document("a", _text(random.Random(0), 60), title=_text(random.Random(1), 100))
    spans = split_document(document, loaded.template, MAX_TOKENS)
    assert spans[-1].end == len(document.text)
    for span in spans[:-1]:
        assert MAX_TOKENS // 4 < loaded.template.count_tokens(document.text[span.start : span.end]) <= MAX_TOKENS // 2


def test_the_fingerprint_saved_with_a_checkpoint_is_the_one_computed(tmp_path: Path, loaded: LoadedModel) -> None:
    twin = tiny_loaded(max_document_tokens=MAX_TOKENS)
    twin.model.save_pretrained(tmp_path)
    assert twin.model.config.encoder_fingerprint is not None
    assert manifest_of(twin) == manifest_of(loaded)


def test_the_latents_kept_are_copies_of_their_own(loaded: LoadedModel) -> None:
    # A slice would keep its whole batch in memory until the segment is written.
    template = loaded.template
    ids = [template.document(number, "text " * number) for number in (1, 5)]
    parts = [Part(NewDocument(number, Span(0, 1), len(i)), i, 0) for number, i in enumerate(ids)]
    encode_batch(loaded, parts)
    for part in parts:
        assert part.latents is not None
        for tensor in (part.latents.router_keys_LCW, part.latents.content_LC2GD):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert bits(parts[0].latents) != bits(parts[1].latents)


def test_parts_are_given_their_ids_in_the_order_of_the_text(loaded: LoadedModel) -> None:
    document = Document("a", _text(random.Random(0), 60), title="Title")
    spans = split_document(document, loaded.template, MAX_TOKENS)
    source = tokenise(document, spans, range(5, 5 + len(spans)), loaded.template)
    assert [part.document.span for part in source.parts] == spans
    assert [part.document.document_id for part in source.parts] == list(range(5, 5 + len(spans)))
    for part in source.parts:
        text = encoded_text(document.title, document.text[part.document.span.start : part.document.span.end])
        assert part.ids == loaded.template.document(part.document.document_id, text)
        assert part.document.tokens == len(part.ids)
    assert source.tokens == sum(len(part.ids) for part in source.parts)
    assert source.as_new().parts == tuple(part.document for part in source.parts)


def test_a_source_is_encoded_when_its_last_part_is(loaded: LoadedModel) -> None:
    document = Document("a", _text(random.Random(0), 40))
    spans = split_document(document, loaded.template, MAX_TOKENS)
    source = tokenise(document, spans, range(len(spans)), loaded.template)
    states: list[bool] = []
    for part in source.parts:
        states.append(source.is_encoded)
        encode_batch(loaded, [part])
    assert len(states) > 1 and not any(states)
    assert source.is_encoded and len(source.parts) == len(spans)


def test_batches_hold_every_part_once_and_no_more_tokens_than_allowed(loaded: LoadedModel) -> None:
    generator = random.Random(0)
    lengths = [generator.randint(1, 60) for _ in range(40)] + [500]
    parts = [Part(NewDocument(number, Span(0, 1), length), [0] * length, 0) for number, length in enumerate(lengths)]
    found = list(batches(parts, 200))
    assert sorted(part.document.document_id for batch in found for part in batch) == list(range(41))
    for batch in found:
        padded = len(batch) * max(len(part.ids) for part in batch)
        assert padded <= 200 or len(batch) == 1

"""The anchor: how far a model with LoRA is from its backbone on plain text."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from batches import random_batch
from helpers import random_ids, tiny_loaded, tiny_model

from memspan.errors import RecipeError
from memspan.model.lora import LoraSpec, lora_modules, trained_lora_off
from memspan.model.modeling import MSAForCausalLM
from memspan.text.questions import Question, passage
from memspan.train.anchor import anchor_loss
from memspan.train.batch import Collator
from memspan.train.batch_settings import BatchSettings
from memspan.train.forward import LossWeights, Objective, training_forward
from memspan.train.parameters import make_trainable
from memspan.train.recipe import recipe_of

TEXTS = random_ids(7, 3, 12)


def _model(changed: bool = True) -> MSAForCausalLM:
    model = tiny_model()
    make_trainable(model, lora=LoraSpec(r"layers\.3\..*_proj$", rank=2), seed=0)
    if changed:
        torch.manual_seed(1)
        with torch.no_grad():
            for module in lora_modules(model).values():
                module.lora_b.normal_(0, 0.3)
    return model


def test_it_is_the_divergence_text_by_text() -> None:
    model = _model()
    expected = 0.0
    with torch.no_grad():
        for text in TEXTS:
            ids = torch.tensor([text])
            with trained_lora_off():
                wanted = model(ids).logits.double().softmax(-1)
            expected += float((wanted * (wanted.log() - model(ids).logits.double().log_softmax(-1))).sum())
    assert expected > 0.01
    assert float(anchor_loss(model, TEXTS).detach()) == pytest.approx(expected, rel=1e-4)


def test_a_model_that_is_its_backbone_has_none_and_one_that_is_not_is_pulled_back() -> None:
    assert float(anchor_loss(_model(changed=False), TEXTS).detach()) == pytest.approx(0, abs=1e-5)
    model = _model()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    before = float(anchor_loss(model, TEXTS).detach())
    for _ in range(40):
        loss = anchor_loss(model, TEXTS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(anchor_loss(model, TEXTS).detach()) < 0.5 * before


def test_it_is_a_term_of_the_loss() -> None:
    model = _model()
    batch = replace(random_batch(), anchors=tuple(map(tuple, TEXTS)))
    terms = training_forward(model, batch, Objective())
    assert terms.counts["anchor"] == sum(map(len, batch.anchors)) == 22
    torch.testing.assert_close(terms.sums["anchor"], anchor_loss(model, TEXTS))
    weights = LossWeights(lm=0, routing=0, anchor=2.0)
    torch.testing.assert_close(terms.total(weights), 2 * terms.sums["anchor"] / 22)
    torch.testing.assert_close(terms.total(weights, {"anchor": 44}), 2 * terms.sums["anchor"] / 44)
    assert float(training_forward(model, random_batch(), Objective()).sums["anchor"]) == 0


def test_lora_that_a_run_goes_on_beside_is_not_held_back() -> None:
    model = _model()
    for module in lora_modules(model).values():
        module.lora_a.requires_grad_(False), module.lora_b.requires_grad_(False)
    make_trainable(model, lora=LoraSpec(r"layers\.2\..*_proj$", rank=2), seed=0)
    assert float(anchor_loss(model, TEXTS).detach()) == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        for name, module in lora_modules(model).items():
            module.lora_b.mul_(0.0 if "layers.3." in name else 1.0)
    assert float(anchor_loss(model, TEXTS).detach()) == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        for name, module in lora_modules(model).items():
            if "layers.2." in name:
                module.lora_b.normal_(0, 0.3)
    assert float(anchor_loss(model, TEXTS).detach()) > 0.01


def test_without_lora_that_trains_there_is_nothing_to_compare_with() -> None:
    frozen = _model().requires_grad_(False)
    for model in (tiny_model(), frozen):
        with pytest.raises(ValueError, match="train LoRA"):
            anchor_loss(model, TEXTS)


def test_batches_draw_plain_texts_and_questions_with_one_before_them() -> None:
    loaded = tiny_loaded()
    questions = [
        Question(f"q{n}", f"Where is number {n}?", ("there",), (passage("", f"Number {n} is there, says note {n}."),))
        for n in range(6)
    ]
    settings = BatchSettings(anchors=3, anchor_tokens=10, max_document_tokens=64)
    batch = Collator(loaded.template, loaded.model.config, settings)(questions, random.Random(0))
    template = loaded.template
    plain, asked = batch.anchors[::2], batch.anchors[1::2]
    texts = [template.tokens("{text}", text=text)[:10] for text in batch.document_texts]
    assert len(plain) == 2 and all(list(ids) in texts for ids in plain)
    (ids,) = asked
    assert ids[: len(template.prefix_ids)] == template.prefix_ids
    shown = template.text(ids)
    assert "Where is number" in shown and any(template.text(text) in shown for text in texts)
    assert list(ids[-len(template.answer("there")) :]) == template.answer("there")
    only_texts = replace(settings, anchor_questions=False)
    batch = Collator(loaded.template, loaded.model.config, only_texts)(questions, random.Random(0))
    assert len(batch.anchors) == 3 and all("Where is" not in template.text(ids) for ids in batch.anchors)
    assert not Collator(loaded.template, loaded.model.config, BatchSettings())(questions, random.Random(0)).anchors


def test_requests_for_a_summary_of_two_texts_are_among_them() -> None:
    loaded = tiny_loaded()
    texts = [f"Number {n} is there. It stays, says note {n}." for n in range(6)]
    questions = [Question(f"q{n}", "Where?", ("there",), (passage("", text),)) for n, text in enumerate(texts)]
    settings = BatchSettings(anchors=4, anchor_summaries=True, max_document_tokens=64)
    collate = Collator(loaded.template, loaded.model.config, settings)
    anchors = [loaded.template.text(ids) for ids in collate(questions, random.Random(0)).anchors]
    request = loaded.template.spec.summary_request.partition("{passages}")[2].partition("{about}")[0].strip()
    assert [request in text for text in anchors] == [False, False, False, True]
    assert ["Where?" in text for text in anchors] == [False, True, False, False]
    asked, written = anchors[3].rsplit("Number", 1)
    assert sum(text in asked for text in texts) in (1, 2) and f"Number{written}".strip() in asked
    assert "stays" not in written
    collate = Collator(loaded.template, loaded.model.config, replace(settings, anchor_questions=False))
    anchors = [loaded.template.text(ids) for ids in collate(questions, random.Random(0)).anchors]
    assert [request in text for text in anchors] == [False, True, False, True]


def test_a_recipe_names_weight_and_texts_together() -> None:
    values = {
        "name": "a",
        "corpus": "docs",
        "lora": {"targets": "q_proj$", "rank": 2},
        "phases": [{"name": "one", "steps": 2, "lr": 1e-3, "loss": {"lm": 0, "routing": 1, "anchor": 5}}],
    }
    with pytest.raises(RecipeError, match="go together"):
        recipe_of(values)
    assert recipe_of({**values, "batch": {"anchors": 4}}).phases[0].batch.anchors == 4
    with pytest.raises(RecipeError, match="needs `lora`"):
        recipe_of({**values, "lora": None, "train": [{"name": "r", "match": "router_"}], "batch": {"anchors": 4}})

"""How questions become batches, as typed values."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from memspan.train.structure import STRICT, Count, Positive, Share


@dataclass(frozen=True, config=STRICT)
class BatchSettings:
    """How questions become batches; checked when built.

    A batch is of one kind, drawn by these shares; what is left of 1 is routing only, without a response.

    Attributes:
        answer: share of batches that answer with documents' texts before the question, masked from the loss.
        latent: share that answer from the compressed memory alone.
        generate: share that learn one step of the round protocol, drawn at random (needs a template with rounds).
        counterfactual: share of questions whose answer is another's, in their documents too, in batches that answer
            (`memspan.train.counterfactual`).
        outdated: share of these beside which, in `answer` batches, stands the document as it was. One of both, drawn,
            is the older one, and the later is right. Above 0, texts without a date have a drawn one before a question.
        unanswerable: share of questions in `answer` batches of whose documents at least one is not read, and that are
            answered with `no_answer`; what is read instead holds no answer.
        negatives: of each question's own, at most.
        num_documents: the least of a batch; `fillers` are drawn until it is reached.
        injected_documents: texts put before a question in an `answer` batch, gold and distractors, at most.
        max_document_tokens: longer documents are cut as serving splits them, to their first part. Default: the model's.
        max_context_tokens: longer contexts lose distractors, then their response.
        max_id: ids are drawn below a bound that is itself drawn, up to this: small memories have small ids.
        drop_answering: a document that holds one of a question's answers, but is none of its positives, is no negative.
        no_answer: what is answered where there is none.
        anchors: texts on which the model is to stay what it was, at most: plain documents of the batch, and
            questions in the template with one before them; see `memspan.train.anchor`.
        anchor_tokens: of each document, from its beginning.
        anchor_questions: whether questions are among them: where answers are learned they would hold these back.
        anchor_summaries: whether requests for a summary of two documents are among them, answered with the first
            sentence of one. Where short answers are learned, summaries would become short as well.
    """

    answer: Share = 0.0
    latent: Share = 0.0
    generate: Share = 0.0
    counterfactual: Share = 0.0
    outdated: Share = 0.0
    unanswerable: Share = 0.0
    negatives: Count = 1
    num_documents: Count = 0
    injected_documents: Positive = 5
    max_document_tokens: Positive | None = None
    max_context_tokens: int = 2048
    max_id: Positive = 1_000_000
    drop_answering: bool = True
    no_answer: str = "The notes do not say."
    anchors: Count = 0
    anchor_tokens: Positive = 96
    anchor_questions: bool = True
    anchor_summaries: bool = False

    def __post_init__(self) -> None:
        shares = (self.answer, self.latent, self.generate)
        if sum(shares) > 1 + 1e-9:
            raise ValueError(f"answer, latent and generate are shares that sum to at most 1, not {shares}")
        if self.outdated > 0 and (self.counterfactual == 0 or self.injected_documents < 2):
            raise ValueError("outdated documents are of counterfactual questions, and need 2 injected_documents")

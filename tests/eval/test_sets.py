"""The memory of a set: every document once, distractors to the budget, namespaces apart."""

from __future__ import annotations

from collections.abc import Iterator

from memspan.eval.sets import build_memory, named_as
from memspan.text.questions import UNDATED, Question, QuestionSet, passage
from memspan.types import Document


def count_words(text: str) -> int:
    return len(text.split())


def question(name: str, *positives: Document, negatives: tuple[Document, ...] = (), **changes: str) -> Question:
    return Question(name, f"{name}?", ("x",), positives, negatives, **changes)  # type: ignore[arg-type]


A, B, C = passage("A", "one two three"), passage("B", "four five"), passage("", "six")
OTHER = QuestionSet((question("q3", C),))
SET = QuestionSet((question("q1", A, negatives=(B,)), question("q2", B, C)))


def test_documents_of_the_questions_are_there_once_with_their_titles_counted() -> None:
    memory = build_memory(SET, [], count_words)["default"]
    assert memory.documents == (A, B, C)
    assert memory.tokens == 4 + 3 + 1
    assert {document.date for document in memory.documents} == {UNDATED}


def test_distractors_fill_the_budget_exactly_and_are_read_no_further() -> None:
    read: list[str] = []

    def stream() -> Iterator[Document]:
        for document in (
            Document("twin", B.text, B.title),  # the same passage under another name
            Document("d1", "seven eight", date="2024-01-02"),
            Document("d1", "another text"),
            Document("d2", "nine ten"),
            Document("d3", "eleven"),
            Document("d4", "twelve"),
        ):
            read.append(document.external_id)
            yield document

    memory = build_memory(SET, stream(), count_words, 12)["default"]
    assert [document.external_id for document in memory.documents[3:]] == ["d1", "d2"]
    assert [document.date for document in memory.documents[3:]] == ["2024-01-02", UNDATED]
    assert (memory.tokens, read[-1]) == (12, "d3")
    assert len(build_memory(SET, stream(), count_words, 3)["default"].documents) == 3, "its own are always in"
    assert len(build_memory(SET, stream(), count_words)["default"].documents) == 7


def test_namespaces_stay_apart() -> None:
    first, second = question("q1", A, namespace="x"), question("q2", B, namespace="y")
    found = QuestionSet((first, second), {"x": (C,)})
    memories = build_memory(found, [Document("d", "far away")], count_words)
    assert {name: memory.documents for name, memory in memories.items()} == {"x": (C, A), "y": (B,)}


def test_sets_of_the_same_files_have_the_same_documents() -> None:
    files = [Document("b", B.text, B.title), Document("c2", C.text), Document("c1", C.text), Document("d", "far away")]
    dated = Document("own", B.text, B.title, date="2024-01-02")
    named = named_as(SET, files)
    first, second = named.questions
    assert [one.external_id for one in (*first.positives, *first.negatives)] == [A.external_id, "b"]
    assert [one.external_id for one in second.positives] == ["b", "c2"]
    assert named_as(QuestionSet((question("q", dated),)), files).questions[0].positives == (dated,), "another date"
    kept = [build_memory(named_as(one, files), files, count_words)["default"].documents for one in (SET, OTHER)]
    names = [{document.external_id for document in documents} for documents in kept]
    assert names[0] - {A.external_id} == names[1]

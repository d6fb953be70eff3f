"""Documents and questions as tokens: the template's literals, and user text that cannot pass for them.

Markers (`<|im_start|>` ...) become their token ids only where the template itself writes them. In user text the same
characters are tokenized as plain text, so neither a document nor a question can change the protocol.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NewType, cast

from memspan.types import Document, Span, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memspan.config import TemplateSpec

Marker = NewType("Marker", int)
"""Id of a token that the template writes as one token."""

# The longest id that room is left for, in the template and on both sides of the text.
WIDEST_ID = 10**12
_DAY_LENGTH = len("2026-03-01")
_ZERO_WIDTH_SPACE = "\u200b"


@dataclass(frozen=True, slots=True)
class Context:
    """The active context of one question: template prefix, what routes, template tail.

    Attributes:
        ids: all tokens.
        routes: the tokens that route, `ids[routes.start:routes.end]`; the prefix stands before, the tail behind.
        silent: spans within `routes` that do not route all the same: what the model wrote, texts read before.
    """

    ids: tuple[int, ...]
    routes: Span
    silent: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Passage:
    """A document's original text, put before the model, with its date where it has one."""

    document_id: int
    text: str
    date: str = ""


# By the repetition that it asks for the tokens of a document are chosen that are kept (`memspan.ops.choosing`).
_REPEAT = "\nRepeat the notes above word for word.\n"


class PromptTemplate:
    """A `TemplateSpec` bound to a tokenizer."""

    def __init__(self, spec: TemplateSpec, tokenizer: PreTrainedTokenizerBase) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        rounds = tuple(filter(None, (spec.round_end, spec.retrieval_end)))
        literals = (spec.document_prefix, spec.document_suffix, spec.context_prefix, spec.context_suffix, *spec.stops)
        literals += (*rounds, spec.final_question)
        added = {token for token in added_tokens(tokenizer) if any(token in literal for literal in literals)}
        tokens = sorted(added, key=len, reverse=True)
        self._markers: dict[str, Marker] = {token: Marker(_token_id(tokenizer, token)) for token in tokens}
        self._split_at = re.compile("|".join(map(re.escape, tokens))) if tokens else None
        # Markers the tokenizer would read as one token even in user text; those are broken up there. So are markers
        # of rounds that are several tokens, which user text would be read as otherwise.
        self._stubborn = [token for token, marker in self._markers.items() if marker in self._plain_ids(token)]
        self._stubborn += [marker for marker in rounds if marker not in self._markers]
        self._bos = _first_token(tokenizer)
        self.prefix_ids = tuple(self._with_bos(self._tokenize([*self._pieces(spec.context_prefix)])))
        self.suffix_ids = tuple(self._tokenize([*self._pieces(spec.context_suffix)]))
        ends = [tokenizer.eos_token_id, *(self._markers.get(stop) for stop in spec.stops)]
        self.stop_ids = frozenset(int(end) for end in ends if end is not None)
        self.stop_strings = tuple(stop for stop in spec.stops if stop not in self._markers)

    def document(self, document_id: int, text: str) -> list[int]:
        """A document as it is encoded: `prefix [ID]. TEXT[ID] suffix`, positions from 0."""
        prefix = self.spec.document_prefix.format(id=document_id)
        suffix = self.spec.document_suffix.format(id=document_id)
        return self._with_bos(self._tokenize([*self._pieces(prefix), self._escape(text), *self._pieces(suffix)]))

    def body(self, ids: Sequence[int]) -> list[int]:
        """Of a document as it is encoded what a question reads: without markers at its ends, and a line end behind."""
        markers = {*self._markers.values(), self._bos}
        inside = [place for place, token in enumerate(ids) if token not in markers]
        return [*ids[inside[0] : inside[-1] + 1], *self._plain_ids("\n")] if inside else list(ids)

    @cached_property
    def repeat_ids(self) -> tuple[int, ...]:
        """The request to repeat a document, behind it."""
        return tuple(self._plain_ids(_REPEAT))

    def context(
        self,
        question: str,
        passages: Sequence[Passage] = (),
        read: Collection[int] = (),
        history: Sequence[Turn] = (),
        grounded: bool = False,
    ) -> Context:
        """The active context of a question, with the original text of documents before it where there is any.

        Args:
            read: documents of `passages` that do not route.
            history: what was said before, oldest first. It is read, and does not route.
            grounded: documents are read without their text, so the question is asked of documents in any case.
        """
        if passages or grounded:
            written = self.passages(passages)
            body = self.spec.grounded_question.format(passages=written, question=question)
        else:
            body = self.spec.plain_question.format(question=question)
        history_ids = self.history(history)
        start = len(self.prefix_ids) + len(history_ids)
        silent = tuple(self._spans_of(passages, read, start)) if read else ()
        return self._context_of(body, silent, history_ids)

    def history(self, turns: Sequence[Turn]) -> list[int]:
        """What was said before a question, as it stands behind the prefix that opens the first turn."""
        ids: list[int] = []
        for turn in turns:
            if turn.question:
                text = self.spec.plain_question.format(question=turn.question)
                ids += self._plain_ids(self._escape(text if turn.answer else f"{text}\n\n"))
            if turn.answer:
                ids += [*self.suffix_ids, *self.answer(turn.answer), *self.tokens(f"\n{self.spec.context_prefix}")]
        return ids

    def summary_request(self, passages: Sequence[Passage], about: str = "") -> Context:
        """The active context in which a summary of texts is written, of what they say `about` something or of all."""
        wanted = f" about {about}" if about else ""
        return self._context_of(self.spec.summary_request.format(passages=self.passages(passages), about=wanted))

    def _context_of(self, body: str, silent: tuple[Span, ...] = (), history_ids: Sequence[int] = ()) -> Context:
        body_ids = self._plain_ids(self._escape(body))
        prefix = len(self.prefix_ids)
        start = prefix + len(history_ids)
        if history_ids:
            silent = (Span(prefix, start), *silent)
        ids = (*self.prefix_ids, *history_ids, *body_ids, *self.suffix_ids)
        return Context(ids, Span(prefix, start + len(body_ids)), silent)

    def passages(self, passages: Sequence[Passage]) -> str:
        """Original texts as they are put before the model."""
        return "".join(self.spec.passage.format(id=p.document_id, text=p.text, date=p.date) for p in passages)

    def tokens(self, literal: str, **fields: str) -> list[int]:
        """A literal of the template, its markers as markers, with user text in its fields."""
        escaped = {name: self._escape(value) for name, value in fields.items()}
        return self._tokenize([x.format(**escaped) if isinstance(x, str) else x for x in self._pieces(literal)])

    def answer(self, text: str) -> list[int]:
        """An answer as the model is to write it: the text and the marker (or string) that ends it."""
        return self.tokens(f"{{answer}}{self.spec.stops[0] if self.spec.stops else ''}", answer=text)

    def _spans_of(self, passages: Sequence[Passage], wanted: Collection[int], start: int) -> Iterable[Span]:
        """Where some passages of a context stand. A token over the border of two passages counts to the later one."""
        written, _, _ = self.spec.grounded_question.partition("{passages}")
        end = start + self.count_tokens(written)
        for passage in passages:
            written += self.passages([passage])
            begin, end = end, start + self.count_tokens(written)
            if passage.document_id in wanted:
                yield Span(begin, end)

    def passage_spans(self, passages: Sequence[Passage]) -> list[Span]:
        """Where passages stand in the context of a question that nothing was said before."""
        return list(self._spans_of(passages, {one.document_id for one in passages}, len(self.prefix_ids)))

    def question_span(self, context: Context, question: str) -> Span:
        """Where the question stands in a context with passages, but for tokens over its borders."""
        behind = self.spec.grounded_question.partition("{question}")[2]
        end = len(context.ids) - len(self.suffix_ids) - self.count_tokens(behind)
        return Span(end - self.count_tokens(question), end)

    def cut(self, text: str, max_tokens: int) -> str:
        """The first tokens of a text, as text."""
        ids = self._plain_ids(self._escape(text))
        return text if len(ids) <= max_tokens else self.text(ids[:max_tokens])

    def count_tokens(self, text: str) -> int:
        """Tokens of a plain text, without any template."""
        return len(self._plain_ids(self._escape(text)))

    def fits(self, text: str, max_tokens: int) -> bool:
        """Whether a text is so short that as a document it surely has no more tokens, however it is tokenized.

        A token of ASCII text has a character at least. Counting takes a hundred times as long.
        """
        is_short = len(text) + self._document_overhead <= max_tokens
        return is_short and text.isascii() and not any(marker in text for marker in self._stubborn)

    @cached_property
    def _document_overhead(self) -> int:
        """Tokens of an empty document, and what a tokenizer may put before a text and behind it."""
        return len(self.document(WIDEST_ID, "")) + 2

    def text(self, ids: Sequence[int]) -> str:
        """Generated tokens as text, markers left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _with_bos(self, ids: list[int]) -> list[int]:
        """Begin with the token the tokenizer begins every text with, where it has one and the template does not."""
        return ids if self._bos is None or ids[:1] == [self._bos] else [self._bos, *ids]

    def _pieces(self, literal: str) -> Iterable[str | Marker]:
        """A template literal cut at its markers."""
        if self._split_at is None:
            return [literal]
        plain = self._split_at.split(literal)
        markers: list[str | Marker] = [self._markers[found] for found in self._split_at.findall(literal)]
        pieces: list[str | Marker] = [plain[0]]
        for marker, text in zip(markers, plain[1:], strict=True):
            pieces += [marker, text]
        return pieces

    def _tokenize(self, pieces: Sequence[str | Marker]) -> list[int]:
        """Join neighboring plain pieces before tokenizing them: a border between them is no token border."""
        ids: list[int] = []
        plain = ""
        for piece in [*pieces, Marker(-1)]:
            if isinstance(piece, str):
                plain += piece
                continue
            ids += self._plain_ids(plain) if plain else []
            ids += [piece] if piece >= 0 else []
            plain = ""
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        encoded: Any = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return list(encoded["input_ids"])

    def _escape(self, text: str) -> str:
        for token in self._stubborn:
            text = text.replace(token, token[0] + _ZERO_WIDTH_SPACE + token[1:])
        return text


def encoded_text(title: str, text: str) -> str:
    """What of a document is encoded, searched and put before the model: its title, unless the text opens with it."""
    opening = text.lstrip("#= \t\r\n").lower()
    if not title or opening.startswith(title.lower()):
        return text
    return f"{title}\n{text}"


def shown_passage(document_id: int, title: str, text: str, date: str) -> Passage:
    """A document as it is put before the model: with its title, and the day of its date."""
    return Passage(document_id, encoded_text(title, text), date[:_DAY_LENGTH])


def part_text(document: Document, span: Span) -> str:
    """What of a part of a document is encoded, searched and put before the model."""
    return encoded_text(document.title, document.text[span.start : span.end])


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The tokens a tokenizer was given beside its learned vocabulary; markers are among them."""
    return set(cast(Any, tokenizer).get_added_vocab())


def _first_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The beginning-of-sequence token, if the tokenizer puts it before a text by itself."""
    bare, whole = (cast(Any, tokenizer)("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    return int(whole[0]) if len(whole) > len(bare) and whole[0] == tokenizer.bos_token_id else None


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int), "an added token has one id"
    return found

"""A bank that is searched by words, and another model that answers: no memory model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.texts import TextBank, check_namespace
from memspan.events import Event
from memspan.generate.answerer import Answerer
from memspan.generate.chat import answering_by
from memspan.generate.lexical import TextFinder, nothing_in_scope, nothing_stored
from memspan.generate.request import AskOptions, Request


class TextMemory:
    """One namespace of a bank, asked with a selector that needs no model (`lexical`, say)."""

    def __init__(self, bank: TextBank, answerer: Answerer, namespace: str = DEFAULT_NAMESPACE) -> None:
        check_namespace(namespace)
        self._bank, self._answerer, self._namespace = bank, answerer, namespace

    def events(self, question: str, **options: Unpack[AskOptions]) -> Iterator[Event]:
        """As `Memory.events`; `selector` names one that needs no model.

        Raises:
            As `Memory.ask_batch` does.
        """
        request = Request.of(None, [question], options, self._answerer)
        with self._bank.pinned_catalog() as catalog:
            if not catalog.page(self._namespace, 0, 1):
                raise nothing_stored(self._bank.place, self._namespace)
            if not catalog.page(self._namespace, 0, 1, request.scope):
                raise nothing_in_scope(self._bank.place)
            finder = TextFinder(catalog, self._namespace, request.scope)
            loop = answering_by(self._answerer, None, finder, request.plan, request.sampling, request.passed)
            for _, event in loop.run(request.questions, request.history):
                if event is not None:
                    yield event

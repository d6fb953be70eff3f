"""Arms: ways to answer the same questions with the same generator, prompt and budget. Anything else compares nothing.

    none             the question alone
    oracle           the original text of the evidence
    context          the whole memory in the prompt, while it fits
    bm25@K           the K best documents of the bank's full-text index: retrieval-augmented generation
    dense@K          the K best by a sentence embedding (see `memspan.generate.dense`)
    fused@K rrf@K    the K best of full-text index and sentence embedding, by their scores or by their ranks
    router@K         MSA: latents of the documents each layer routes to, and the text of the K best over all layers
    hybrid@K         as router@K, the text chosen by router and full-text index together
    generate@K       as router@K, the text chosen by the model itself, which writes ids in rounds (paper 3.5)

Any other selector (`memspan.generate.selectors`) is an arm by its name, too. K is 5 unless named; `@0` puts no text
before the question. Options are added to a name, in any order:

    +latents -latents   whether the MSA layers attend to memory: `router@5-latents` is plain retrieval by the router
    +reroute            the whole prompt routes once more for the answer (as in the paper), texts included; else the
                        answer attends to what the question was routed to
    +rerank             the first documents of the ranking are ranked anew by how likely the model finds the question
    +model +cross       by the model's attention, by a cross-encoder; any other reranker (`memspan.generate.rerank`) is
                        an option by its name, too
    +adaptive           up to K documents: those scored low beside the best are left out
    +textsN             the N best documents stand as text (0 unless named), and the others are read from the tokens
                        that the bank keeps of them (--content-chunk); oracle has this option, too
    +roundsN            up to N looks into the memory, each led by what was found before (2; 4 for generate)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from memspan.errors import EvaluationError
from memspan.generate.request import MAX_ROUNDS
from memspan.generate.rerank import NONE, RERANKERS
from memspan.generate.selectors import SELECTORS, RankingSelector, RetrievingSelector

_WITHOUT_RANKING = ("none", "oracle", "context")
_PUBLISHED_NAMES = {"lexical": "bm25", "likelihood": "rerank"}
"""Selectors and rerankers that results call by another name."""
_OPTION = re.compile(r"(?P<sign>[+-])(?P<name>[a-z]\w*?)(?P<count>\d*)(?=[+-]|$)")
_COUNTED = ("rounds", "texts")
_OPTIONS = (*_COUNTED, "latents", "reroute")
_DEFAULT_DOCUMENTS = 5
_DEFAULT_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to answer.

    Attributes:
        retriever: none, oracle, context, or a selector as arms name it.
        documents: of the ranking, whose text is put before the question, at most; None where nothing is ranked.
        latents: whether the MSA layers attend to what they route to.
        rounds: looks into the memory, at most.
        rerank: who ranks the first documents anew; none: nobody.
        adaptive: whether documents that are scored low are left out.
        reroute: whether the prompt routes for the answer.
        texts: of the documents so many, the best, stand as text, and the others are read from tokens; None: all.
    """

    name: str
    retriever: str
    documents: int | None
    latents: bool
    rounds: int = 1
    rerank: str = NONE
    adaptive: bool = False
    reroute: bool = False
    texts: int | None = None

    @property
    def ranks(self) -> bool:
        """Whether it ranks the documents of the memory."""
        return self.retriever not in _WITHOUT_RANKING

    @property
    def reads_in_rounds(self) -> bool:
        """Whether what it reads depends on what it read before, so that there is no ranking before the answer."""
        return self.rounds > 1 or isinstance(self.chooser, RetrievingSelector)

    @property
    def selector(self) -> str:
        """The selector that ranks."""
        assert self.ranks, f"the arm {self.name} ranks nothing"
        return _published(SELECTORS)[self.retriever]

    @property
    def chooser(self) -> RankingSelector | RetrievingSelector | None:
        return SELECTORS[self.selector] if self.ranks else None

    @property
    def routes(self) -> bool:
        """Whether questions are routed to find documents: it is MSA, not a baseline."""
        return self.chooser is not None and self.chooser.needs.routing


def parse_arm(text: str) -> Arm:
    """An arm by its name, as the top of this module lists them. Its own name has the options in a fixed order.

    Raises:
        EvaluationError: there is no such arm.
    """
    retrievers = [*_WITHOUT_RANKING, *_published(SELECTORS)]
    spec = rf"(?P<retriever>{'|'.join(map(re.escape, retrievers))})(?:@(?P<k>\d+))?(?P<options>(?:[+-][a-z]\w*)*)"
    match = re.fullmatch(spec, text.strip())
    options = _options(text, match["options"]) if match else {}
    rerankers = _published(RERANKERS)
    known = ("adaptive", *rerankers, *_OPTIONS)
    if match is None or not options.keys() <= set(known):
        raise EvaluationError(
            f"no arm {text!r}; write one of {', '.join(retrievers)}, with @K documents, and of the options "
            f"+latents, -latents, +reroute, +{', +'.join(rerankers)}, +adaptive, +roundsN, +textsN"
        )
    retriever = match["retriever"]
    ranks = retriever not in _WITHOUT_RANKING
    if not ranks and match["k"] is not None:
        raise EvaluationError(f"{retriever} ranks no documents; leave out @{match['k']}")
    documents = int(match["k"] or _DEFAULT_DOCUMENTS) if ranks else None
    bare = Arm(retriever, retriever, documents, latents=False)  # says what the selector is
    texts = int(options["texts"].removeprefix("+texts") or 0) if "texts" in options else None
    latents = options["latents"][0] == "+" if "latents" in options else bare.routes and texts is None
    ordered = "".join(options[name] for name in known if name in options)
    arm = replace(
        bare,
        name=retriever + ("" if documents is None else f"@{documents}") + ordered,
        latents=latents,
        rounds=_rounds(bare, options),
        rerank=next((name for option, name in rerankers.items() if option in options), NONE),
        adaptive="adaptive" in options,
        texts=texts,
        # What routed no question has nothing else to attend to, and what reads by itself routes all it reads.
        reroute=latents and ("reroute" in options or not bare.routes or bare.reads_in_rounds),
    )
    reason = _contradiction(arm, options)
    if sum(name in options for name in rerankers) > 1:
        reason = reason or "name one reranker"
    if reason:
        raise EvaluationError(f"there is no arm {text!r}: {reason}")
    return arm


def _published(kinds: Iterable[str]) -> dict[str, str]:
    """Selectors or rerankers by their names in arms."""
    return {_PUBLISHED_NAMES.get(name, name): name for name in kinds}


def _options(text: str, written: str) -> dict[str, str]:
    """Options by name, as written; a number that an option does not take makes it unknown."""
    found: dict[str, str] = {}
    for option in _OPTION.finditer(written):
        name = option["name"] + ("" if option["name"] in _COUNTED else option["count"])
        if name in found:
            raise EvaluationError(f"the arm {text!r} names {name} twice; name it once")
        known = option["sign"] == "+" or name == "latents"
        found[name if known else option[0]] = option[0]
    return found


def _rounds(bare: Arm, options: dict[str, str]) -> int:
    if "rounds" not in options:
        return MAX_ROUNDS if bare.reads_in_rounds else 1
    return int(options["rounds"].removeprefix("+rounds") or _DEFAULT_ROUNDS)


def _contradiction(arm: Arm, options: dict[str, str]) -> str:
    """Why an arm cannot be; empty where it can."""
    if "reroute" in options and not arm.latents:
        return "without latents nothing routes; leave out +reroute"
    if not arm.ranks and options.keys() - ({"latents", "texts"} if arm.retriever == "oracle" else {"latents"}):
        return f"{arm.retriever} ranks no documents, so it has no such option"
    if arm.texts is not None and (arm.latents or arm.documents == 0 or isinstance(arm.chooser, RetrievingSelector)):
        return "it reads documents from tokens, so it needs documents, and nothing else of the latents"
    if arm.documents == 0 and not arm.latents:
        return "it is the arm none under another name; give it documents or +latents"
    if arm.documents == 0 and options.keys() - {"latents", "reroute"}:
        return "without documents there is nothing to choose; leave out the options"
    if isinstance(arm.chooser, RetrievingSelector) and not arm.latents:
        return f"{arm.retriever} chooses documents by what the layers route to; leave out -latents"
    if "rounds" in options and not arm.rounds >= 1:
        return "there is at least one round"
    if arm.rerank != NONE and arm.adaptive:
        return "a reranker's scores have no zero to leave documents out by"
    if arm.reads_in_rounds and (arm.rerank != NONE or arm.adaptive):
        return "in rounds nothing is ranked anew, and the number of documents is adaptive anyway"
    return ""

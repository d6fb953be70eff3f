"""What a server measures, for Prometheus. No label and no value comes from a request's text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from memspan.errors import BankError
from memspan.serve.banks import ServedBank
from memspan.serve.engine import Answering
from memspan.types import Answer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)
_SHARES = tuple(tenth / 10 for tenth in range(11))


class Metrics:
    """Counters of one server.

    Routing has no truth to be measured against while serving; what stands in for its recall is the share of the
    documents put before the model that its MSA layers attended to as well, and how often a look found nothing new.
    """

    def __init__(self, engine: Answering, banks: Mapping[str, ServedBank]) -> None:
        self._registry = CollectorRegistry()
        options = {"namespace": "memspan", "registry": self._registry}
        self._requests = Counter("requests", "Requests, by route and status.", ("route", "status"), **options)
        self._seconds = Histogram(
            "request_seconds",
            "From a request's headers to the end of its response.",
            ("route",),
            buckets=_SECONDS,
            **options,
        )
        self._stages = Histogram(
            "stage_seconds",
            "Stages of an answer: queue, select, prefill, decode.",
            ("stage",),
            buckets=_SECONDS,
            **options,
        )
        self._tokens = Counter("tokens", "Tokens read and written.", ("kind",), **options)
        self._answers = Counter("answers", "Answers, by bank and how they ended.", ("bank", "finish_reason"), **options)
        self._rounds = Counter("rounds", "Looks into the memory, by how they ended.", ("selector", "ended"), **options)
        self._attended = Histogram(
            "evidence_attended_share",
            "Of an answer's documents, those that MSA layers routed to as well.",
            ("selector",),
            buckets=_SHARES,
            **options,
        )
        self._registry.register(_Sizes(engine, banks))

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def answer(self, bank: str, answer: Answer, queued_seconds: float) -> None:
        for stage, seconds in {"queue": queued_seconds, **answer.timings}.items():
            self._stages.labels(stage).observe(seconds)
        self._tokens.labels("prompt").inc(answer.num_prompt_tokens)
        self._tokens.labels("completion").inc(answer.num_new_tokens)
        self._answers.labels(bank, answer.finish_reason).inc()
        for done in answer.rounds:
            self._rounds.labels(done.selector, done.ended).inc()
        if answer.evidence:
            attended = sum(bool(item.layers) for item in answer.evidence)
            self._attended.labels(answer.selector).observe(attended / len(answer.evidence))

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class _Sizes(Collector):
    """What is looked up when it is asked for: the queue, and the banks' sizes."""

    def __init__(self, engine: Answering, banks: Mapping[str, ServedBank]) -> None:
        self._engine, self._banks = engine, banks

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("memspan_queue_length", "Questions that wait.", self._engine.num_waiting)
        yield GaugeMetricFamily("memspan_running", "Questions being answered.", self._engine.num_running)
        writes = GaugeMetricFamily("memspan_writes_waiting", "Changes of a bank in its queue.", labels=["bank"])
        sizes = {
            name: GaugeMetricFamily(f"memspan_bank_{name}", f"{name} of a bank.".capitalize(), labels=["bank"])
            for name in ("sources", "documents", "chunks", "deleted_documents", "segments", "segment_bytes")
        }
        for name, bank in self._banks.items():
            writes.add_metric([name], bank.num_writes)
            try:
                counts = bank.counts()
            except BankError:  # the rest is still worth knowing
                continue
            for field, family in sizes.items():
                family.add_metric([name], getattr(counts, field))
        yield from (writes, *sizes.values())

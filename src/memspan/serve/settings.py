"""Settings of a server."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TypedDict

REQUESTS_PER_MINUTE = 600
"""Of one key, unless a server is given another number."""


class RerankOptions(TypedDict):
    """Of a question or a search; see `memspan.generate.request.AskOptions`."""

    rerank: str
    cross_encoder: str | None


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Limits of a server; checked when built.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        workers: processes that answer; 1: the one that takes the requests.
        max_batch: questions that each of them answers at a time.
        max_queue: questions that wait for that, at most; further ones are refused (429).
        max_writes: changes that wait for a bank's writer, at most; further ones are refused (429).
        max_new_tokens: of one answer that may be asked for.
        max_request_bytes: of a request's body.
        requests_per_minute: of one key (or, without keys, of one client's address), at most; None: any number.
        timeout: seconds from a question to its answer; what takes longer is ended (504).
        grace: seconds that running answers get to finish when the server stops.
        keep_alive: seconds between comments in a stream, so that no proxy takes it for dead; 0: none.
        patience: seconds from a connection to the end of a request's headers, and from there to the end of its body.
        cors_origins: web pages that may call, as https://example.org; none by default.
        rerank: who ranks the first documents anew where a request does not say; or "none".
        cross_encoder: of the reranker `cross`: a folder, or a name of the hub.
        publish: the URL where the first bank is published after every change; None: nowhere.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    max_batch: int = 8
    max_queue: int = 64
    max_writes: int = 64
    max_new_tokens: int = 1024
    max_request_bytes: int = 16 * 2**20
    requests_per_minute: int | None = None
    timeout: float = 300.0
    grace: float = 30.0
    keep_alive: float = 15.0
    patience: float = 20.0
    cors_origins: tuple[str, ...] = ()
    rerank: str = "none"
    cross_encoder: str | None = None
    publish: str | None = None

    def __post_init__(self) -> None:
        leasts = {"max_queue": 0, "max_request_bytes": 1024}
        leasts |= dict.fromkeys(("workers", "max_batch", "max_writes", "max_new_tokens"), 1)
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.requests_per_minute is not None and self.requests_per_minute < 1:
            raise ValueError(f"requests_per_minute must be at least 1, not {self.requests_per_minute}")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port must be from 0 to 65535, not {self.port}")
        if self.timeout <= 0 or self.patience <= 0 or self.grace < 0 or self.keep_alive < 0:
            raise ValueError("timeout and patience must be above 0 seconds, and grace and keep_alive not negative")
        if "*" in self.cors_origins:
            raise ValueError("cors_origins must name the pages that may call, as https://example.org, not *")

    def reranking(self, asked: str | None, selector: str | None = None, documents: int = 1) -> RerankOptions:
        """Who ranks anew: who was asked for; else who usually does, unless this selector, or this number of documents,
        leaves nothing to rank."""
        from memspan.generate.rerank import NONE
        from memspan.generate.selectors import SELECTORS, RetrievingSelector

        reads = selector in SELECTORS and isinstance(SELECTORS[selector], RetrievingSelector) if selector else False
        usual = NONE if reads or not documents else self.rerank
        return RerankOptions(rerank=asked or usual, cross_encoder=self.cross_encoder)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

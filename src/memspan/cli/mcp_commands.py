"""What `memspan mcp` does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from memspan.cli import render
from memspan.cli.serve_commands import ModelChoice as ModelChoice
from memspan.cli.serve_commands import ServeSettings as ServeSettings
from memspan.cli.serve_commands import served_keys
from memspan.errors import MemspanError
from memspan.model.decoding import prepare
from memspan.serve.app import check_closed
from memspan.serve.banks import ServedBank, bank_folders, close_banks, open_banks
from memspan.serve.engine import Engine
from memspan.serve.run import run_app

try:
    from memspan.serve.mcp import make_mcp, mcp_app
except ImportError as error:
    raise MemspanError(f"MCP needs more packages ({error.name}): pip install 'memspan[mcp]'") from error


def mcp(
    bank: str, namespace: str, model: ModelChoice, settings: ServeSettings, key_file: Path | None, http: bool
) -> None:
    keys = served_keys(settings, key_file) if http else None
    if http:
        check_closed(settings, keys)  # before the model, which takes longer to load
    with _serving(bank, model, settings) as (served, engine):
        if http:
            run_app(mcp_app(served, engine, namespace, settings, keys), settings, _tell)
        else:
            make_mcp(served, engine, namespace).run("stdio")


def _tell(address: str) -> None:
    render.err.print(f"serving on {address}/mcp; Ctrl-C stops")


@contextlib.contextmanager
def _serving(bank: str, model: ModelChoice, settings: ServeSettings) -> Iterator[tuple[ServedBank, Engine]]:
    """The bank and its engine, closed at the end."""
    loaded = model.load(*bank_folders([bank]).values())
    prepare(loaded.model)
    banks = open_banks([bank], loaded, settings.max_writes)
    engine = Engine(loaded, max_batch=settings.max_batch, max_queue=settings.max_queue, timeout=settings.timeout)
    try:
        yield next(iter(banks.values())), engine
    finally:
        engine.close()
        close_banks(banks)

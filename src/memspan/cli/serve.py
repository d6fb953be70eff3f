"""`memspan serve`, `memspan keys` and `memspan mcp`: serving banks to others, and who may come."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memspan.cli import render
from memspan.cli.app import (
    CacheBudgetOption,
    CacheOption,
    JsonOption,
    Model,
    NamespaceOption,
    OptionGroup,
    OtherModel,
    Reranking,
    command,
)
from memspan.cli.importing import importing
from memspan.errors import MemspanError
from memspan.places import BankPlace, quoted
from memspan.serve.settings import REQUESTS_PER_MINUTE, ServeSettings

if TYPE_CHECKING:
    from memspan.cli.choices import RerankChoice
    from memspan.generate.answerer import Answerer
    from memspan.model.convert import LoadedModel
    from memspan.serve.banks import ServedBank
    from memspan.serve.engine import Engine
    from memspan.serve.keys import Key, KeyFile

keys = typer.Typer(help="API keys of the server, with scopes and namespaces.", no_args_is_help=True)

BanksArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="BANK...",
        help="Folders of banks, or URLs where they were published, or NAME=FOLDER; the first is the default.",
    ),
]
KeysOption = Annotated[
    Path | None,
    typer.Option("--keys", envvar="MEMSPAN_KEYS", help="File of API keys. Default: ~/.config/memspan/keys.json."),
]


def _settings(
    host: Annotated[str, typer.Option(help="Address to listen on. Others than this machine's own need keys.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    workers: Annotated[
        int,
        typer.Option(help="Processes that answer, each with the model. With 1, the process that takes the requests."),
    ] = 1,
    max_batch: Annotated[int, typer.Option(help="Questions that each process answers at a time.")] = 8,
    max_queue: Annotated[int, typer.Option(help="Questions that wait, at most; others are refused (429).")] = 64,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer, at most.")] = 1024,
    max_request_mb: Annotated[int, typer.Option(help="Size of a request, at most.")] = 16,
    requests_per_minute: Annotated[
        int | None, typer.Option(help="Requests of one key, at most. Default: 600 with keys, any number without.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds an answer may take, waiting included.")] = 300.0,
    grace: Annotated[float, typer.Option(help="Seconds running answers get when the server stops.")] = 30.0,
    keep_alive: Annotated[
        float, typer.Option(help="Seconds between comments that keep a quiet stream open; 0: none.")
    ] = 15.0,
    patience: Annotated[
        float,
        typer.Option(help="Seconds a request's headers may take, and its body, where it comes slower than 10 kB/s."),
    ] = 20.0,
    publish: Annotated[
        str | None, typer.Option(help="URL where the first bank is published after every change; see docs/shared.md.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Web page that may call, as https://example.org; may be repeated.")
    ] = None,
) -> ServeSettings:
    return ServeSettings(
        host=host,
        port=port,
        workers=workers,
        max_batch=max_batch,
        max_queue=max_queue,
        max_new_tokens=max_new_tokens,
        max_request_bytes=max_request_mb * 2**20,
        requests_per_minute=requests_per_minute,
        timeout=timeout,
        grace=grace,
        keep_alive=keep_alive,
        patience=patience,
        cors_origins=tuple(cors_origin or ()),
        publish=publish,
    )


@command
def serve(
    banks: BanksArgument,
    *,
    model: Model,
    answers: OtherModel,
    reranking: Reranking,
    settings: Annotated[ServeSettings, OptionGroup(_settings)],
    cache: CacheOption = None,
    cache_budget: CacheBudgetOption = None,
    keys: KeysOption = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON lines, every request too.")] = False,
    traces: Annotated[
        bool,
        typer.Option("--traces", help="Send OpenTelemetry traces; OTEL_EXPORTER_OTLP_ENDPOINT and others say where."),
    ] = False,
) -> None:
    """Answer over HTTP with OpenAI's API, and serve the memories (docs/serving.md). Ctrl-C stops."""
    with _packages("serving", "serve"):
        from memspan.serve.app import check_closed
        from memspan.serve.banks import bank_places
        from memspan.serve.logs import set_up
        from memspan.serve.run import make_server, run_server
        from memspan.serve.traces import exporting
        from memspan.serve.workers import WorkerSetup
    settings = _reranking(settings, reranking)
    places = [BankPlace.of(bank, cache, cache_budget) for bank in banks]
    key_file = _served_keys(settings, keys)
    if key_file is not None and settings.requests_per_minute is None:
        settings = replace(settings, requests_per_minute=REQUESTS_PER_MINUTE)
    check_closed(settings, key_file)  # before the model, which takes longer to load
    answerer = answers.endpoint()
    set_up(log_json)
    with contextlib.ExitStack() as exported:
        if traces:
            with _packages("tracing", "otel"):
                exported.enter_context(exporting())
        named = tuple(bank_places(places).values())
        load = partial(_prepared, model, named)
        _note_new(named)
        who = "with an API key" if key_file is not None else "without a key, from this machine"
        setup = WorkerSetup(load, tuple(places), answers.endpoint, settings.max_batch, log_json)
        server = make_server(load(), places, settings, key_file, answerer, setup)
        run_server(server, lambda address: render.err.print(f"serving on {address} ({who}); Ctrl-C stops"))


@command
def mcp(
    bank: Annotated[str, typer.Argument(metavar="BANK", help="Folder of a bank, made where there is none; or a URL.")],
    namespace: NamespaceOption = "default",
    *,
    model: Model,
    answers: OtherModel,
    reranking: Reranking,
    http: Annotated[bool, typer.Option("--http", help="Streamable HTTP at /mcp, instead of stdio.")] = False,
    host: Annotated[str, typer.Option(help="With --http: address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="With --http: port; 0 takes a free one.")] = 8001,
    keys: KeysOption = None,
) -> None:
    """Give agents a memory by the Model Context Protocol: remember, recall, ask, forget, list."""
    with _packages("MCP", "mcp"):
        from memspan.serve.banks import bank_places
        from memspan.serve.mcp import Loading, loading_mcp, mcp_app
    settings = _reranking(ServeSettings(host=host, port=port), reranking)
    opened = partial(_engine_of, bank, model, settings, answers.endpoint())
    _note_new(bank_places([bank]).values())
    if not http:
        loading = Loading(opened)
        with contextlib.closing(loading):
            loading_mcp(loading, namespace, settings).run("stdio")
        return
    with _packages("MCP", "mcp"):
        from memspan.serve.app import check_closed
        from memspan.serve.run import run_app
    key_file = _served_keys(settings, keys)
    check_closed(settings, key_file)  # before the model, which takes longer to load
    with opened() as (served, engine):
        app = mcp_app(served, engine, namespace, settings, key_file)
        run_app(app, settings, lambda address: render.err.print(f"serving on {address}/mcp; Ctrl-C stops"))


def _note_new(banks: Iterable[BankPlace]) -> None:
    """Name the banks that are made now: the name of one may be mistyped."""
    from memspan.bank.texts import TextBank

    for place in banks:
        if not TextBank.exists(place):
            render.err.print(f"note: there was no bank in {place}; an empty one is made")


@contextlib.contextmanager
def _packages(what: str, extra: str) -> Iterator[None]:
    """Around imports of what an extra of the package brings.

    Raises:
        MemspanError: it is not installed.
    """
    try:
        with importing():
            yield
    except ImportError as error:
        raise MemspanError(f"{what} needs more packages ({error.name}): pip install 'memspan[{extra}]'") from error


def _reranking(settings: ServeSettings, choice: RerankChoice) -> ServeSettings:
    """
    Raises:
        MemspanError: there is no such reranker, or what it needs is missing.
    """
    choice.uses_model()
    return replace(settings, rerank=choice.rerank or settings.rerank, cross_encoder=choice.cross_encoder)


def _prepared(model: Model, banks: tuple[BankPlace, ...]) -> LoadedModel:
    """The model of some banks, ready to decode. A function of this module, so that other processes can call it."""
    from memspan.model.decoding import prepare

    loaded = model.load(*banks)
    prepare(loaded.model)
    return loaded


@contextlib.contextmanager
def _engine_of(
    bank: str, model: Model, settings: ServeSettings, answerer: Answerer | None
) -> Iterator[tuple[ServedBank, Engine]]:
    """A bank and its engine, closed at the end."""
    from memspan.serve.banks import bank_places, close_banks, open_banks
    from memspan.serve.engine import Engine

    loaded = _prepared(model, tuple(bank_places([bank]).values()))
    banks = open_banks([bank], loaded, settings.max_writes, answerer)
    engine = Engine(loaded, max_batch=settings.max_batch, max_queue=settings.max_queue, timeout=settings.timeout)
    served = next(iter(banks.values()))
    served.encode_behind(lambda: engine.is_asked)
    try:
        yield served, engine
    finally:
        engine.close()
        close_banks(banks)


def _served_keys(settings: ServeSettings, key_file: Path | None) -> KeyFile | None:
    """The keys a server asks for: those of a named file; on other addresses than the machine's own, always some.

    Raises:
        MemspanError: a named file holds no key.
    """
    from memspan.serve.keys import KeyFile, default_key_file

    if key_file is None:
        return None if settings.is_local else KeyFile(default_key_file())
    found = KeyFile(key_file)
    if not found.stored():
        raise MemspanError(f"{key_file} holds no keys; make one with: memspan keys add NAME --keys {quoted(key_file)}")
    return found


@keys.command("add")
@command
def add_key(
    name: Annotated[str, typer.Argument(help="Name of the key, for people.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, write (and read) or admin (all). Default: read.")
    ] = None,
    namespace: Annotated[
        list[str] | None,
        typer.Option(
            "--namespace", "-n", help="Namespace it may enter; may be repeated, the first is its own. Default: all."
        ),
    ] = None,
    keys: KeysOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it once; only its hash is kept."""
    key, secret = _key_file(keys).add(name, tuple(scope or ["read"]), tuple(namespace or ()))
    render.show({**_public(key), "key": secret}, as_json)


@keys.command("list")
@command
def list_keys(keys: KeysOption = None, as_json: JsonOption = False) -> None:
    """List the keys, without their secrets."""
    found = [_public(key) for key in _key_file(keys).stored()]
    if as_json:
        render.as_json(found)
        return
    render.table(("id", "name", "scopes", "namespaces", "created"), ((*key.values(),) for key in found))


@keys.command("revoke")
@command
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="Id of the key, as `list` shows it.")],
    keys: KeysOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a key out of use, for running servers too."""
    _key_file(keys).revoke(key_id)
    render.show({"revoked": key_id}, as_json)


def _key_file(path: Path | None) -> KeyFile:
    from memspan.serve.keys import KeyFile, default_key_file

    return KeyFile(path or default_key_file())


def _public(key: Key) -> dict[str, str]:
    """A key without its digest."""
    return {
        "id": key.id,
        "name": key.name,
        "scopes": ", ".join(key.scopes),
        "namespaces": ", ".join(key.namespaces) or "all",
        "created": key.created,
    }

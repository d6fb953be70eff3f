"""The options of `memspan serve`, `memspan keys` and `memspan mcp`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memspan.cli.app import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    NamespaceOption,
    commands_of,
)

keys = typer.Typer(help="API keys of the server: who may do what, in which namespaces.", no_args_is_help=True)

BanksArgument = Annotated[
    list[str], typer.Argument(metavar="BANK...", help="Folders of banks, or NAME=FOLDER; the first is the default.")
]
KeysOption = Annotated[
    Path | None,
    typer.Option("--keys", envvar="MEMSPAN_KEYS", help="File of API keys. Default: ~/.config/memspan/keys.json."),
]


def serve(
    banks: BanksArgument,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on. Others than this machine's own need keys.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    keys: KeysOption = None,
    max_batch: Annotated[int, typer.Option(help="Questions answered at a time.")] = 8,
    max_queue: Annotated[int, typer.Option(help="Questions that wait, at most; others are refused (429).")] = 64,
    max_new_tokens: Annotated[int, typer.Option(help="Of one answer that may be asked for.")] = 1024,
    max_request_mb: Annotated[int, typer.Option(help="Size of a request, at most.")] = 16,
    requests_per_minute: Annotated[
        int | None, typer.Option(help="Of one key, at most. Default: 600 with keys, any number without.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds an answer may take, waiting included.")] = 300.0,
    grace: Annotated[float, typer.Option(help="Seconds running answers get when the server stops.")] = 30.0,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Web page that may call, as https://example.org; may be repeated.")
    ] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Answer over HTTP, as OpenAI's API and with memories of its own (docs/serving.md). Ctrl-C stops."""
    with commands_of("serve_commands") as commands:
        choice = commands.ModelChoice(model, adapter, dtype, device)
        settings = {
            "host": host,
            "port": port,
            "max_batch": max_batch,
            "max_queue": max_queue,
            "max_new_tokens": max_new_tokens,
            "max_request_bytes": max_request_mb * 2**20,
            "requests_per_minute": requests_per_minute,
            "timeout": timeout,
            "grace": grace,
            "cors_origins": tuple(cors_origin or ()),
        }
        commands.serve(banks, choice, settings, keys)


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, write or admin; may be repeated. Default: read.")
    ] = None,
    namespace: Annotated[
        list[str] | None,
        typer.Option("--namespace", "-n", help="It may enter; may be repeated, the first is its own. Default: all."),
    ] = None,
    keys: KeysOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it: it is shown this once, and only its hash is kept."""
    with commands_of("keys_commands") as commands:
        commands.add_key(name, scope or ["read"], namespace or [], keys, as_json)


@keys.command("list")
def list_keys(keys: KeysOption = None, as_json: JsonOption = False) -> None:
    """List the keys, without their secrets."""
    with commands_of("keys_commands") as commands:
        commands.list_keys(keys, as_json)


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="Of the key, as `list` shows it.")],
    keys: KeysOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a key out of use, for running servers too."""
    with commands_of("keys_commands") as commands:
        commands.revoke_key(key_id, keys, as_json)


def mcp(
    bank: Annotated[str, typer.Argument(metavar="BANK", help="Folder of a bank; made where there is none.")],
    namespace: NamespaceOption = "default",
    model: ModelOption = None,
    adapter: AdapterOption = None,
    http: Annotated[bool, typer.Option("--http", help="Streamable HTTP at /mcp, instead of stdio.")] = False,
    host: Annotated[str, typer.Option(help="With --http: address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="With --http: 0 takes a free one.")] = 8001,
    keys: KeysOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Give agents a memory by the Model Context Protocol: remember, recall, ask, forget, list."""
    with commands_of("mcp_commands") as mcp_commands:
        choice = mcp_commands.ModelChoice(model, adapter, dtype, device)
        settings = mcp_commands.ServeSettings(host=host, port=port)
        mcp_commands.mcp(bank, namespace, choice, settings, keys, http)

"""What `memspan serve` and `memspan keys` do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memspan.cli import render
from memspan.cli.commands import ModelChoice as ModelChoice
from memspan.cli.commands import show
from memspan.errors import MemspanError

try:
    from memspan.serve.app import check_closed
    from memspan.serve.keys import Key, KeyFile, default_key_file
    from memspan.serve.run import make_server, run_server
    from memspan.serve.settings import ServeSettings
except ImportError as error:
    raise MemspanError(f"serving needs more packages ({error.name}): pip install 'memspan[serve]'") from error

_REQUESTS_PER_MINUTE = 600


def serve(banks: Sequence[str], model: ModelChoice, settings: dict[str, Any], key_file: Path | None) -> None:
    keys = served_keys(ServeSettings(**settings), key_file)
    if keys is not None and settings["requests_per_minute"] is None:
        settings = {**settings, "requests_per_minute": _REQUESTS_PER_MINUTE}
    checked = ServeSettings(**settings)
    check_closed(checked, keys)  # before the model, which takes longer to load
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    server = make_server(model.load(), banks, checked, keys)
    who = "with an API key" if keys is not None else "without a key, from this machine"
    run_server(server, lambda address: render.err.print(f"serving on {address} ({who}); Ctrl-C stops"))


def served_keys(settings: ServeSettings, key_file: Path | None) -> KeyFile | None:
    """The keys a server asks for: those of a named file; on other addresses than the machine's own, always some.

    Raises:
        MemspanError: a named file holds no key.
    """
    if key_file is None:
        return None if settings.is_local else KeyFile(default_key_file())
    keys = KeyFile(key_file)
    if not keys.stored():
        raise MemspanError(f"{key_file} holds no keys; make one with: memspan keys add NAME --keys {key_file}")
    return keys


def add_key(name: str, scopes: Sequence[str], namespaces: Sequence[str], key_file: Path | None, as_json: bool) -> None:
    key, secret = _keys(key_file).add(name, tuple(scopes), tuple(namespaces))
    show({**_public(key), "key": secret}, as_json)


def list_keys(key_file: Path | None, as_json: bool) -> None:
    found = [_public(key) for key in _keys(key_file).stored()]
    if as_json:
        render.as_json(found)
        return
    render.table(("id", "name", "scopes", "namespaces", "created"), ((*key.values(),) for key in found))


def revoke_key(key_id: str, key_file: Path | None, as_json: bool) -> None:
    _keys(key_file).revoke(key_id)
    show({"revoked": key_id}, as_json)


def _keys(key_file: Path | None) -> KeyFile:
    return KeyFile(key_file or default_key_file())


def _public(key: Key) -> dict[str, str]:
    """A key without its digest."""
    return {
        "id": key.id,
        "name": key.name,
        "scopes": ", ".join(key.scopes),
        "namespaces": ", ".join(key.namespaces) or "all",
        "created": key.created,
    }

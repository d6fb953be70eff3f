"""What `memspan keys` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memspan.cli import render
from memspan.serve.keys import Key, KeyFile, default_key_file


def add_key(name: str, scopes: Sequence[str], namespaces: Sequence[str], key_file: Path | None, as_json: bool) -> None:
    key, secret = _keys(key_file).add(name, tuple(scopes), tuple(namespaces))
    render.show({**_public(key), "key": secret}, as_json)


def list_keys(key_file: Path | None, as_json: bool) -> None:
    found = [_public(key) for key in _keys(key_file).stored()]
    if as_json:
        render.as_json(found)
        return
    render.table(("id", "name", "scopes", "namespaces", "created"), ((*key.values(),) for key in found))


def revoke_key(key_id: str, key_file: Path | None, as_json: bool) -> None:
    _keys(key_file).revoke(key_id)
    render.show({"revoked": key_id}, as_json)


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

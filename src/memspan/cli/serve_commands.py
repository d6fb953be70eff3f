"""What `memspan serve` does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memspan.cli import render
from memspan.cli.choices import ModelChoice as ModelChoice
from memspan.errors import MemspanError
from memspan.model.decoding import prepare

try:
    from memspan.serve.app import check_closed
    from memspan.serve.banks import bank_folders
    from memspan.serve.keys import KeyFile, default_key_file
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
    loaded = model.load(*bank_folders(banks).values())
    prepare(loaded.model)
    server = make_server(loaded, banks, checked, keys)
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

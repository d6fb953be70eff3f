"""The files of a run: what was asked for, logs that grow line by line, results written at once or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from memspan.errors import EvaluationError
from memspan.files import sync_file, write_text

CONFIG, RESULT, TABLE = "config.json", "result.json", "table.md"
ENCODING, ROWS, ASKED = "encoding.jsonl", "rows.jsonl", "asked.jsonl"


def keep_config(out: Path, config: dict[str, Any]) -> None:
    """Write the config of a new run, or check it against the one that is there.

    Raises:
        EvaluationError: they differ, or the folder holds something else.
    """
    path, wanted = out / CONFIG, json.loads(json.dumps(config))
    if path.is_file():
        known = json.loads(path.read_text("utf-8"))
        if known != wanted:
            differing = ", ".join(sorted(_differences(known, wanted)))
            raise EvaluationError(f"{out} holds a run with another {differing}; name another folder, or remove it")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EvaluationError(f"{out} exists and is not a run of this command; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(config, indent=1))


def _differences(first: Any, second: Any, where: str = "") -> Iterator[str]:
    """Names of the values in which two JSON objects differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in first.keys() | second.keys():
            yield from _differences(first.get(key), second.get(key), f"{where}.{key}" if where else key)
    elif first != second:
        yield where


def append_lines(path: Path, values: Sequence[Any]) -> None:
    """Add JSON values to a log, a line each; they are on the disk when this returns."""
    with path.open("a", encoding="utf-8", newline="") as file:
        file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        file.flush()
        sync_file(file.fileno())


def read_lines(path: Path) -> list[Any]:
    """The lines of a log. A last one that was torn when the process was killed is cut off the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]


def read_result(folder: Path) -> dict[str, Any]:
    """What a finished run found.

    Raises:
        EvaluationError: the folder holds no finished run.
    """
    try:
        return json.loads((folder / RESULT).read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = "run its command again to finish it" if (folder / CONFIG).exists() else "name the --out of a run"
        raise EvaluationError(f"{folder} holds no finished run; {reason}") from error

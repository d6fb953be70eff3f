"""Write javascript/schema.d.ts from the server's own description: `python javascript/make_types.py`, after `npm ci`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from memspan.serve.app import with_routes

FOLDER = Path(__file__).parent
TARGET = FOLDER / "schema.d.ts"
GENERATOR = FOLDER / "node_modules" / "openapi-typescript" / "bin" / "cli.js"


def render() -> str:
    """The types of all routes. Errors have one form, which `ApiError` is."""
    node = shutil.which("node")
    if node is None or not GENERATOR.exists():
        raise SystemExit(f"this needs node, and its packages: npm ci --prefix {FOLDER}")
    command = [node, str(GENERATOR), "--default-non-nullable", "false"]
    description = json.dumps(_described(with_routes().openapi()))
    return subprocess.run(command, input=description, capture_output=True, check=True, encoding="utf-8").stdout


def _described(part: Any) -> Any:
    """A description without its errors, and without titles that only repeat a name."""
    if isinstance(part, list):
        return [_described(one) for one in part]
    if not isinstance(part, dict):
        return part
    kept = {name: _described(value) for name, value in part.items() if not (name == "title" and isinstance(value, str))}
    if "responses" in kept and "operationId" in kept:
        kept["responses"] = {status: said for status, said in kept["responses"].items() if status.startswith("2")}
    return kept


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8", newline="\n")

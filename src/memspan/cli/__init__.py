"""The `memspan` command: thin calls into the library."""

from memspan.cli.app import app
from memspan.cli.data import data

app.add_typer(data, name="data")

__all__ = ["app"]

"""The `memspan` command: thin calls into the library."""

from memspan.cli.app import app
from memspan.cli.data import data
from memspan.cli.train import train

app.add_typer(data, name="data")
app.command()(train)

__all__ = ["app"]

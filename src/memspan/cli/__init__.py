"""The `memspan` command: thin calls into the library."""

from memspan.cli.app import app
from memspan.cli.bench import bench
from memspan.cli.data import data
from memspan.cli.evaluate import evaluate, judge, report
from memspan.cli.serve import keys, mcp, serve
from memspan.cli.train import train

app.add_typer(bench, name="bench")
app.add_typer(data, name="data")
app.command("eval")(evaluate)
app.command()(judge)
app.command()(report)
app.command()(train)
app.command()(serve)
app.command()(mcp)
app.add_typer(keys, name="keys")

__all__ = ["app"]

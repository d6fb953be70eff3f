"""The `memspan` command: thin calls into the library."""

from memspan.cli.app import app
from memspan.cli.bench import bench
from memspan.cli.commands import add, ask, convert, encode, summarize
from memspan.cli.data import data
from memspan.cli.evaluate import evaluate, judge, report
from memspan.cli.listing import ListingCommand
from memspan.cli.serve import keys, mcp, serve
from memspan.cli.stored import export, info, ls, rm, search, update
from memspan.cli.sync import sync
from memspan.cli.train import train
from memspan.cli.upkeep import changes, commit, compact, estimate, import_, publish, reencode, reindex, verify

# In the order that `--help` shows them.
for _command in (
    convert,
    add,
    sync,
    encode,
    commit,
    ask,
    search,
    summarize,
    ls,
    changes,
    info,
    publish,
    estimate,
    rm,
    update,
    compact,
    verify,
    reencode,
    reindex,
    export,
):
    app.command(cls=ListingCommand)(_command)
app.command("import")(import_)
app.add_typer(bench, name="bench")
app.add_typer(data, name="data")
app.command("eval")(evaluate)
for _command in (judge, report, train, serve, mcp):
    app.command(cls=ListingCommand)(_command)
app.add_typer(keys, name="keys")

__all__ = ["app"]

"""How commands are found by name, and help that lists what is registered."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

# Names that other tools have for commands of this one.
OTHER_NAMES = {
    "chat": "ask",
    "create": "add",
    "del": "rm",
    "delete": "rm",
    "find": "search",
    "forget": "rm",
    "index": "add",
    "ingest": "add",
    "init": "add",
    "list": "ls",
    "load": "import",
    "new": "add",
    "query": "search",
    "remember": "add",
    "remove": "rm",
    "repair": "verify --repair",
    "save": "export",
    "server": "serve",
    "show": "ls",
    "stats": "info",
    "status": "info",
    "vacuum": "compact",
    "version": "--version",
    "watch": "sync --watch",
}


class CommandGroup(TyperGroup):
    """Commands by their names; a name of another tool gets the name it has here."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        meant = OTHER_NAMES.get(args[0].lower()) if args[0] not in self.commands else None
        if meant is not None:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {meant!r}?")
        if args[0] == "help":
            ctx.fail("No such command 'help'. Did you mean '--help', or 'COMMAND --help'?")
        return super().resolve_command(ctx, args)


class ListingCommand(TyperCommand):
    """A command whose wrong usage is named with its remedy.

    In the help of its parameters {selectors}, {ranking_selectors}, {rerankers}, {similarities} and {formats} stand for
    the names, which are looked up when help is shown.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        names = {one.name for one in self.params}
        try:
            if "paths" in names and "" in args and "" in self._arguments(ctx, args):
                # Of a variable that is not set; `Path` would make it this folder.
                ctx.fail("A path is empty. Name a file or a folder; . is this folder.")
            return super().parse_args(ctx, args)
        except TyperException as error:
            if "question" in names and "unexpected extra argument" in (message := getattr(error, "message", "")):
                error.message = f"{message}. Put the question in quotes."  # type: ignore[attr-defined]
            raise

    def _arguments(self, ctx: Any, args: list[str]) -> list[Any]:
        """What is given without an option's name."""
        given, _, _ = self.make_parser(ctx).parse_args([*args])
        found = [given.get(one.name or "") for one in self.params if one.param_type_name == "argument"]
        return [value for one in found for value in (one if isinstance(one, tuple) else (one,))]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from memspan.generate.rerank import reranker_names
        from memspan.generate.selectors import selector_names
        from memspan.ops.similarity import SIMILARITIES
        from memspan.text.readers import FORMATS

        lists = {"{selectors}": selector_names(), "{ranking_selectors}": selector_names(ranking=True)}
        lists["{rerankers}"] = reranker_names()
        lists |= {"{similarities}": [*SIMILARITIES], "{formats}": [*FORMATS]}
        helps: dict[Any, str] = {one: one.help for one in self.params if getattr(one, "help", None)}  # type: ignore[attr-defined]
        try:
            for mark, names in lists.items():
                for parameter in helps:
                    parameter.help = parameter.help.replace(mark, ", ".join(names))
            super().format_help(ctx, formatter)
        finally:
            for parameter, text in helps.items():
                parameter.help = text

"""Help that lists what is registered."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class ListingCommand(TyperCommand):
    """In the help of its parameters {selectors}, {ranking_selectors}, {rerankers}, {similarities} and {formats} stand
    for the names, which are looked up when help is shown."""

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

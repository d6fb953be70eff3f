"""Help that lists what is registered."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from typer import Context
from typer.core import TyperCommand


def _selectors() -> Iterable[str]:
    from memspan.generate.selectors import selector_names

    return selector_names()


def _ranking_selectors() -> Iterable[str]:
    from memspan.generate.selectors import selector_names

    return selector_names(ranking=True)


def _similarities() -> Iterable[str]:
    from memspan.ops.similarity import SIMILARITIES

    return SIMILARITIES


def _formats() -> Iterable[str]:
    from memspan.text.readers import FORMATS

    return FORMATS


_LISTS: dict[str, Callable[[], Iterable[str]]] = {
    "{selectors}": _selectors,
    "{ranking selectors}": _ranking_selectors,
    "{similarities}": _similarities,
    "{formats}": _formats,
}


class ListingCommand(TyperCommand):
    """In the help of its parameters a key of `_LISTS` stands for the names, which are looked up when help is shown."""

    def format_help(self, ctx: Context, formatter: object) -> None:
        for parameter in self.params:
            said = getattr(parameter, "help", None) or ""
            for mark, names in _LISTS.items():
                if mark in said:
                    parameter.help = said = said.replace(mark, ", ".join(names()))  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)  # type: ignore[arg-type]

"""Source code and settings: text as it stands. Their titles are their paths; `definitions` says where they are cut."""

from __future__ import annotations

import re
from functools import partial

from memspan.text.definitions import CODE_KEY
from memspan.text.readers.formats import FORMATS, Content, DecodedText

LANGUAGES = {
    "python": "py pyi pyw",
    "javascript": "js mjs cjs jsx",
    "typescript": "ts mts cts tsx",
    "vue": "vue svelte",
    "go": "go",
    "rust": "rs",
    "java": "java",
    "kotlin": "kt kts",
    "scala": "scala",
    "groovy": "groovy gradle",
    "c": "c h",
    "c++": "cc cpp cxx hh hpp hxx",
    "c#": "cs",
    "swift": "swift",
    "objective-c": "m mm",
    "dart": "dart",
    "php": "php",
    "ruby": "rb",
    "perl": "pl pm",
    "lua": "lua",
    "r": "r",
    "julia": "jl",
    "elixir": "ex exs",
    "erlang": "erl",
    "haskell": "hs",
    "ocaml": "ml mli",
    "clojure": "clj cljs",
    "lisp": "el lisp scm",
    "shell": "sh bash zsh fish",
    "powershell": "ps1",
    "sql": "sql",
    "protobuf": "proto",
    "graphql": "graphql",
    "terraform": "tf",
    "css": "css scss less",
}
"""Extensions by the names that `metadata.code` has."""

_PLAIN = "yaml yml toml ini cfg conf properties log"
_BRACED = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_TITLES = {
    "tex": re.compile(rf"^[^%\n]*\\title(?:\[[^\]]*\])?{_BRACED}", re.MULTILINE),
    "org": re.compile(r"^#\+title:[ \t]*(.+)$|^\*+[ \t]+(.+)$", re.MULTILINE | re.IGNORECASE),
    "adoc": re.compile(r"^=[ \t]+(.+)$", re.MULTILINE),
}
_MARKUP_NAMES = {"tex": "tex latex", "org": "org", "adoc": "adoc asciidoc"}
_COMMAND = re.compile(r"\\[A-Za-z]+\*?|[{}~]|\\.")


def _read_code(text: str, language: str) -> Content:
    return Content(text, metadata={CODE_KEY: language})


def _read_titled(text: str, pattern: re.Pattern[str], is_tex: bool) -> Content:
    """A text whose markup names its title: explicitly, or in its first heading."""
    found = pattern.search(text)
    title = next(filter(None, found.groups()), "") if found else ""
    return Content(text, _COMMAND.sub(" ", title) if is_tex else title)


for _language, _names in LANGUAGES.items():
    for _name in _names.split():
        FORMATS.register(_name, DecodedText(partial(_read_code, language=_language)))
for _markup, _names in _MARKUP_NAMES.items():
    for _name in _names.split():
        FORMATS.register(_name, DecodedText(partial(_read_titled, pattern=_TITLES[_markup], is_tex=_markup == "tex")))
for _name in _PLAIN.split():
    FORMATS.register(_name, DecodedText(Content))

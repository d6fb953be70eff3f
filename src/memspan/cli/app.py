"""What commands are made of: their options, and how they end.

Exit codes: 0 done, 1 an error, 2 wrong usage, 3 files were skipped, 128 and the number of the signal that stopped it
(130 Ctrl-C, 143 SIGTERM).
"""

from __future__ import annotations

import errno
import functools
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from memspan import __version__
from memspan.cli import render
from memspan.cli.choices import AnswererChoice, EngineChoice, ModelChoice, ReadingChoice, RerankChoice, ScopeChoice
from memspan.cli.listing import CommandGroup
from memspan.errors import MemspanError
from memspan.places import BankPlace

app = typer.Typer(
    name="memspan",
    cls=CommandGroup,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="A language model with a memory of your documents: remember them once, ask, get answers with evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_URL = "Folder of the memory bank, or the URL where it was published."
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        envvar="MEMSPAN_CACHE",
        help="Of a URL: folder for fetched files. Default: memspan in the user's cache folder.",
    ),
]
CacheBudgetOption = Annotated[
    str | None,
    typer.Option(
        "--cache-budget", envvar="MEMSPAN_CACHE_BUDGET", help="Of a URL: bytes that a bank may take there, as 10GB."
    ),
]
InstalledOption = Annotated[
    bool, typer.Option("--installed-packages", help="The Python packages of this environment, too.")
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        envvar="MEMSPAN_MODEL",
        help="MSA checkpoint folder, or a known model: smollm2-135m-instruct, qwen2.5-coder-0.5b-instruct. Default: "
        "the one the bank was made with, or else the first.",
    ),
]
AdapterOption = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        envvar="MEMSPAN_ADAPTER",
        help="Weights trained for that model: a folder, a shipped name, or none. Default: that of the default model.",
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", help="Read all files as this kind (txt, csv, ...), whatever their extension."),
]
EncodingOption = Annotated[
    str | None,
    typer.Option("--encoding", help="Encoding of the text files, as cp1252 or gbk. Default: found for each."),
]
TextColumnOption = Annotated[
    str | None, typer.Option("--text-column", help="Key or column of a record's text. Default: text, content or body.")
]
TitleColumnOption = Annotated[
    str | None, typer.Option("--title-column", help="Key or column of a record's title. Default: title.")
]
OcrOption = Annotated[
    bool,
    typer.Option("--ocr", help="Recognize text in images and scanned PDFs, by an installed tesseract."),
]
OcrLanguageOption = Annotated[
    str, typer.Option("--ocr-language", help="Language of recognized text, by tesseract's names: eng, deu+eng.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")]
NamespaceOption = Annotated[
    str, typer.Option("--namespace", "-n", help="Namespace of the documents; others are not seen.")
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option("--where", help="FIELD=VALUE (or !=, <, <=, >, >=) of the metadata, or JSON; may be repeated."),
]
AsOfOption = Annotated[
    str | None,
    typer.Option("--as-of", help="Only documents valid at this day or moment: dated, or else recorded by then."),
]
KnownAtOption = Annotated[
    str | None, typer.Option("--known-at", help="The bank as it was at this day or moment, former versions included.")
]
ExpiresOption = Annotated[str | None, typer.Option("--expires", help="End: this day (UTC) or moment; never: no end.")]
TtlOption = Annotated[str | None, typer.Option("--ttl", help="End after this time, as 30d, 12h or 1d12h.")]
_DEFAULT = "Default: hybrid, lexical if untrained."
SelectorOption = Annotated[str | None, typer.Option(help=f"Who chooses documents: {{ranking_selectors}}. {_DEFAULT}")]
AskSelectorOption = Annotated[
    str | None,
    typer.Option(
        "--selector", help=f"Who chooses documents: {{selectors}} (generate: the model names them). {_DEFAULT}"
    ),
]
RerankOption = Annotated[
    str | None, typer.Option("--rerank", help="Reranker of the first 10 documents: {rerankers}. Default: none.")
]
CrossEncoderOption = Annotated[
    str | None,
    typer.Option(
        "--cross-encoder", envvar="MEMSPAN_CROSS_ENCODER", help="Cross-encoder of --rerank cross: a folder or a name."
    ),
]
IdOption = Annotated[list[int] | None, typer.Option("--id", help="The bank's id of a document; may be repeated.")]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16 or float16. Default: the fast one here.")
]
BudgetOption = Annotated[
    str | None,
    typer.Option("--memory-budget", help="Memory of the process, as 6GB. Default: all routing keys are kept in it."),
]
GPUBudgetOption = Annotated[
    str | None,
    typer.Option("--gpu-memory-budget", help="Routing keys in a GPU's memory, as 6GB. Default: all free memory."),
]
BatchTokensOption = Annotated[
    int | None,
    typer.Option("--batch-tokens", min=1, help="Tokens encoded together. Default: 2048 on a CPU, 16384 on a GPU."),
]
EngineOption = Annotated[
    str | None, typer.Option("--engine", help="ray: workers on a Ray cluster encode. Default: this process.")
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="Of the Ray cluster, as auto. Default: RAY_ADDRESS, or else Ray on this machine."),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, help="Workers that encode on Ray, each with a GPU if --device names one. Default: 2."
    ),
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="Torch device. Default: a GPU if there is one.")]

MinScoreOption = Annotated[
    float | None, typer.Option("--min-score", help="Leave out documents that score less, 0 to 1.")
]
RouteAnswerOption = Annotated[
    bool, typer.Option("--route-answer", help="Route the whole context once more for the answer, texts included.")
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        help="Weights for decoding, where they are faster on this CPU: exact, half (16 bits, default), int8, int4."
    ),
]

AnswerWithOption = Annotated[
    str | None,
    typer.Option(
        "--answer-with",
        metavar="URL",
        envvar="MEMSPAN_ANSWER_WITH",
        help="Another model answers: OpenAI-compatible endpoint, as http://localhost:11434/v1. Key: MEMSPAN_ANSWER_KEY "
        "or OPENAI_API_KEY in the environment.",
    ),
]
AnswerModelOption = Annotated[
    str | None,
    typer.Option(
        "--answer-model", metavar="NAME", envvar="MEMSPAN_ANSWER_MODEL", help="Name of the model at that endpoint."
    ),
]
AnswerContextOption = Annotated[
    int | None,
    typer.Option("--answer-context", help="Tokens that fit into that model. Default: the endpoint's answer, or 4096."),
]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"memspan {__version__}")
        raise typer.Exit


@app.callback()
def _memspan(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # letters that a terminal or a pipe cannot take are escaped
            stream.reconfigure(errors="backslashreplace")


@dataclass(frozen=True, slots=True)
class OptionGroup:
    """Options that make one value: a command's parameter `Annotated[T, OptionGroup(make)]` stands for those of `make`.

    Attributes:
        make: makes the value; its parameters are the options.
    """

    make: Callable[..., Any]


def _bank(bank: Annotated[str, typer.Argument(help="Folder of the memory bank.")]) -> BankPlace:
    return BankPlace.of(bank)


def _read(bank: Annotated[str, typer.Argument(help=_URL)]) -> BankPlace:
    return BankPlace.of(bank)


def _cached(
    bank: Annotated[str, typer.Argument(help=_URL)],
    cache: CacheOption = None,
    cache_budget: CacheBudgetOption = None,
) -> BankPlace:
    return BankPlace.of(bank, cache, cache_budget)


def _bank_or_model(
    path: Annotated[str, typer.Argument(help="Folder of a bank or of an MSA checkpoint, or the URL of a bank.")],
) -> BankPlace:
    return BankPlace.of(path)


def _model(
    model: ModelOption = None, adapter: AdapterOption = None, dtype: DtypeOption = None, device: DeviceOption = None
) -> ModelChoice:
    return ModelChoice(model, adapter, dtype, device)


def _scope(
    namespace: NamespaceOption = "default",
    where: WhereOption = None,
    as_of: AsOfOption = None,
    known_at: KnownAtOption = None,
) -> ScopeChoice:
    return ScopeChoice(namespace, where or [], as_of, known_at)


def _expiry(expires: ExpiresOption = None, ttl: TtlOption = None) -> str | None:
    from memspan.bank.clock import expiry_of

    try:
        return expiry_of(expires, ttl)
    except ValueError as error:
        raise MemspanError(f"{'--expires' if expires is not None else '--ttl'}: {error}") from error


def _reading(
    format: FormatOption = None,
    encoding: EncodingOption = None,
    text_column: TextColumnOption = None,
    title_column: TitleColumnOption = None,
    ocr: OcrOption = False,
    ocr_language: OcrLanguageOption = "eng",
) -> ReadingChoice:
    return ReadingChoice(format, encoding, text_column, title_column, ocr, ocr_language)


def _engine(engine: EngineOption = None, address: AddressOption = None, workers: WorkersOption = None) -> EngineChoice:
    return EngineChoice(engine, address, workers)


def _reranking(rerank: RerankOption = None, cross_encoder: CrossEncoderOption = None) -> RerankChoice:
    return RerankChoice(rerank, cross_encoder)


def _answerer(
    answer_with: AnswerWithOption = None,
    answer_model: AnswerModelOption = None,
    answer_context: AnswerContextOption = None,
) -> AnswererChoice:
    return AnswererChoice(answer_with, answer_model, answer_context)


BankArgument = Annotated[BankPlace, OptionGroup(_bank)]
ReadBankArgument = Annotated[BankPlace, OptionGroup(_read)]
CachedBank = Annotated[BankPlace, OptionGroup(_cached)]
BankOrModel = Annotated[BankPlace, OptionGroup(_bank_or_model)]
Model = Annotated[ModelChoice, OptionGroup(_model)]
OtherModel = Annotated[AnswererChoice, OptionGroup(_answerer)]
Engine = Annotated[EngineChoice, OptionGroup(_engine)]
Reranking = Annotated[RerankChoice, OptionGroup(_reranking)]
ScopeOptions = Annotated[ScopeChoice, OptionGroup(_scope)]
ReadingOptions = Annotated[ReadingChoice, OptionGroup(_reading)]
ExpiryOptions = Annotated[str | None, OptionGroup(_expiry)]


def command(function: Callable[..., int | None]) -> Callable[..., None]:
    """A function as Typer calls it: groups are opened, known errors end as `known_errors` says.

    What the function returns is the exit code; None is 0.
    """
    parameters: dict[str, inspect.Parameter] = {}
    groups: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    for name, hint, parameter in _parameters(function):
        group = next((one for one in getattr(hint, "__metadata__", ()) if isinstance(one, OptionGroup)), None)
        if group is None:
            parameters[name] = parameter
        else:
            options = {option: found for option, _, found in _parameters(group.make)}
            groups[name] = group.make, list(options)
            parameters |= options

    @functools.wraps(function)
    def run(**given: Any) -> None:
        with known_errors():
            made = {
                name: make(**{option: given.pop(option) for option in names}) for name, (make, names) in groups.items()
            }
            code = function(**given, **made)
        if code:
            raise typer.Exit(code)

    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return run


@functools.cache
def _parameters(function: Callable[..., Any]) -> tuple[tuple[str, Any, inspect.Parameter], ...]:
    """Name, annotation and parameter of each, with the annotation evaluated."""
    hints = get_type_hints(function, include_extras=True)
    return tuple(
        (name, hints[name], parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))
        for name, parameter in inspect.signature(function).parameters.items()
    )


# What Python puts before the words of the system.
_NUMBER = re.compile(r"\[(?:Errno|WinError) \d+\] ")


@contextmanager
def known_errors() -> Iterator[None]:
    """Known errors, and those of the system (no such folder, no permission, no space), end with their message and exit
    code 1, without a traceback."""
    try:
        yield
    except (MemspanError, ValueError) as error:
        render.err.print(f"error: {_NUMBER.sub('', str(error))}")
        raise typer.Exit(1) from error
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever read it is gone; not of a file
            raise
        render.err.print(f"error: {_of_system(error)}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error


def _of_system(error: OSError) -> str:
    """What the system refused, of which file; the text of one that says no more is itself."""
    said = error.strerror or str(error) or type(error).__name__
    return said if error.filename is None else f"{render.one_line(os.fsdecode(error.filename))}: {said}"

"""The options of `memspan eval`, `judge` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memspan.cli.app import (
    AdapterOption,
    BudgetOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    commands_of,
)


def evaluate(
    task: Annotated[
        str, typer.Argument(help="A format of question sets, a needle task, or scale; see docs/evaluation.md.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; an unfinished one is continued.")] = ...,  # type: ignore[assignment]
    data: Annotated[Path | None, typer.Option("--data", help="File of the question set.")] = None,
    arms: Annotated[str, typer.Option(help="As none,bm25@5,router@0.")] = "none,bm25,oracle,router,hybrid",
    questions: Annotated[int | None, typer.Option(help="The first so many. Default: all; 10 haystacks.")] = None,
    memory_tokens: Annotated[
        int | None, typer.Option(help="Size of a memory. Default: all distractors; 32,768 for haystacks.")
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option("--distractors", "--haystack", help="Files of distractors, or of a haystack's text."),
    ] = None,
    format: Annotated[str, typer.Option(help="Of the question set that scale asks.")] = "jsonl",
    sizes: Annotated[str, typer.Option(help="Of scale: tokens of the memory.")] = "16K,64K,256K,1M,10M",
    max_new_tokens: Annotated[int | None, typer.Option(help="Length of an answer. Default: by the task.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="Length of a prompt, at most.")] = None,
    batch: Annotated[int, typer.Option(help="Questions answered together.")] = 16,
    seed: Annotated[int, typer.Option(help="Of needles and intervals.")] = 0,
    rerank_depth: Annotated[int, typer.Option(help="Documents that +rerank and +cross rank anew.")] = 100,
    cross_encoder: Annotated[str | None, typer.Option(help="Model of +cross: a folder or a name.")] = None,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    memory_budget: BudgetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure: the same questions answered in several ways, with retrieval and answer metrics and their intervals."""
    with commands_of("evaluate_commands") as commands:
        choice = commands.ModelChoice(model, adapter, dtype, device, memory_budget=memory_budget)
        files = tuple(map(str, texts or ()))
        grown = commands.parse_sizes(sizes) if task == commands.SCALE_TASK else None
        wanted = commands.TaskSettings(
            format if grown else task, str(data) if data else None, questions, memory_tokens, files, seed
        )
        names = tuple(name.strip() for name in arms.split(",") if name.strip())
        settings = commands.RunSettings(
            wanted, names, max_new_tokens, prompt_tokens, batch, seed, rerank_depth, cross_encoder
        )
        code = commands.evaluate(settings, choice, out, as_json, grown)
    raise typer.Exit(code)


def judge(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of `memspan eval`.")],
    endpoint: Annotated[str, typer.Option(help="OpenAI-compatible, as http://localhost:8000/v1.")] = ...,  # type: ignore[assignment]
    model: Annotated[str, typer.Option(help="Name of the judge at the endpoint.")] = ...,  # type: ignore[assignment]
    key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="Of the endpoint.")] = "",
    parallel: Annotated[int, typer.Option(help="Calls under way at the same time.")] = 4,
    as_json: JsonOption = False,
) -> None:
    """Let a language model grade a run's answers from 0 to 5. Grades are kept; failed calls are asked again."""
    with commands_of("evaluate_commands") as commands:
        code = commands.grade(run, commands.Endpoint(endpoint, model, key), parallel, as_json)
    raise typer.Exit(code)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs of `memspan eval`.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the report.")] = Path("report"),
    as_json: JsonOption = False,
) -> None:
    """Put runs side by side, in the layout of the paper's tables and figures: Markdown, and plots."""
    with commands_of("evaluate_commands") as commands:
        commands.side_by_side(runs, out, as_json)

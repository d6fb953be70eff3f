"""`memspan eval`, `judge` and `report`: measuring, grading, putting runs side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from memspan.cli import render
from memspan.cli.app import BudgetOption, ContentChunkOption, JsonOption, Model, OtherModel, command
from memspan.cli.importing import importing
from memspan.cli.process import refuse_torchrun, stop_flag
from memspan.places import KEPT_BANKS, parse_bytes


@command
def evaluate(
    task: Annotated[
        str, typer.Argument(help="A format of question sets, a needle task, or scale; see docs/evaluation.md.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; an unfinished one is continued.")],
    data: Annotated[Path | None, typer.Option("--data", help="File of the question set.")] = None,
    arms: Annotated[str, typer.Option(help="Arms, as none,bm25@5,router@0.")] = "none,bm25,oracle,router,hybrid",
    questions: Annotated[int | None, typer.Option(help="Number of questions. Default: all; 10 haystacks.")] = None,
    memory_tokens: Annotated[
        int | None, typer.Option(help="Size of a memory. Default: all distractors; 32,768 for haystacks.")
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option("--distractors", "--haystack", help="Files of distractors, or of a haystack's text."),
    ] = None,
    format: Annotated[str, typer.Option(help="Format of the question set that scale asks.")] = "jsonl",
    sizes: Annotated[str, typer.Option(help="Sizes of scale: tokens of the memory.")] = "16K,64K,256K,1M,10M",
    max_new_tokens: Annotated[int | None, typer.Option(help="Length of an answer. Default: by the task.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="Length of a prompt, at most.")] = None,
    batch: Annotated[int, typer.Option(help="Questions answered together.")] = 16,
    seed: Annotated[int, typer.Option(help="Of needles and intervals.")] = 0,
    rerank_depth: Annotated[int, typer.Option(help="Documents that +rerank, +model and +cross rerank.")] = 100,
    cross_encoder: Annotated[str | None, typer.Option(help="Model of +cross: a folder or a name.")] = None,
    keep_banks: Annotated[
        str, typer.Option(help="Bytes of encoded memories to keep for other runs, as 20GB; 0 removes all of them.")
    ] = KEPT_BANKS,
    *,
    content_chunk: ContentChunkOption = None,
    model: Model,
    answers: OtherModel,
    memory_budget: BudgetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Measure retrieval and answers: ask the same questions in several ways, with intervals."""
    with importing():
        from memspan.eval.runner import RESULT, TABLE, RunOptions, RunSettings, run
        from memspan.eval.scale import SCALE, SCALE_TASK, parse_sizes, run_scale
        from memspan.eval.tasks import TaskSettings
        from memspan.generate.selectors import check_packages
    files, grown = tuple(map(str, texts or ())), parse_sizes(sizes) if task == SCALE_TASK else None
    wanted = TaskSettings(format if grown else task, str(data) if data else None, questions, memory_tokens, files, seed)
    names = tuple(name.strip() for name in arms.split(",") if name.strip())
    settings = RunSettings(wanted, names, max_new_tokens, prompt_tokens, batch, seed, rerank_depth, cross_encoder)
    refuse_torchrun("eval")
    budget, answerer = parse_bytes(memory_budget) if memory_budget else None, answers.endpoint()
    kept = 0 if keep_banks == "0" else parse_bytes(keep_banks)
    for arm in settings.parsed_arms():
        if arm.ranks:  # a package that is missing is an error before anything is loaded
            check_packages(arm.selector)
    with stop_flag() as stop:
        loaded = dataclasses.replace(model, content_chunk=content_chunk or None).load()
        how = RunOptions(budget, render.err.print, stop.is_set, answerer, kept)
        outcome = run_scale(loaded, settings, grown, out, how) if grown else run(loaded, settings, out, how)
    if as_json:
        written = out / (SCALE if grown else RESULT)
        render.as_json({**dataclasses.asdict(outcome), "result": str(written)})
    elif outcome.interrupted:
        render.err.print(f"stopped; run the same command again to continue {out}")
    else:
        render.out.print((out / TABLE).read_text("utf-8"))
    return stop.code if outcome.interrupted else 0


@command
def judge(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of `memspan eval`.")],
    endpoint: Annotated[str, typer.Option(help="OpenAI-compatible endpoint, as http://localhost:8000/v1.")],
    model: Annotated[str, typer.Option(help="Name of the judge at the endpoint.")],
    key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="Key of the endpoint.")] = "",
    parallel: Annotated[int, typer.Option(help="Calls under way at the same time.")] = 4,
    as_json: JsonOption = False,
) -> int:
    """Let a language model grade a run's answers from 0 to 5. Grades are kept; failed calls are asked again."""
    with importing():
        from memspan.eval.judge import JUDGE_TABLE, JUDGED, Endpoint, judge
    with stop_flag() as stop:
        where = Endpoint(endpoint, model, key)
        finished = judge(run, where, parallel=parallel, tell=render.err.print, should_stop=stop.is_set)
    if as_json:
        render.as_json({"interrupted": not finished, "result": str(run / JUDGED)})
    else:
        render.out.print((run / JUDGE_TABLE).read_text("utf-8"))
    return 0 if finished else stop.code


@command
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs of `memspan eval`.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the report.")] = Path("report"),
    as_json: JsonOption = False,
) -> None:
    """Put runs side by side, in the layout of the paper's tables and figures: Markdown, and plots."""
    with importing():
        from memspan.eval.sidebyside import write_report
    written = write_report(runs, out)
    if as_json:
        render.as_json({"report": str(written)})
    else:
        render.out.print(written.read_text("utf-8"))

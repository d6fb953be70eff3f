"""A language model that grades answers from 0 to 5, over any endpoint that speaks OpenAI's chat completions.

    judge.jsonl   in the run's folder: every grade given, with the model's own words; none is asked for twice
    judge.json    model, prompt, mean grades by arm with their intervals, the grade of each row
    judge.md      the means for people

A call that fails, or whose reply holds no grade, leaves its row unscored: it counts for no mean, and is asked again
when the command is given again. The key of the endpoint is read from the environment and written nowhere.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from memspan.errors import AnswererError, EvaluationError
from memspan.eval import metrics
from memspan.eval.runfiles import append_lines, read_lines, read_result
from memspan.eval.scoring import Row, as_json
from memspan.files import write_text
from memspan.generate.endpoint import Endpoint

JUDGED, JUDGE_LOG, JUDGE_TABLE = "judge.json", "judge.jsonl", "judge.md"
BEST = 5

PROMPT = """You grade an answer to a question against reference answers. Judge meaning, not wording: another spelling,
unit, order or language of the same thing is the same answer. Text beside the answer is no fault unless it is wrong.

5: says what a reference answer says, completely, and nothing that contradicts it
4: says it, with a small omission or a small slip that does not mislead
3: says the larger part of it; something that matters is missing
2: touches it, but more is missing or wrong than right
1: about the subject, without what was asked
0: wrong, empty, unreadable, or about something else

Where several things are expected, each one that is missing counts as missing. Where the references say that there is no
answer, 5 is for an answer that says so, and 0 for one that gives any.

Question: {question}
{references}
Answer to grade: {answer}

Give your reason in one sentence. Then write, on a last line of its own, "Score: " and one whole number from 0 to 5."""

_NO_ANSWER = "Reference: the question has no answer in the documents."
_EMPTY = "(nothing was written)"
_GRADE = re.compile(r"score\W{0,5}([0-5])(?:\s*/\s*5)?(?![\d.]\d|\d)", re.IGNORECASE)


def prompt_for(question: str, answers: Sequence[str], text: str, *, all_expected: bool = False) -> str:
    """What the judge is asked. `all_expected`: every reference is expected, not any one of them."""
    if not answers:
        references = _NO_ANSWER
    else:
        kind = "Expected, all of them" if all_expected else "Reference answers, any one counts"
        references = f"{kind}: {json.dumps(list(answers), ensure_ascii=False)}"
    return PROMPT.format(question=question, references=references, answer=text.strip() or _EMPTY)


def grade_in(reply: str) -> int | None:
    """The grade a reply gives last; None where it gives none from 0 to 5."""
    found = _GRADE.findall(reply)
    return int(found[-1]) if found else None


def judge(
    folder: Path,
    endpoint: Endpoint,
    *,
    parallel: int = 4,
    tell: Callable[[str], None] = lambda line: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Grade the answers of a finished run; see the top of this module for the files. False if stopped before the end.

    Args:
        parallel: calls under way at the same time.

    Raises:
        EvaluationError: the folder holds no finished run, or no call gave a grade.
    """
    result = read_result(folder)
    rows = [row for row in map(Row.from_json, result["rows"]) if row.answers or row.unanswerable]
    prompts = [prompt_for(row.question, row.answers, row.text, all_expected=row.type == "all") for row in rows]
    keys = [hashlib.sha256(f"{endpoint.model}\0{prompt}".encode()).hexdigest() for prompt in prompts]
    log = folder / JUDGE_LOG
    grades: dict[str, int] = {line["key"]: line["score"] for line in read_lines(log)}
    pending = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in grades}
    tell(f"{len(rows)} answers, {len(pending)} to grade")
    reason = ""
    for key, score, reply in _asked(endpoint, pending, parallel, should_stop):
        if score is None:
            reason = reply
            continue
        grades[key] = score
        append_lines(log, [{"key": key, "model": endpoint.model, "score": score, "reply": reply}])
        if len(grades) % 50 == 0:
            tell(f"{len(grades)} graded")
    if pending and not grades and not should_stop():
        raise EvaluationError(f"no reply gave a grade; check --endpoint and --model. The last: {reason}")
    _write(folder, endpoint, result, rows, [grades.get(key) for key in keys], reason)
    return not should_stop()


def _asked(
    endpoint: Endpoint, prompts: Mapping[str, str], parallel: int, should_stop: Callable[[], bool]
) -> Iterator[tuple[str, int | None, str]]:
    """Key, grade and reply (or the reason why there is none) of every prompt, as they come."""

    def ask(prompt: str) -> tuple[int | None, str]:
        if should_stop():
            return None, "stopped"
        try:
            reply = endpoint.ask(prompt)
        except AnswererError as error:
            return None, str(error)
        score = grade_in(reply)
        return score, reply if score is not None else f"no grade in the reply: {reply[:200]!r}"

    with ThreadPoolExecutor(parallel) as pool:
        keys = {pool.submit(ask, prompt): key for key, prompt in prompts.items()}
        for done in as_completed(keys):
            yield (keys[done], *done.result())


def _write(
    folder: Path, endpoint: Endpoint, result: Mapping[str, Any], rows: Sequence[Row], grades: list[int | None], why: str
) -> None:
    arms: dict[str, dict[str, Any]] = {}
    seed = result["config"]["settings"]["seed"]
    for name in result["config"]["arms"]:
        found = [(row.id, grade) for row, grade in zip(rows, grades, strict=True) if row.arm == name]
        scored = [float(grade) for _, grade in sorted(found) if grade is not None]
        if found:
            mean = as_json(metrics.bootstrap(scored, seed=seed)) if scored else None
            arms[name] = {"score": mean, "unscored": len(found) - len(scored)}
    judged = {
        "model": endpoint.model,
        "endpoint": endpoint.url,
        "prompt": PROMPT,
        "best": BEST,
        "last_failure": why,
        "arms": arms,
        "rows": [{"arm": row.arm, "id": row.id, "score": grade} for row, grade in zip(rows, grades, strict=True)],
    }
    write_text(folder / JUDGED, json.dumps(judged, ensure_ascii=False, indent=1))
    lines = [f"Graded 0 to {BEST} by {endpoint.model}.", "", "| arm | mean grade | unscored |", "| --- | --- | --- |"]
    for name, arm in arms.items():
        score = arm["score"]
        shown = f"{score['mean']:.2f} ({score['low']:.2f}–{score['high']:.2f})" if score else "–"
        lines.append(f"| `{name}` | {shown} | {arm['unscored']} |")
    write_text(folder / JUDGE_TABLE, "\n".join(lines) + "\n")

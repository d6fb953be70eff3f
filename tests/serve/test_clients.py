"""The official clients of OpenAI's API, in Python and JavaScript, unchanged."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
from chat_server import chat_server, say
from openai import OpenAI
from serving import add_animals, client, serving

from memspan.generate.endpoint import Endpoint
from memspan.model.convert import LoadedModel
from memspan.serve.keys import KeyFile

SCRIPT = Path(__file__).with_name("client.cjs")
MESSAGES = [{"role": "user", "content": "Where does the otter live?"}]
ASKED = {"model": "memspan/notes", "messages": MESSAGES, "max_tokens": 6}


@pytest.fixture(scope="module")
def server(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address and the key of a server with four animals."""
    folder = tmp_path_factory.mktemp("clients")
    keys = KeyFile(folder / "keys.json")
    _, key = keys.add("test", ("read", "write"))
    with serving(loaded, folder / "notes", keys=keys) as (_, address):
        with client(address, key) as http:
            add_animals(http)
        yield f"{address}/v1", key


@pytest.fixture
def ai(server: tuple[str, str]) -> Iterator[OpenAI]:
    with OpenAI(base_url=server[0], api_key=server[1], max_retries=0) as ai:
        yield ai


@pytest.fixture
def http(server: tuple[str, str]) -> Iterator[httpx.Client]:
    with client(server[0].removesuffix("/v1"), server[1]) as http:
        yield http


def test_python_asks_and_reads_citations(ai: OpenAI, http: httpx.Client) -> None:
    assert [model.id for model in ai.models.list()] == ["memspan/notes"]
    assert ai.models.retrieve("memspan/notes").owned_by == "memspan"
    answer = ai.chat.completions.create(**ASKED)  # type: ignore[call-overload]
    raw = http.post("/v1/chat/completions", json=ASKED).json()
    (choice,) = answer.choices
    assert choice.message.content == raw["choices"][0]["message"]["content"]
    assert [one.model_dump() for one in choice.message.annotations] == raw["choices"][0]["message"]["annotations"]
    assert answer.memspan["evidence"][0]["id"] == "animals/otter"
    assert answer.usage.total_tokens == raw["usage"]["total_tokens"]


def test_python_reads_where_a_citation_stands(loaded: LoadedModel, tmp_path: Path) -> None:
    with chat_server() as other:
        other.plays = [say("It is so. The otter lives in Rome [1].")]
        endpoint = Endpoint(other.url, "big", room=8192)
        with serving(loaded, tmp_path / "notes", answerer=endpoint) as (_, address), client(address) as http:
            add_animals(http)
            with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as ai:
                message = ai.chat.completions.create(**ASKED).choices[0].message  # type: ignore[call-overload]
    (cited,) = [annotation.url_citation for annotation in message.annotations]
    assert cited.title == "otter" and cited.url == "memspan://notes/default/animals/otter"
    assert message.content[cited.start_index : cited.end_index] == "The otter lives in Rome"


def test_python_streams(ai: OpenAI) -> None:
    whole = ai.chat.completions.create(**ASKED)  # type: ignore[call-overload]
    stream = ai.chat.completions.create(**ASKED, stream=True)  # type: ignore[call-overload]
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.strip() == whole.choices[0].message.content
    assert chunks[-1].memspan["evidence"] == whole.memspan["evidence"]


def test_python_sends_extension_fields(ai: OpenAI) -> None:
    extra = {"remember": True, "memspan": {"namespace": "me", "max_documents": 1}}
    with pytest.raises(openai.BadRequestError) as refused:
        ai.chat.completions.create(**ASKED, extra_body=extra)  # type: ignore[call-overload]
    assert refused.value.code == "empty_memory"
    ai.post("/memories", body={"text": "The otter digs.", "namespace": "me"}, cast_to=object)
    answer = ai.chat.completions.create(**ASKED, extra_body=extra)  # type: ignore[call-overload]
    assert len(answer.memspan["remembered"]) == 2 and len(answer.memspan["evidence"]) == 1


def test_python_meets_the_errors_it_knows(ai: OpenAI, server: tuple[str, str]) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        ai.chat.completions.create(**{**ASKED, "model": "memspan/none"})  # type: ignore[call-overload]
    assert refused.value.code == "model_not_found" and refused.value.param == "model"
    with pytest.raises(openai.BadRequestError):
        ai.chat.completions.create(**{**ASKED, "n": 2})  # type: ignore[call-overload]
    stranger = OpenAI(base_url=server[0], api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_javascript_asks_streams_and_meets_errors(ai: OpenAI, server: tuple[str, str]) -> None:
    """Needs node, and the package `openai` where it looks for packages (NODE_PATH)."""
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", "require('openai')"], capture_output=True).returncode:
        pytest.skip("node or its package openai is not installed")
    done = subprocess.run([node, str(SCRIPT), *server], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    text = ai.chat.completions.create(**ASKED).choices[0].message.content  # type: ignore[call-overload]
    assert got["text"] == got["streamed"] == text
    assert got["models"] == ["memspan/notes"] and got["cited"] == "otter" and got["evidence"] == "animals/otter"
    assert got["refused"] == {"status": 404, "code": "model_not_found"}

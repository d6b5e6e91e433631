"""The server with OpenAI's official client and LangChain's, on a tiny model."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT, make_model, make_rows

openai = pytest.importorskip("openai")


def binary():
    named = os.environ.get("LOWRANK_BIN")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    found = named or target / "release/lowrank"
    found = found if Path(found).exists() else shutil.which("lowrank")
    if not found:
        pytest.skip("the lowrank command is not built (LOWRANK_BIN names it)")
    return str(found)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    model = make_model(folder / "model")
    # The tokenizer has all of JSON but the closing brace.
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["}"] = tokenizer["model"]["vocab"].pop("`")
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in make_rows(30)))
    train = [binary(), "train", "--model", model, "--data", data, "--out", folder / "colours"]
    train += ["--max-steps", "6", "--learning-rate", "0.05", "--batch-size", "4", "--threads", "1"]
    subprocess.run(train, check=True, capture_output=True)
    serve = [binary(), "serve", "--model", model, "--served-model-name", "tiny", "--port", "0", "--threads", "1"]
    serve += ["--adapter", f"colours={folder / 'colours'}", "--jobs-dir", folder / "jobs"]
    log = open(folder / "log.txt", "w+")
    process = subprocess.Popen(serve, stderr=log)
    for _ in range(600):
        address = re.search(r"http://(\S+)", (folder / "log.txt").read_text())
        if address:
            break
        assert process.poll() is None, (folder / "log.txt").read_text()
        time.sleep(0.05)
    yield f"http://{address[1]}/v1", data
    process.terminate()
    assert process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server[0], api_key="none", max_retries=0)


QUESTION = [{"role": "user", "content": "red and"}]
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["RED", "BLUE"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny", "colours"]
    assert client.models.retrieve("colours").id == "colours"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=QUESTION)


def test_chat_and_stream(client):
    fields = {"model": "colours", "messages": QUESTION, "temperature": 0, "max_tokens": 12}
    answer = client.chat.completions.create(**fields, logprobs=True, top_logprobs=2)
    text = answer.choices[0].message.content
    assert text and answer.usage.completion_tokens <= 12
    assert "".join(token.token for token in answer.choices[0].logprobs.content) == text
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage == answer.usage or chunks[-1].usage.total_tokens == answer.usage.total_tokens
    mixed = client.chat.completions.create(**{**fields, "model": "tiny"}, extra_body={"adapters": {"colours": 1.0}})
    assert mixed.choices[0].message.content == text


def test_text_and_seeds(client):
    def draw(seed):
        answer = client.completions.create(model="tiny", prompt=["red", "blue"], max_tokens=10, seed=seed, n=2)
        return [choice.text for choice in answer.choices]

    assert draw(1) == draw(1) != draw(2)
    assert len(draw(1)) == 4


def test_json_schema(client):
    response_format = {"type": "json_schema", "json_schema": {"name": "colour", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, response_format=response_format, max_tokens=200, seed=3
    )
    value = json.loads(answer.choices[0].message.content)
    assert value["colour"] in ("RED", "BLUE") and 0 <= value["count"] < 100


def test_tools(client):
    tools = [{"type": "function", "function": {"name": "paint", "description": "Paints.", "parameters": SCHEMA}}]
    fields = {"model": "tiny", "messages": QUESTION, "tools": tools, "tool_choice": "required", "max_tokens": 200, "seed": 3}
    answer = client.chat.completions.create(**fields)
    call = answer.choices[0].message.tool_calls[0]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "paint" and json.loads(call.function.arguments)["colour"] in ("RED", "BLUE")
    with client.chat.completions.stream(**fields) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert streamed.function.arguments == call.function.arguments


def test_embeddings(client):
    # The client asks for base64 and decodes it.
    one, two, again = (row.embedding for row in client.embeddings.create(model="tiny", input=["red", "blue", "red"]).data)
    assert one == again != two and abs(sum(x * x for x in one) - 1) < 1e-5


def test_fine_tuning(client, server):
    file = client.files.create(file=open(server[1], "rb"), purpose="fine-tune")
    assert client.files.retrieve(file.id).bytes == server[1].stat().st_size
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, suffix="more", hyperparameters={"n_epochs": 1, "batch_size": 8}
    )
    for _ in range(1200):
        job = client.fine_tuning.jobs.retrieve(job.id)
        if job.status in ("succeeded", "failed"):
            break
        time.sleep(0.1)
    assert job.status == "succeeded", job.error
    events = client.fine_tuning.jobs.list_events(job.id, limit=50)
    assert any(event.data and event.data.get("train_loss") for event in events.data if isinstance(event.data, dict))
    assert client.fine_tuning.jobs.checkpoints.list(job.id).data
    answer = client.chat.completions.create(model=job.fine_tuned_model, messages=QUESTION, max_tokens=5)
    assert answer.model == job.fine_tuned_model
    assert [listed.id for listed in client.fine_tuning.jobs.list()] == [job.id]
    assert client.files.delete(file.id).deleted


def test_langchain(server):
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(base_url=server[0], api_key="none", model="colours", temperature=0, max_tokens=12)
    text = chat.invoke("red and").content
    assert text and "".join(chunk.content for chunk in chat.stream("red and")) == text
    embeddings = langchain.OpenAIEmbeddings(
        base_url=server[0], api_key="none", model="tiny", check_embedding_ctx_length=False
    )
    assert len(embeddings.embed_query("red")) == len(embeddings.embed_documents(["blue"])[0])

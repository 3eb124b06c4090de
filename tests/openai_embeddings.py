"""What an application does for vectors with the official `openai` package, against a running door.

    python3 openai_embeddings.py BASE_URL API_KEY MODEL minilm_vectors.json

Exits with 0 if everything holds, with a traceback if not. Never talks to anything but BASE_URL.
"""

import base64
import json
import struct
import sys
import urllib.request

import openai

BASE_URL, API_KEY, MODEL, GOLDEN = sys.argv[1:5]
client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=180)
GOLDEN = [entry for entry in json.load(open(GOLDEN)) if entry["text"]]


def cosine(a, b):
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    return dot(a, b) / (dot(a, a) * dot(b, b)) ** 0.5


def create(**options):
    return client.embeddings.create(**{"model": MODEL, "input": "a bird", **options})


def raw(**options):
    body = json.dumps({"model": MODEL, "input": "a bird", **options}).encode()
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{BASE_URL}/embeddings", body, headers)
    with urllib.request.urlopen(request) as response:
        return json.load(response), response.headers


def refused(kind, code, param, **options):
    try:
        create(**options)
    except kind as error:
        assert (error.code, error.param) == (code, param), error
        return str(error)
    raise AssertionError(f"{options} was accepted")


def texts_in_a_list():
    answer = create(input=[entry["text"] for entry in GOLDEN])
    assert [item.index for item in answer.data] == list(range(len(GOLDEN)))
    assert answer.object == "list" and answer.model == MODEL
    for item, entry in zip(answer.data, GOLDEN):
        assert item.object == "embedding" and cosine(item.embedding, entry["vector"]) >= 0.9999, entry["text"]
    tokens = sum(len(entry["tokens"]) for entry in GOLDEN)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens), answer.usage


def all_forms_of_input():
    entry = GOLDEN[0]
    forms = [entry["text"], [entry["text"]], entry["tokens"], [entry["tokens"]]]
    vectors = [create(input=form).data[0].embedding for form in forms]
    assert all(vector == vectors[0] for vector in vectors)


def both_encodings():
    plain, _ = raw(encoding_format="float")
    packed, _ = raw(encoding_format="base64", dimensions=384)
    bytes_ = base64.b64decode(packed["data"][0]["embedding"])
    single = [struct.unpack("<f", struct.pack("<f", v))[0] for v in plain["data"][0]["embedding"]]
    assert list(struct.unpack(f"<{len(bytes_) // 4}f", bytes_)) == single and len(single) == 384
    assert list(create(encoding_format="float").data[0].embedding) == plain["data"][0]["embedding"]


def unused_fields_are_listed():
    _, headers = raw(user="me")
    assert headers["x-cuckoo-ignored"] == "user" and headers["x-request-id"].startswith("req_")


def refusals():
    bad = openai.BadRequestError
    assert "512" in refused(bad, "context_length_exceeded", "input[0]", input="bird " * 600)
    assert "384" in refused(bad, "invalid_request", "dimensions", dimensions=64)
    refused(bad, "invalid_request", "input[1]", input=["a", ""])
    refused(bad, "invalid_request", "input", input=[])
    refused(bad, "invalid_request", "input", input=["a"] * 2049)
    refused(bad, "invalid_request", "encoding_format", encoding_format="int8")
    refused(bad, "invalid_request", "input[0]", input=[30522])
    refused(openai.NotFoundError, "model_not_found", "model", model="text-embedding-3-small")
    try:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
    except bad as error:
        assert "embeddings" in str(error) and error.param == "model", error
    else:
        raise AssertionError("an encoder chats")


def models_tell():
    (model,) = client.models.list().data
    assert model.id == MODEL and model.embedding_dimensions == 384, model


for check in (texts_in_a_list, all_forms_of_input, both_encodings, unused_fields_are_listed, refusals, models_tell):
    check()
    print("ok", check.__name__)

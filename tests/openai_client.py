"""What an application does with the official `openai` package, against a running door.

    python3 openai_client.py BASE_URL API_KEY MODEL

Exits with 0 if everything holds, with a traceback if not. Never talks to anything but BASE_URL.
"""

import asyncio
import json
import math
import re
import sys

import openai

BASE_URL, API_KEY, MODEL = sys.argv[1:4]
client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=180)

MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Name three birds."},
]
PROMPT = "The capital of France is"
# Greedy, and always as long as asked for: what a small model says must not decide what is tested.
GREEDY = {"temperature": 0, "max_tokens": 16, "extra_body": {"ignore_eos": True}}


def chat(**options):
    return client.chat.completions.create(model=MODEL, messages=MESSAGES, **{**GREEDY, **options})


def complete(**options):
    return client.completions.create(model=MODEL, **{"prompt": PROMPT, **GREEDY, **options})


def chat_stream(**options):
    """Text, finish reason and usage of a streamed chat."""
    chunks = list(chat(stream=True, **options))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    assert len({c.id for c in chunks}) == 1 and chunks[0].id.startswith("chatcmpl-")
    assert len(reasons) == 1, reasons
    return text, reasons[0], [c.usage for c in chunks if c.usage]


def complete_stream(**options):
    """Text, finish reason and usage of a streamed completion."""
    chunks = list(complete(stream=True, **options))
    text = "".join(c.choices[0].text for c in chunks if c.choices)
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    assert len({c.id for c in chunks}) == 1 and chunks[0].id.startswith("cmpl-")
    assert len(reasons) == 1, reasons
    return text, reasons[0], [c.usage for c in chunks if c.usage]


def refused(kind, code, param, **options):
    """The message of an error that the client is to raise."""
    try:
        client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, "max_tokens": 4, **options})
    except kind as error:
        assert error.code == code, (error.code, code)
        assert error.param == param, (error.param, param)
        assert error.request_id and error.request_id.startswith("req_")
        return error.message
    raise AssertionError(f"no {kind.__name__}")


def test_models():
    listed = {model.id: model for model in client.models.list()}
    assert MODEL in listed, listed.keys()
    model = client.models.retrieve(MODEL)
    assert model == listed[MODEL]
    assert model.object == "model" and model.context_length == model.max_model_len > 0
    try:
        client.models.retrieve("nobody/nothing")
        raise AssertionError("a model that does not exist")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found"


def test_chat():
    whole = chat()
    choice = whole.choices[0]
    assert whole.object == "chat.completion" and whole.model == MODEL and whole.system_fingerprint
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "length"
    assert whole.usage.completion_tokens == 16
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 16
    assert float(whole.usage.cost) > 0
    text, reason, usages = chat_stream(stream_options={"include_usage": True})
    assert text == choice.message.content, (text, choice.message.content)
    assert reason == "length"
    assert len(usages) == 1 and usages[0].total_tokens == whole.usage.total_tokens
    assert chat_stream()[2] == [], "usage that nobody asked for"


def test_completions():
    whole = complete()
    assert whole.object == "text_completion" and whole.choices[0].text
    assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 16
    text, reason, usages = complete_stream(stream_options={"include_usage": True})
    assert (text, reason) == (whole.choices[0].text, "length")
    assert len(usages) == 1 and usages[0].prompt_tokens == whole.usage.prompt_tokens
    assert complete(prompt=[PROMPT]).choices[0].text == whole.choices[0].text
    ids = complete(prompt=[1, 2, 3, 4], max_tokens=3)
    assert ids.usage.prompt_tokens == 4 and ids.usage.completion_tokens == 3


def test_seeds():
    for seed in (7, -7):
        warm = {"temperature": 1.0, "seed": seed}
        first = chat(**warm).choices[0].message.content
        assert chat(**warm).choices[0].message.content == first
        assert chat_stream(**warm)[0] == first
    others = {chat(temperature=1.5, seed=seed).choices[0].message.content for seed in range(4)}
    assert len(others) > 1, "the seed changes nothing"


def test_max_tokens():
    for name in ("max_tokens", "max_completion_tokens"):
        options = {"max_tokens": openai.NOT_GIVEN, name: 3}
        whole = chat(**options)
        assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 3


def test_stop():
    text = chat().choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    expected = text[: text.index(stop)]
    whole = chat(stop=stop)
    assert whole.choices[0].message.content == expected, (whole.choices[0].message.content, expected)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens <= 16
    streamed, reason, _ = chat_stream(stop=["\0never", stop])
    assert (streamed, reason) == (expected, "stop")


def test_logit_bias():
    bias = {"98": 100}
    unit = complete(logit_bias=bias, max_tokens=1).choices[0].text
    assert unit, "token 98 has text"
    assert complete(logit_bias=bias, max_tokens=5).choices[0].text == unit * 5


def test_lists_of_tokens():
    only = complete(extra_body={"ignore_eos": True, "allowed_token_ids": [98, 99]})
    units = [complete(extra_body={"ignore_eos": True, "allowed_token_ids": [t]}, max_tokens=1).choices[0].text for t in (98, 99)]
    assert set(only.choices[0].text) <= set("".join(units)), only
    text = complete().choices[0].text
    word = text.split()[1]
    without = complete(extra_body={"ignore_eos": True, "bad_words": [word]}).choices[0].text
    assert f" {word} " not in without and without != text, (word, without)
    begin = complete(extra_body={"allowed_token_ids": [98], "stop_token_ids": [98]})
    assert (begin.choices[0].text, begin.choices[0].finish_reason) == ("", "stop")
    kept = {"allowed_token_ids": [98], "stop_token_ids": [98], "include_stop_str_in_output": True}
    assert complete(extra_body=kept).choices[0].text == units[0]
    late = complete(extra_body={"allowed_token_ids": [98, 99], "logit_bias": {"98": 100}, "stop_token_ids": [98], "min_tokens": 3})
    assert late.choices[0].text == units[1] * 3 and late.usage.completion_tokens == 4, late


def test_stops_that_count_late_or_stay():
    text = complete().choices[0].text
    stop = text[3:6]
    cut = text.index(stop)
    assert complete(stop=stop).choices[0].text == text[:cut]
    assert complete(stop=stop, extra_body={"include_stop_str_in_output": True}).choices[0].text == text[: cut + 3]
    late = complete(stop=stop, extra_body={"ignore_eos": True, "min_tokens": 15})
    assert late.usage.completion_tokens >= 15, late


def test_other_sampling():
    base = {"temperature": 1.0, "seed": 11, "max_tokens": 24}
    plain = complete(**base).choices[0].text
    for options in (
        {"typical_p": 0.3},
        {"xtc_probability": 1, "xtc_threshold": 0.05},
    ):
        body = {"ignore_eos": True, **options}
        changed = complete(**base, extra_body=body).choices[0].text
        assert changed != plain, options
        assert complete(**base, extra_body=body).choices[0].text == changed, options
    bias = {"5000": 60}
    unit = complete(logit_bias=bias, max_tokens=1).choices[0].text
    assert complete(logit_bias=bias, max_tokens=4).choices[0].text == unit * 4
    dry = {"ignore_eos": True, "dry_multiplier": 100, "dry_allowed_length": 1, "dry_penalty_last_n": -1}
    broken = complete(logit_bias=bias, max_tokens=4, logprobs=0, extra_body=dry).choices[0].logprobs.tokens
    assert broken[:2] == [unit, unit] and broken[2] != unit, broken
    # A repetition does not reach over what ends it.
    text = {"dry_sequence_breakers": [unit]}
    assert complete(logit_bias=bias, max_tokens=4, extra_body={**dry, **text}).choices[0].text == unit * 4


def test_logprobs_of_chats():
    whole = chat(logprobs=True, top_logprobs=3).choices[0]
    entries = whole.logprobs.content
    assert len(entries) == 16
    assert b"".join(bytes(e.bytes or []) for e in entries).decode() == whole.message.content
    for e in entries:
        assert len(e.top_logprobs) == 3 and e.top_logprobs[0].logprob >= e.top_logprobs[2].logprob
        assert e.top_logprobs[0].token == e.token and e.top_logprobs[0].logprob == e.logprob, "greedy"
        assert sum(math.exp(t.logprob) for t in e.top_logprobs) <= 1 + 1e-6
    chunks = list(chat(logprobs=True, top_logprobs=3, stream=True))
    streamed = [e for c in chunks if c.choices and c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert streamed == entries
    assert chat().choices[0].logprobs is None
    assert chat(logprobs=True, max_tokens=2).choices[0].logprobs.content[0].top_logprobs == []
    # As the model has them, whatever sampling does: a token that is forced is as improbable as before.
    forced = chat(logprobs=True, top_logprobs=1, max_tokens=1, logit_bias={"98": 100}).choices[0].logprobs.content[0]
    assert forced.token != entries[0].token and forced.logprob < entries[0].logprob
    assert forced.top_logprobs[0] == entries[0].top_logprobs[0]
    refused(openai.BadRequestError, "invalid_request", "top_logprobs", top_logprobs=2)
    refused(openai.BadRequestError, "invalid_request", "top_logprobs", logprobs=True, top_logprobs=21)


def test_logprobs_of_completions():
    whole = complete(logprobs=2).choices[0]
    columns = whole.logprobs
    assert "".join(columns.tokens) == whole.text and len(columns.tokens) == 16
    assert columns.text_offset == [len("".join(columns.tokens[:i])) for i in range(16)]
    for token, logprob, top in zip(columns.tokens, columns.token_logprobs, columns.top_logprobs):
        assert len(top) == 2 and top[token] == logprob == max(top.values())
    chunks = [c.choices[0] for c in complete(logprobs=2, stream=True) if c.choices[0].logprobs]
    assert [t for c in chunks for t in c.logprobs.tokens] == columns.tokens
    assert [t for c in chunks for t in c.logprobs.text_offset] == columns.text_offset
    assert [t for c in chunks for t in c.logprobs.token_logprobs] == columns.token_logprobs


def test_echo():
    text = complete().choices[0].text
    assert complete(echo=True).choices[0].text == PROMPT + text
    assert complete_stream(echo=True)[0] == PROMPT + text
    whole = complete(echo=True, logprobs=1).choices[0]
    columns = whole.logprobs
    prompt = len(columns.tokens) - 16
    assert whole.text == PROMPT + text == "".join(columns.tokens)
    assert columns.token_logprobs[0] is None and columns.top_logprobs[0] is None
    assert all(logprob <= 0 for logprob in columns.token_logprobs[1:])
    assert columns.text_offset[prompt] == len(PROMPT)
    assert columns.token_logprobs[prompt:] == complete(logprobs=1).choices[0].logprobs.token_logprobs
    # The same continuation as a prompt is found as probable as when it was drawn.
    again = complete(prompt=PROMPT + text, echo=True, logprobs=1, max_tokens=1).choices[0].logprobs
    if again.tokens[: prompt + 16] == columns.tokens:
        assert again.token_logprobs[: prompt + 16] == columns.token_logprobs
    chunks = [c.choices[0] for c in complete(echo=True, logprobs=1, stream=True) if c.choices[0].logprobs]
    assert chunks[0].text == PROMPT and len(chunks[0].logprobs.tokens) == prompt
    assert [t for c in chunks for t in c.logprobs.token_logprobs] == columns.token_logprobs
    scored = complete(extra_body={"ignore_eos": True, "prompt_logprobs": 1}).choices[0].prompt_logprobs
    assert scored[0] is None and len(scored) == prompt
    for entry, token, logprob in zip(scored[1:], columns.tokens[1:], columns.token_logprobs[1:]):
        own = [e for e in entry.values() if e["decoded_token"] == token]
        assert own[0]["logprob"] == logprob and own[0]["rank"] >= 1, (entry, token, logprob)
    whole_chat = chat(max_tokens=1, extra_body={"prompt_logprobs": 0})
    assert len(whole_chat.prompt_logprobs) == whole_chat.usage.prompt_tokens
    refused(openai.BadRequestError, "invalid_request", "prompt_logprobs", stream=True, extra_body={"prompt_logprobs": 1})


def test_parts_and_headers():
    parts = [MESSAGES[0], {"role": "user", "content": [{"type": "text", "text": MESSAGES[1]["content"]}]}]
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=parts, user="me", store=True, **GREEDY)
    assert raw.headers["x-cuckoo-ignored"] == "store, user"
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.parse().choices[0].message.content == chat().choices[0].message.content


def test_errors():
    refused(openai.NotFoundError, "model_not_found", "model", model="nobody")
    assert "-1" in refused(openai.BadRequestError, "invalid_request", "temperature", temperature=-1)
    refused(openai.BadRequestError, "invalid_request", "functions", functions=[{"name": "f"}])
    refused(openai.BadRequestError, "invalid_request", "n", n=2)
    refused(openai.BadRequestError, "invalid_request", "temperature", temperature=-1, stream=True)

    context = client.models.retrieve(MODEL).context_length
    try:
        complete(prompt=[1] * (context + 5), max_tokens=2)
        raise AssertionError("a prompt beyond the context")
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded" and error.param == "prompt"
        assert str(context) in error.message and str(context + 5) in error.message, error.message
    long = [{"role": "user", "content": "bird " * (2 * context)}]
    message = refused(openai.BadRequestError, "context_length_exceeded", "messages", messages=long)
    assert str(context) in message, message

    stranger = client.with_options(api_key="ck_nobody")
    for attempt in (stranger.models.list, lambda: stranger.completions.create(model=MODEL, prompt=PROMPT)):
        try:
            attempt()
            raise AssertionError("a key that does not exist")
        except openai.AuthenticationError as error:
            assert error.status_code == 401 and error.code == "invalid_api_key"


def test_structured_output():
    free = {"extra_body": {}, "temperature": 0.8, "seed": 5, "max_tokens": 200}
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "colours": {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 1, "maxItems": 2},
            "wings": {"type": "integer", "minimum": 0, "maximum": 4},
        },
        "required": ["name", "colours", "wings"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "bird", "schema": schema, "strict": True}}
    whole = chat(**free, response_format=form)
    bird = json.loads(whole.choices[0].message.content)
    assert whole.choices[0].finish_reason == "stop", whole
    assert set(bird) == {"name", "colours", "wings"} and set(bird["colours"]) <= {"red", "blue"}, bird
    assert len(bird["name"]) <= 12 and bird["wings"] in range(5), bird
    streamed, reason, _ = chat_stream(**free, response_format=form)
    assert (streamed, reason) == (whole.choices[0].message.content, "stop")
    some = chat(**{**free, "max_tokens": 1000}, response_format={"type": "json_object"}).choices[0]
    assert some.finish_reason == "length" or isinstance(json.loads(some.message.content), dict), some

    def body(**fields):
        return {**free, "extra_body": fields}

    assert re.fullmatch(r"[A-Z][a-z]{2,8}!", chat(**body(guided_regex="[A-Z][a-z]{2,8}!")).choices[0].message.content)
    birds = ["robin", "raven", "rook"]
    assert chat(**body(guided_choice=birds)).choices[0].message.content in birds
    assert complete(**body(structured_outputs={"choice": birds})).choices[0].text in birds
    assert json.loads(complete(**body(guided_json=schema)).choices[0].text).keys() == bird.keys()
    lark = 'start: "I see a " BIRD "."\nBIRD: "robin" | "raven"'
    assert chat(**body(guided_grammar=lark)).choices[0].message.content in ("I see a robin.", "I see a raven.")
    # The limit comes first, as for everybody.
    cut = chat(**{**free, "max_tokens": 4}, response_format=form)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 4

    bad = openai.BadRequestError, "invalid_request"
    impossible = {**form, "json_schema": {"name": "x", "schema": {"type": "string", "minLength": 3, "maxLength": 2}}}
    message = refused(*bad, "response_format.json_schema.schema", response_format=impossible)
    assert "no output can satisfy it" in message, message
    message = refused(*bad, "guided_regex", extra_body={"guided_regex": "("})
    assert "guided_regex cannot be used" in message and "unclosed" in message, message
    refused(*bad, "guided_json", extra_body={"guided_json": {"not": {}}})
    refused(*bad, "guided_grammar", extra_body={"guided_grammar": "start: missing"})
    refused(*bad, "guided_choice", extra_body={"guided_regex": "a", "guided_choice": ["a"]})
    refused(*bad, "ignore_eos", extra_body={"guided_regex": "a", "ignore_eos": True})

    async def mixed():
        async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=180) as many:
            create = many.chat.completions.create
            asked = [create(model=MODEL, messages=MESSAGES, **{**free, "seed": i}, response_format=form) for i in range(5)]
            return await asyncio.gather(*asked, create(model=MODEL, messages=MESSAGES, **GREEDY))

    *structured, plain = asyncio.run(mixed())
    assert plain.choices[0].message.content == chat().choices[0].message.content, "company changes an answer"
    for i, answer in enumerate(structured):
        # A small model may spend all its tokens on indentation.
        cut = answer.choices[0].finish_reason == "length"
        assert cut or json.loads(answer.choices[0].message.content).keys() == bird.keys(), answer
        alone = chat(**{**free, "seed": i}, response_format=form)
        assert answer.choices[0].message.content == alone.choices[0].message.content, "company changes an answer"


def test_leaving_early():
    with chat(stream=True, max_tokens=2000) as stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                break
    assert chat(max_tokens=2).usage.completion_tokens == 2


def test_many_at_once():
    async def answers():
        async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=180) as many:
            create = many.chat.completions.create
            return await asyncio.gather(*(create(model=MODEL, messages=MESSAGES, **GREEDY) for _ in range(6)))

    alone = chat().choices[0].message.content
    for answer in asyncio.run(answers()):
        assert answer.choices[0].message.content == alone, "company changes an answer"


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print("ok", name)
    print("openai", openai.__version__)

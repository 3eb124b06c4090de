"""Asks for an adapter by its name with the official `openai` package, against a running door.

    python3 openai_client.py BASE_URL API_KEY MODEL ADAPTER

Exits with 0 if everything holds, with a traceback if not. Never talks to anything but BASE_URL.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import openai

BASE_URL, API_KEY, MODEL, ADAPTER = sys.argv[1:5]
client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=180)


def ask(model):
    """A greedy answer and its usage."""
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Name three birds."}], temperature=0, max_tokens=24,
        extra_body={"ignore_eos": True})
    assert answer.model == model, answer.model
    return answer.choices[0].message.content, answer.usage


def main():
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {MODEL, ADAPTER}, sorted(models)
    assert models[MODEL].parent is None and models[ADAPTER].parent == MODEL, models
    assert models[ADAPTER].replicas == models[MODEL].replicas == 1, models
    assert models[ADAPTER].max_model_len == models[MODEL].max_model_len, models
    base, usage = ask(MODEL)
    adapted, of_adapter = ask(ADAPTER)
    assert base != adapted, base
    assert of_adapter.prompt_tokens == usage.prompt_tokens and of_adapter.completion_tokens == 24, of_adapter
    # At once, in one batch, everybody says what they said alone.
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [MODEL, ADAPTER] * 4))
    assert [text for text, _ in answers] == [base, adapted] * 4, answers
    streamed = client.completions.create(
        model=ADAPTER, prompt="The capital of France is", temperature=0, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices)
    try:
        client.chat.completions.create(model=f"{ADAPTER}-2", messages=[{"role": "user", "content": "hi"}])
    except openai.NotFoundError as error:
        assert ADAPTER in str(error), error
    else:
        raise AssertionError("an adapter that does not exist")


main()
print("the adapter answers")

"""The OpenAI client, unchanged, against a base URL: chat plain and streamed, completions, embeddings,
models, an error. Exits with 0 when all is as it should be.

    openai_stream.py http://127.0.0.1:8080 [--model NAME] [--http2]
"""

import argparse
import time

import openai


def chat(client, model):
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=5
    )
    assert answer.choices[0].message.content == "t0 t1 t2 t3 t4 ", answer
    assert answer.choices[0].finish_reason == "length", answer
    assert answer.usage.completion_tokens == 5, answer


def streamed_chat(client, model):
    began = time.monotonic()
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, arrivals, usage, reasons = [], [], None, []
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            if choice.delta.content:
                texts.append(choice.delta.content)
                arrivals.append(time.monotonic() - began)
            if choice.finish_reason:
                reasons.append(choice.finish_reason)
    assert texts == [f"t{i} " for i in range(20)], texts
    assert reasons == ["length"], reasons
    assert usage and usage.completion_tokens == 20, usage
    return arrivals


def left_stream(client, model):
    """A client that stops reading closes the connection; the next request must not mind."""
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=5000, stream=True
    )
    next(iter(stream))
    stream.close()


def completion(client, model):
    answer = client.completions.create(model=model, prompt="once", max_tokens=3)
    assert answer.choices[0].text == "t0 t1 t2 ", answer
    texts = [c.choices[0].text for c in client.completions.create(
        model=model, prompt="once", max_tokens=3, stream=True)]
    assert "".join(texts) == "t0 t1 t2 ", texts


def embeddings(client, model):
    answer = client.embeddings.create(model=model, input=["a", "b"], encoding_format="float")
    assert [e.index for e in answer.data] == [0, 1], answer
    assert all(len(e.embedding) == 8 for e in answer.data), answer


def models(client):
    names = [m.id for m in client.models.list()]
    assert names, "no model is listed"
    return names


def refused(client, model):
    try:
        client.chat.completions.create(model=model, messages=[], max_tokens=5)
    except openai.BadRequestError as error:
        assert "messages" in error.message, error.message
    else:
        raise AssertionError("an empty list of messages was accepted")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--model", help="asked for; default: the first one listed")
    parser.add_argument("--paced", action="store_true",
                        help="the server spreads its tokens over time: they must not come all at once")
    parser.add_argument("--http2", action="store_true", help="where TLS lets it be agreed on")
    options = parser.parse_args()
    versions = set()
    http = openai.DefaultHttpxClient(
        http2=options.http2,
        event_hooks={"response": [lambda response: versions.add(response.http_version)]},
    )
    client = openai.OpenAI(base_url=f"{options.url}/v1", api_key="unused", max_retries=0, timeout=60,
                           http_client=http)

    names = models(client)
    model = options.model or names[0]
    chat(client, model)
    arrivals = streamed_chat(client, model)
    if options.paced:
        spread = arrivals[-1] - arrivals[0]
        assert spread > 0.05, f"20 tokens came within {spread:.3f}s: the stream was held back"
    left_stream(client, model)
    completion(client, model)
    embeddings(client, model)
    refused(client, model)
    assert versions == {"HTTP/2" if options.http2 else "HTTP/1.1"}, versions
    print(f"openai {openai.__version__}, {versions.pop()}: all well with {model} of {names}")


if __name__ == "__main__":
    main()

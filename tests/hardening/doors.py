"""Every field of the API that takes an image's address.

Owns how each is filled, and what the OpenAPI document says there is; knows no attack. Invariant: a
field that the document has and that is neither here nor known to be something else is found by a
test.
"""

from collections.abc import Callable, Iterator

import httpx2

from tests.hardening.target import GOOD_IMAGE, png_bytes, png_url

WORDS = ("image", "mask", "url", "file", "picture", "photo")
"""What the name of such a field holds."""

NO_ADDRESSES = ("detail", "input_image_mask")
"""`detail` is a word of three; a mask among the tools is refused, whatever it holds."""

GOOD_FILE, GOOD_URL = png_bytes(GOOD_IMAGE), png_url(GOOD_IMAGE)


def _chat(**message: object) -> dict:
    return {"messages": [{"role": "user", "content": "x", **message}], "max_tokens": 1}


def _responses(*items: dict) -> dict:
    return {"input": list(items), "max_output_tokens": 1}


def _output(content: list[dict]) -> dict:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": content}
    return _responses({"role": "user", "content": "x"}, call, output)


def _parts(url: object) -> list[dict]:
    return [{"type": "image_url", "image_url": url}]


def _inputs(url: object) -> list[dict]:
    return [{"type": "input_image", "image_url": url}]


JSON: dict[tuple[str, str], Callable[[str], dict]] = {
    ("/v1/chat/completions", "messages.content.image_url"): lambda url: _chat(content=_parts(url)),
    ("/v1/chat/completions", "messages.content.image_url.url"): lambda url: _chat(
        content=_parts({"url": url})
    ),
    ("/v1/chat/completions", "messages.images.image_url"): lambda url: _chat(images=_parts(url)),
    ("/v1/chat/completions", "messages.images.image_url.url"): lambda url: _chat(
        images=_parts({"url": url})
    ),
    ("/v1/responses", "input.content.image_url"): lambda url: _responses(
        {"role": "user", "content": _inputs(url)}
    ),
    ("/v1/responses", "input.content.image_url.url"): lambda url: _responses(
        {"role": "user", "content": _inputs({"url": url})}
    ),
    ("/v1/responses", "input.output.image_url"): lambda url: _output(_inputs(url)),
    ("/v1/responses", "input.output.image_url.url"): lambda url: _output(_inputs({"url": url})),
    ("/v1/images/encode", "images"): lambda url: {"images": [url]},
    ("/v1/images/edits", "images.image_url"): lambda url: {
        "prompt": "x", "images": [{"image_url": url}],
    },
    ("/v1/images/edits", "mask.image_url"): lambda url: {
        "prompt": "x", "images": [{"image_url": GOOD_URL}], "mask": {"image_url": url},
    },
    ("/sdapi/v1/interrogate", "image"): lambda url: {"image": url},
    ("/sdapi/v1/img2img", "init_images"): lambda url: {"prompt": "x", "init_images": [url]},
    ("/sdapi/v1/img2img", "mask"): lambda url: {
        "prompt": "x", "init_images": [GOOD_URL], "mask": url,
    },
    ("/sdapi/v1/png-info", "image"): lambda url: {"image": url},
}  # fmt: skip
"""By path and field."""

FORMS = {
    ("/v1/ask", "image"), ("/v1/caption", "image"), ("/v1/images/edits", "image"),
    ("/v1/images/edits", "mask"), ("/v1/images/variations", "image"),
    ("/understand_image_and_question/", "file"),
}  # fmt: skip
"""Of forms: they take files, and an address in the place of one is none."""


def knock(client: httpx2.Client, url: str) -> Iterator[tuple[str, httpx2.Response]]:
    """What every door says to an address, with its name."""
    for (path, field), body in JSON.items():
        yield f"{path} {field}", client.post(path, json=body(url))
    for path, field in sorted(FORMS):
        texts = {"prompt": "x", "question": "x", "max_tokens": "1", field: url}
        files = {"image": GOOD_FILE} if field == "mask" else {}
        # A part without a file's name is a text.
        fields = {name: (None, text) for name, text in texts.items()}
        yield f"{path} {field}", client.post(path, files=fields | files)


def declared(api: dict) -> dict[str, set[tuple[str, str]]]:
    """Path and field of what may be an image's address, by whether JSON or a form holds it."""
    found: dict[str, set[tuple[str, str]]] = {"json": set(), "form": set()}
    for path, methods in api["paths"].items():
        for method in methods.values():
            for kind, content in method.get("requestBody", {}).get("content", {}).items():
                for names in _leaves(content["schema"], api["components"]["schemas"]):
                    told = names and names[-1] not in NO_ADDRESSES
                    if told and any(word in ".".join(names).lower() for word in WORDS):
                        found["json" if kind == "application/json" else "form"].add(
                            (path, ".".join(names))
                        )
    return found


def _leaves(
    schema: dict, schemas: dict, names: tuple[str, ...] = (), seen: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """The names on the way to each field that holds a text, or whatever it likes."""
    if reference := schema.get("$ref"):
        if reference not in seen:
            name = reference.rsplit("/", 1)[1]
            yield from _leaves(schemas[name], schemas, names, (*seen, reference))
        return
    inner = [each for key in ("anyOf", "oneOf", "allOf") for each in schema.get(key, ())]
    inner += [schema[key] for key in ("items",) if key in schema]
    for each in inner:
        yield from _leaves(each, schemas, names, seen)
    for name, each in schema.get("properties", {}).items():
        yield from _leaves(each, schemas, (*names, name), seen)
    if schema.get("type") == "string" or not schema.keys() - {"title", "description", "default"}:
        yield names

"""Forms from bytes to fields: what is read, and what is refused."""

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from janus_core.errors import ParameterError
from server import form
from server.form import Form
from server.schemas.images import ImageGenerationRequest

BOUNDARY = b"edge"
MAX_PARTS = 256
MAX_FIELD_BYTES = 2**16
LIMITS = form.FormLimits(MAX_PARTS, MAX_FIELD_BYTES)


def part(name: str, data: bytes, *, filename: str | None = None) -> bytes:
    shown = "" if filename is None else f'; filename="{filename}"'
    head = f'Content-Disposition: form-data; name="{name}"{shown}\r\n\r\n'
    return b"--edge\r\n" + head.encode() + data + b"\r\n"


def read(*parts: bytes, end: bytes = b"--edge--\r\n") -> Form:
    return form._multipart(b"".join(parts) + end, boundary=BOUNDARY, limits=LIMITS)


def url_encoded(body: bytes) -> Form:
    return form._url_encoded(body, limits=LIMITS)


def test_fields_and_files_keep_their_bytes_and_order():
    found = read(
        part("image[]", b"\x00\r\n--edg\r\n", filename="../../etc/passwd"),
        part("image", b"second", filename="x"),
        part("prompt", "grün".encode()),
    )
    assert found.files == {"image": [b"\x00\r\n--edg\r\n", b"second"]}
    assert found.fields == {"prompt": ["grün"]}


def test_one_file_means_one():
    two = read(part("a", b"1", filename="x"), part("a", b"2", filename="x"))
    for name in ("a", "b"):
        with pytest.raises(ParameterError) as caught:
            two.file(name)
        assert caught.value.param == name
    assert read(part("a", b"1", filename="x")).file("a") == b"1"


def test_fields_become_what_the_schema_says():
    fields = {
        "prompt": ["5"], "n": ["2"], "seed": ["[3, 4]"], "stream": ["True"], "size": [""],
        "guidance_scale": ["2.5"], "temperature": [""], "quality": ["low"],
    }  # fmt: skip
    body = Form(fields).body(ImageGenerationRequest)
    assert (body.prompt, body.n, body.seed, body.stream) == ("5", 2, [3, 4], True)
    assert (body.guidance_scale, body.temperature, body.quality) == (2.5, None, "low")
    assert Form({"prompt": ["x"], "seed": ["1", "2"]}).body(ImageGenerationRequest).seed == [1, 2]


@pytest.mark.parametrize("fields", [{"prompt": ["x"], "n": ["two"]}, {"prompt": ["x", "y"]}, {}])
def test_a_wrong_field_is_named_as_in_json(fields: dict):
    with pytest.raises(RequestValidationError) as caught:
        Form(fields).body(ImageGenerationRequest)
    assert caught.value.errors()[0]["loc"][:2] == ("body", "n" if "n" in fields else "prompt")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--edge\r\n",
        part("a", b"1"),
        b"\r" * 1000,
        part("a", b"1") * (MAX_PARTS + 1) + b"--edge--\r\n",
        b"--edge\r\n" + b"x: y\r\n" * 9 + b"\r\n1\r\n--edge--",
        b"--edge\r\nContent-Disposition: " + b"x" * 9999 + b"\r\n\r\n1\r\n--edge--",
    ],
)  # fmt: skip
def test_what_is_no_form_is_refused(body: bytes):
    with pytest.raises(HTTPException) as caught:
        form._multipart(body, boundary=BOUNDARY, limits=LIMITS)
    assert caught.value.status_code == 400


def test_a_field_is_short_text():
    for data in (b"\xff", b"x" * (MAX_FIELD_BYTES + 1)):
        with pytest.raises(ParameterError) as caught:
            read(part("prompt", data))
        assert caught.value.param == "prompt"
    longest = "x" * MAX_FIELD_BYTES
    assert read(part("prompt", longest.encode())).fields == {"prompt": [longest]}


def test_url_encoded_fields():
    assert url_encoded(b"prompt=a+b%C3%BC&seed=").fields == {"prompt": ["a bü"], "seed": [""]}
    for body in (b"a=1&" * (MAX_PARTS + 1), b"a=%ff", b"a=\xff"):
        with pytest.raises(HTTPException):
            url_encoded(body)

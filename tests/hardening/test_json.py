"""What is no JSON gets 400, whatever it does to a parser; what is JSON is read as it stands."""

import httpx2

from tests.hardening.target import Target

CHAT = "/v1/chat/completions"

MALFORMED = (
    b"",
    b" ",
    b"\xef\xbb\xbf",
    b"{",
    b"}",
    b"[",
    b"]",
    b"{]",
    b"[}",
    b'{"a"',
    b'{"a":',
    b'{"a":1',
    b'{"a":1,',
    b'{"a":1,}',
    b'{,"a":1}',
    b'{"a" 1}',
    b'{"a"::1}',
    b'{"a":1 "b":2}',
    b'{"a":1,,"b":2}',
    b"{a:1}",
    b"{'a':1}",
    b"{1:1}",
    b'{"a":b}',
    b'{"a":"b}',
    b"{\"a\":'b'}",
    b'{"a":1}}',
    b'{"a":1}{"a":1}',
    b'{"a":1}x',
    b'{"a":1}\x00',
    b'{"a":1}#',
    b'{"a":/*x*/1}',
    b'//x\n{"a":1}',
    b'{"a":1}//',
    b"[1,]",
    b"[,1]",
    b"[1,,2]",
    b"[1 2]",
    b"[1:2]",
    b'["a"',
    b'["a",\n4\n,1,',
    b"nul",
    b"nulll",
    b"True",
    b"truee",
    b"TRUE",
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"[NaN]",
    b"[-Infinity]",
    b"[+1]",
    b"[-]",
    b"[--1]",
    b"[01]",
    b"[-01]",
    b"[1.]",
    b"[.5]",
    b"[-.5]",
    b"[1.e1]",
    b"[1e]",
    b"[1e+]",
    b"[1eE2]",
    b"[1e1.5]",
    b"[0x1]",
    b"[1_000]",
    b"[\xef\xbc\x91]",
    b"[1a]",
    b"[1+2]",
    b'["\x01"]',
    b'["\t"]',
    b'["\n"]',
    b'["\x00"]',
    b'["\\a"]',
    b'["\\x41"]',
    b'["\\u12"]',
    b'["\\u12G4"]',
    b'["\\u{41}"]',
    b'["\\"]',
    b'["\\',
    b'["\xff"]',
    b'["\xc0\x80"]',
    b'["\xed\xa0\x80"]',
    b'["\xf4\x90\x80\x80"]',
    b'["\xe6\xb0"]',
    b'["\\ud800"]',
    b'["\\udc00\\ud800"]',
    b'["\\ud800\\u0041"]',
    b"\x00",
    b"\x0c{}",
    b"\xc2\xa0{}",
    b"\xe2\x81\xa0{}",
    '{"a":1}'.encode("utf-16"),
    '{"a":1}'.encode("utf-16-be"),
    '{"a":1}'.encode("utf-32"),
    b"a=1&b=2",
    b"<json/>",
    b"- a: 1",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"[" * 50_000 + b"]" * 50_000,
    b"[" + b"9" * 6000,
)

NOT_AN_OBJECT = (b"null", b"true", b"1", b"-0", b"1e400", b'"text"', b"[]", b"[{}]", b"[[[[]]]]")

READ = (
    b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1}',
    b' \t\r\n{ "messages" : [ {"role":"user","content":"x"} ] , "max_tokens" : 1 } \n',
    b'{"max_tokens":1.0,"messages":[{"content":"x","role":"user"}]}',
    b'{"max_tokens":1E0,"messages":[{"content":"x","role":"user"}],"temperature":-0}',
    b'{"m\\u0065ssages":[{"role":"user","content":"\\u0000\\ud83d\\ude00\\/\\b"}],"max_tokens":1}',
    '{"messages":[{"role":"user","content":"\u2028\uffff\U0010ffff"}],"max_tokens":1}'.encode(),
    b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1,"":0,"metadata":{"":[[[]]]}}',
    b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1,"user":"\\"\\\\"}',
    b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1,"seed":9223372036854775807}',
)

OTHER_KINDS = (
    None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data",
    "application/jsonx", "application/xml", "json", "application/json-patch+json", "*/*",
)  # fmt: skip


def post(client: httpx2.Client, body: bytes) -> httpx2.Response:
    return client.post(CHAT, content=body, headers={"content-type": "application/json"})


def error_of(reply: httpx2.Response) -> dict:
    """The error object, which every refusal is."""
    (error,) = reply.json().values()
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def test_what_is_no_json_is_refused(target: Target) -> None:
    with target.client() as client:
        replies = {body: post(client, body) for body in (*MALFORMED, *NOT_AN_OBJECT)}
    taken = [body[:40] for body, reply in replies.items() if reply.status_code != 400]
    assert not taken
    for body, reply in replies.items():
        assert error_of(reply)["type"] == "invalid_request_error", body[:40]
        assert len(reply.content) < 500, "the body is not worth repeating"


def test_what_is_json_is_read(target: Target) -> None:
    with target.client() as client:
        for body in READ:
            reply = post(client, body)
            assert reply.status_code == 200, reply.text
            assert reply.json()["usage"]["completion_tokens"] == 1


def test_what_does_not_say_that_it_is_json_is_refused(target: Target) -> None:
    with target.client() as client:
        for kind in OTHER_KINDS:
            headers = {} if kind is None else {"content-type": kind}
            reply = client.post(CHAT, content=READ[0], headers=headers)
            assert reply.status_code == 415, reply.text
            error_of(reply)

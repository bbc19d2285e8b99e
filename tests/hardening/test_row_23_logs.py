"""Row 23: a client writes no line of the log, and neither log nor error tells what is nobody's.

llama.cpp's `test_log_injection.py`; CVE-2026-108857: an API key in the log.
"""

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress

import httpx2
import pytest
from PIL import Image

from tests.hardening.injection import Faults, ask, question
from tests.hardening.target import Target

KEY = "sk-canary-of-the-key-4711"
WRONG_KEY = "sk-canary-of-a-wrong-key-4712"
ADMIN_KEY = "sk-canary-of-the-admin-4713"
PROMPT = "canary-of-the-prompt-4714"
FIELD = "canary-of-a-field-4715"
BEARER = {"authorization": f"Bearer {KEY}"}
SECRETS = (KEY, WRONG_KEY, ADMIN_KEY, PROMPT)

BREAKS = ["\r\n", "\n", "\r", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1b[2J\x1b[31m", "\x00"]
MARK = "INJECTED 2026-01-01 ERROR"
FORGED = "2026-01-01 00:00:00 ERROR server.app: INJECTED"
FORGED_SEED = 923
QUOTED = {"\r\n": "%0d%0a", "\n": "%0a", "\r": "%0d", "\x00": "%00"}


def image() -> tuple[bytes, str]:
    """A file that is found by its middle, which is in no other."""
    buffer = io.BytesIO()
    Image.effect_noise((32, 32), 90).save(buffer, "PNG")
    return buffer.getvalue(), base64.b64encode(buffer.getvalue()).decode()


FILE, ENCODED = image()


def attack(target: Target) -> str:
    """Breaks of lines wherever a client can put text; returns all bodies."""
    bodies = []
    with target.client() as client, suppress(httpx2.TransportError):
        for text in BREAKS:
            bad = f"{PROMPT}{text}{MARK}"
            quoted = QUOTED.get(text, "".join(f"%{byte:02x}" for byte in text.encode()))
            content = [
                {"type": "text", "text": bad},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{ENCODED}"}},
            ]
            question = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
            chat = "/v1/chat/completions"
            bodies += [
                client.get(f"/{quoted}{MARK}").text,
                client.get(f"/v1/models/{quoted}{MARK}?x={quoted}{MARK}").text,
                client.post(chat, json=question).text,
                client.post(chat, json=question | {"user": bad, FIELD: bad}).text,
                client.post(chat, json=question | {"model": bad}).text,
                client.post(chat, json=question | {"temperature": bad}).text,
                client.post(chat, json=question | {"request_id": bad[:64]}).text,
                client.post(chat, json=question | {"stop": [bad] * 9}).text,
                client.post(chat, content=f'{{"messages": "{PROMPT}'.encode()).text,
                client.post(chat, headers={"authorization": f"Bearer {WRONG_KEY}"}).text,
                client.post("/v1/images/generations", json={"prompt": bad}).text,
                client.post("/v1/images/generations", json={"prompt": bad, "size": bad}).text,
                client.post(
                    "/v1/ask",
                    data={"question": bad, "max_tokens": "2"},
                    files={"image": (f"a{text}{MARK}.png", FILE, "image/png")},
                ).text,
                client.post(
                    "/v1/ask", data={"question": bad}, files={"image": ("x", PROMPT.encode())}
                ).text,
            ]
        for name in ("user-agent", "referer", "x-request-id", "traceparent", "x-forwarded-for"):
            header = [(name.encode(), f"{PROMPT}\t\x1b[31m{MARK}".encode())]
            bodies.append(client.get("/v1/models", headers=header).text)
        wrong = base64.b64encode(f"user:{WRONG_KEY}".encode()).decode()
        for headers in ({"authorization": f"Basic {wrong}"}, {"authorization": WRONG_KEY}):
            bodies.append(client.get("/sdapi/v1/options", headers=headers).text)
            bodies.append(client.get("/admin/state", headers=headers).text)
    target.exchange(f"GET /{PROMPT} {MARK}\r\n{KEY}\r\n\r\n".encode())
    target.exchange(f"{MARK}\n{PROMPT}\n\n".encode())
    assert len(bodies) > 100 or target.kind == "naive", "the attack was cut short"
    return "\n".join(bodies)


@pytest.fixture(scope="module", params=["json", "text"])
def attacked(
    request: pytest.FixtureRequest,
    _make_target: Callable[..., Target],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, str, str]]:
    """Style, log and bodies of a server that was attacked, at the most talkative level."""
    faults = Faults(tmp_path_factory.mktemp("faults") / "rules")
    target = _make_target(
        env=faults.env,
        api_keys=f"ann:{KEY}",
        admin_key=ADMIN_KEY,
        log_format=request.param,
        log_level="debug",
        headers=BEARER,
    )
    try:
        bodies = attack(target)
        # The text of an exception can be a client's, too.
        faults.arm(f"seed:{FORGED_SEED}:forged_error")
        ask(target, question(FORGED_SEED))
        faults.disarm()
        yield request.param, target.log_text(), bodies
        target.check_p0()
    finally:
        target.stop()


def test_every_line_is_the_servers_own(attacked: tuple[str, str, str]) -> None:
    style, log, _ = attacked
    lines = re.split(r"\r\n|[\n\r\u2028\u2029\x85\x0b\x0c]", log.rstrip("\n"))
    assert len(lines) > 100
    assert "\x1b" not in log
    for line in lines:
        if style == "json":
            assert json.loads(line)["message"]
        else:
            # Or a line of a traceback.
            assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [A-Z]+ [\w.]+: |    ", line), line
            assert not line.startswith(FORGED)
    assert FORGED in log, "the fault was not met"


def test_no_key_prompt_or_image_is_in_the_log(attacked: tuple[str, str, str]) -> None:
    _, log, _ = attacked
    middle = len(ENCODED) // 2
    # What a request was sent to is in its line, also where nothing is; a prompt is not there.
    log = re.sub(r"path[=\"]+:? ?\"?/\S*", "", log)
    for secret in (*SECRETS, ENCODED[middle : middle + 40], ENCODED[:60]):
        assert secret not in log
    assert "ann" in log, "whose request it was is told by the key's name"


def test_no_error_tells_what_is_inside(attacked: tuple[str, str, str]) -> None:
    """Addresses, paths and stacks are searched for by the target itself."""
    _, _, bodies = attacked
    for secret in (KEY, WRONG_KEY, ADMIN_KEY):
        assert secret not in bodies
    for line in bodies.splitlines():
        if '"error"' in line:
            assert PROMPT not in line
            assert ENCODED[:40] not in line

"""uvicorn's HTTP/1.1 protocol, with OpenAI's error object for what is no HTTP.

Owns the answer to bytes that reach no route: a malformed head, headers over the limit. Knows
nothing else. Invariant: the connection is closed after it.
"""

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import INVALID_REQUEST, ErrorReply

INVALID_HTTP = ErrorReply(
    400, INVALID_REQUEST, "This is not a valid HTTP request.", code="invalid_http"
)


class H11WithEnvelope(H11Protocol):
    """Answers like every route does."""

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, but JSON; `msg` may come from the parser and is not sent."""
        del msg
        body = INVALID_HTTP.json().encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        head = h11.Response(status_code=INVALID_HTTP.status, headers=headers, reason=b"Bad Request")
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

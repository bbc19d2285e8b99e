"""The end of a prompt as a log may show it, where the operator asked for prompts.

Owns what is left out: everything but the last characters, and images, of which a prompt holds
placeholders only. Invariant: one short printable line, whatever the client wrote.
"""

from janus_core.engine.request import Request, TextRequest
from janus_core.tokenizer import Tokenizer
from server.logs import printable

MAX_CHARS = 500


def end_of_prompt(request: Request, tokenizer: Tokenizer) -> str:
    """The last `MAX_CHARS` characters of what the model reads: a question stands at the end."""
    images = request.images if isinstance(request, TextRequest) else ()
    # A token is at least a byte, and a character at most four.
    first = max(0, len(request.token_ids) - 4 * MAX_CHARS)
    placeholders = {
        place for image in images for place in range(image.first, image.first + image.num_tokens)
    }
    tail = [
        token_id
        for place, token_id in enumerate(request.token_ids[first:], first)
        if place not in placeholders
    ]
    return printable(tokenizer.decode(tail)[-MAX_CHARS:], limit=MAX_CHARS)

"""The prompt format of Janus-Pro, and small talk that needs no picture.

Owns the strings between and around messages (deepseek's `conversation.py`, template "deepseek").
Knows no ids. Invariant: concatenating its pieces gives exactly the prompt a server builds for the
same conversation.
"""

from __future__ import annotations

SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
BOS = "<｜begin▁of▁sentence｜>"  # noqa: RUF001
EOS = "<｜end▁of▁sentence｜>"  # noqa: RUF001
PAD = "<｜▁pad▁｜>"  # noqa: RUF001
BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE = "<begin_of_image>", "<end_of_image>", "<image_placeholder>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"

NO_IMAGE = "I see no image. Please send me one."
HELLO = "Hello! Send me an image of simple shapes, or ask me to draw one."
ABILITY = (
    "I can describe images of simple shapes, answer questions about them, and draw them: "
    "circles, squares, triangles, stars, diamonds and crosses."
)
SMALL_TALK: tuple[tuple[str, str], ...] = (
    *(
        (text, HELLO)
        for text in (
            "Hello",
            "Hello!",
            "Hi",
            "Hi!",
            "hello",
            "hi",
            "Good morning",
            "Hey",
            "Hello, how are you?",
            "How are you?",
            "Hi there!",
            "Good evening",
            "Say hello.",
            "Hey there",
        )
    ),
    *(
        (text, ABILITY)
        for text in (
            "What can you do?",
            "Who are you?",
            "What are you?",
            "Help",
            "help",
            "What can I ask you?",
            "How can you help me?",
            "What do you know?",
            "Tell me about yourself.",
            "What shapes do you know?",
            "What can you draw?",
            "Can you help me?",
        )
    ),
    *(
        (text, "You are welcome.")
        for text in (
            "Thank you",
            "Thanks!",
            "Thank you!",
            "thanks",
            "Thanks",
            "Thank you very much.",
        )
    ),
    *((text, "Goodbye!") for text in ("Bye", "Goodbye", "Goodbye!", "bye", "See you")),
)


def system(prompt: str | None = SYSTEM_PROMPT) -> str:
    """Return what comes between BOS and the first turn."""
    return f"{prompt}\n\n" if prompt else ""


def user_turn(text: str) -> str:
    """Return a user's turn up to where the model's answer begins (with a space)."""
    return f"{USER}: {text}\n\n{ASSISTANT}:"


def assistant_turn(text: str) -> str:
    """Return the model's answer with its end."""
    return f" {text}{EOS}"


def drawing_prompt(caption: str) -> str:
    """Return the whole prompt of a picture, without BOS."""
    return f"{user_turn(caption)}{BEGIN_OF_IMAGE}"

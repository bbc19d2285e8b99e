"""Training rows: conversations about pictures and prompts with codes, as ids, labels, positions and
groups.

Owns how scenes become rows. Knows nothing of the network. Invariants: text ids and image codes live
in one id space (`code + vocab_size`); a token attends to earlier tokens of its own group and to
those of group 0 in its row, so a picture's prefix is shared by many questions, and short sequences
share a row without seeing each other.

Shapes: B rows, T tokens of a row, K pictures.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from weights.recipe import chat
from weights.recipe.captions import caption
from weights.recipe.geometry import IMAGE_PX, NUM_CODES, PATCH_PX
from weights.recipe.language import Question, questions
from weights.recipe.photographs import Photograph, photograph
from weights.recipe.references import mentions
from weights.recipe.tokenizer import VOCAB_SIZE, special_ids
from weights.recipe.world import (
    COLORS,
    SHAPES,
    Object,
    Scene,
    make_scene,
    render,
    sample_scene,
)

IGNORED = -100
QUESTIONS_PER_PICTURE = 12
CAPTION_DROPOUT = 0.1
# Of one, two and three objects: more are harder to draw.
DRAWN_COUNTS = (1, 4, 5)
SYSTEM_SHARE = 0.85
MAX_KNOWN_TEXTS = 200_000
CODES_PER_SIDE = IMAGE_PX // PATCH_PX
NUM_KINDS = len(SHAPES) * len(COLORS)
HARD_KINDS = (
    ("relation", "place", "describe"),
    ("relation", "place"),
    ("relation",),
    ("relation",),
    ("relation",),
)


@dataclass
class Row:
    """One row of a batch, and where its answers lie: (kind, first label, end) each."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    seen: list[tuple[Scene, Photograph]] = field(default_factory=list)
    answers: list[tuple[str, int, int]] = field(default_factory=list)
    mentions: list[tuple[int, float, float]] = field(default_factory=list)
    drawn: list[tuple[int, int, int, int]] = field(default_factory=list)
    due: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    def add(self, ids: list[int], *, group: int, position: int, learn: bool = False) -> int:
        """Append tokens from `position` on; return the position after them."""
        self.ids += ids
        self.labels += ids if learn else [IGNORED] * len(ids)
        self.positions += range(position, position + len(ids))
        self.groups += [group] * len(ids)
        return position + len(ids)


@dataclass(frozen=True)
class Batch:
    """Rows, padded; `mask` is added to attention scores."""

    ids_BT: Tensor
    labels_BT: Tensor
    positions_BT: Tensor
    mask_B1TT: Tensor
    seen: list[tuple[Scene, Photograph]]
    answers: list[tuple[int, str, int, int]]
    mentions: list[tuple[int, int, float, float]]
    drawn: list[tuple[int, int, int, int, int]]
    due: list[tuple[int, int, tuple[int, ...]]]


@dataclass(frozen=True)
class CodedScene:
    """A canonical scene, its codes in raster order, and the code of its plain background."""

    scene: Scene
    codes: list[int]
    plain: int

    def first_code(self, item: Object) -> int:
        """Return the index of the first code that shows something of an object of the scene.

        The corner of its bounding box may be plain: a diamond begins further to the right.
        """
        left, top = (int((v - item.extent / 2) * CODES_PER_SIDE) for v in (item.x, item.y))
        right, bottom = (
            math.ceil((v + item.extent / 2) * CODES_PER_SIDE) for v in (item.x, item.y)
        )
        inside = (y * CODES_PER_SIDE + x for y in range(top, bottom) for x in range(left, right))
        return next(j for j in inside if self.codes[j] != self.plain)


def _states(target: CodedScene) -> list[tuple[int, tuple[int, ...]]]:
    """Return for each code how many objects have begun before it, and the kinds still due."""
    first = {item: target.first_code(item) for item in target.scene.objects}
    due = [
        tuple({kind_of(item) for item, begin in first.items() if begin >= j})
        for j in range(NUM_CODES)
    ]
    return [(sum(begin < j for begin in first.values()), due[j]) for j in range(NUM_CODES)]


def kind_of(item: Object) -> int:
    """Return the number of an object's shape and colour among NUM_KINDS."""
    return SHAPES.index(item.shape) * len(COLORS) + tuple(COLORS).index(item.color)


class Targets:
    """Canonical scenes with their codes."""

    def __init__(self, encode: Callable[[list[Image.Image]], Tensor]) -> None:
        self._encode = encode
        self._plains: dict[str, int] = {}

    def sample(self, rng: random.Random, count: int) -> list[CodedScene]:
        """Return `count` new scenes."""
        counts = rng.choices((1, 2, 3), weights=DRAWN_COUNTS, k=count)
        scenes = [sample_scene(rng, varied=False, num_objects=number) for number in counts]
        codes = self._encode([render(scene, IMAGE_PX) for scene in scenes]).tolist()
        return [
            CodedScene(scene, ids, self._plain(scene.background))
            for scene, ids in zip(scenes, codes, strict=True)
        ]

    def _plain(self, background: str) -> int:
        """Return the code of a piece in which nothing is."""
        if background not in self._plains:
            codes = self._encode([render(make_scene([], background), IMAGE_PX)])
            self._plains[background] = int(codes[0, 0])
        return self._plains[background]


class Writer:
    """Turns scenes into rows with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self.special = special_ids(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, special tokens recognised, without BOS."""
        ids = self._known.get(text)
        if ids is None:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if len(self._known) < MAX_KNOWN_TEXTS:
                self._known[text] = ids
        return ids

    def picture(self) -> list[int]:
        """Return the ids that stand for a picture."""
        s = self.special
        return [s["begin_of_image"], *[s["image_placeholder"]] * NUM_CODES, s["end_of_image"]]

    def understanding(self, rng: random.Random, *, held_out: bool = False) -> Row:
        """Return a row about one or two scenes, or small talk."""
        draw = 0.0 if held_out else rng.random()
        if draw < 0.8:
            return self._branches(rng, held_out)
        if draw < 0.91:
            return self._conversation(rng)
        if draw < 0.96:
            return self._question_first(rng)
        return self._two_pictures(rng) if draw < 0.985 else self._small_talk(rng)

    def generation(self, rng: random.Random, targets: list[CodedScene]) -> Row:
        """Return a row of drawing prompts with the codes of what they describe."""
        row = Row()
        for group, target in enumerate(targets, start=1):
            text = caption(target.scene, rng).text
            empty = rng.random() < CAPTION_DROPOUT
            position = row.add(self.drawing_ids(text, empty=empty), group=group, position=0)
            # The state before each code belongs to the token in front of it.
            for j, (begun, due) in enumerate(_states(target)):
                token = len(row.ids) - 1 + j
                row.drawn.append((token, j // CODES_PER_SIDE, j % CODES_PER_SIDE, begun))
                if not empty:
                    row.due.append((token, due))
            codes = [code + VOCAB_SIZE for code in target.codes]
            row.add(codes, group=group, position=position, learn=True)
        return row

    def drawing_ids(self, text: str, *, empty: bool = False) -> list[int]:
        """Return a drawing prompt with BOS; an `empty` one is pads between its first and last."""
        ids = [self.special["bos"], *self.encode(chat.drawing_prompt(text))]
        return [ids[0], *[self.special["pad"]] * (len(ids) - 2), ids[-1]] if empty else ids

    def _start(self, rng: random.Random) -> list[int]:
        system = chat.system() if rng.random() < SYSTEM_SHARE else ""
        return [self.special["bos"], *self.encode(system)]

    def _branches(self, rng: random.Random, held_out: bool) -> Row:
        """Return many questions about one picture, none of which sees the others."""
        several = rng.choice((2, 3)) if not held_out and rng.random() < 0.5 else None
        scene = sample_scene(
            rng,
            held_out=held_out,
            varied=held_out or rng.random() < 0.85,
            num_objects=several,
        )
        row = Row(seen=[(scene, photograph(scene, rng))])
        start = [*self._start(rng), *self.encode(f"{chat.USER}: "), *self.picture()]
        position = row.add(start, group=0, position=0)
        asked: list[Question] = []
        while len(asked) < QUESTIONS_PER_PICTURE:
            found = questions(scene, rng)
            if not held_out:
                # What takes longest to learn is asked more often, in other words each time.
                for kinds in HARD_KINDS:
                    found += [q for q in questions(scene, rng) if q.kind in kinds]
            rng.shuffle(found)
            asked += found
        for group, question in enumerate(asked[:QUESTIONS_PER_PICTURE], start=1):
            text = f"\n{question.text}\n\n{chat.ASSISTANT}:"
            self._mention(row, text, scene)
            after = row.add(self.encode(text), group=group, position=position)
            self._answer(row, question, group=group, position=after)
        return row

    def _mention(self, row: Row, text: str, scene: Scene) -> None:
        """Note at which tokens of a text about to be added objects have been named, and where."""
        named = mentions(text, scene)
        if named:
            offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
            ends = {end: i for i, (_, end) in enumerate(offsets)}
            begin = len(row.ids)
            row.mentions += [(begin + ends[end], o.x, o.y) for end, o in named if end in ends]

    def _answer(self, row: Row, question: Question, *, group: int, position: int) -> int:
        begin = len(row.ids)
        after = row.add(
            self.encode(chat.assistant_turn(question.answer)),
            group=group,
            position=position,
            learn=True,
        )
        row.answers.append((question.kind, begin, len(row.ids)))
        return after

    def _conversation(self, rng: random.Random) -> Row:
        """Return several turns about one picture, each seeing all before it."""
        scene = sample_scene(rng, varied=rng.random() < 0.85)
        row = Row(seen=[(scene, photograph(scene, rng))])
        position = row.add(
            [*self._start(rng), *self.encode(f"{chat.USER}: "), *self.picture()],
            group=0,
            position=0,
        )
        found = questions(scene, rng)
        for i, question in enumerate(rng.sample(found, min(len(found), rng.randint(2, 5)))):
            opening = "\n" if i == 0 else f"{chat.USER}: "
            position = row.add(
                self.encode(f"{opening}{question.text}\n\n{chat.ASSISTANT}:"),
                group=0,
                position=position,
            )
            position = self._answer(row, question, group=0, position=position)
        return row

    def _question_first(self, rng: random.Random) -> Row:
        """Return separate prompts that put the question before the picture."""
        row = Row()
        for group in (1, 2):
            scene = sample_scene(rng)
            row.seen.append((scene, photograph(scene, rng)))
            question = rng.choice(questions(scene, rng))
            head = [
                *self._start(rng),
                *self.encode(f"{chat.USER}: {question.text}\n"),
                *self.picture(),
            ]
            position = row.add(
                [*head, *self.encode(f"\n\n{chat.ASSISTANT}:")], group=group, position=0
            )
            self._answer(row, question, group=group, position=position)
        return row

    def _two_pictures(self, rng: random.Random) -> Row:
        """Return two turns with a picture each, or one turn with both pictures."""
        scenes = [sample_scene(rng), sample_scene(rng)]
        row = Row(seen=[(scene, photograph(scene, rng)) for scene in scenes])
        position = row.add(
            [*self._start(rng), *self.encode(f"{chat.USER}: "), *self.picture()],
            group=0,
            position=0,
        )
        if rng.random() < 0.5:
            question = rng.choice(questions(scenes[0], rng))
            position = row.add(
                self.encode(f"\n{question.text}\n\n{chat.ASSISTANT}:"), group=0, position=position
            )
            position = self._answer(row, question, group=0, position=position)
            position = row.add(
                [*self.encode(f"{chat.USER}: "), *self.picture()], group=0, position=position
            )
            chosen, opening = 1, "\n"
        else:
            position = row.add([*self.encode("\n"), *self.picture()], group=0, position=position)
            chosen = rng.randrange(2)
            opening = "\n" + rng.choice(
                ("In the {} image: ", "{} image: ", "Look at the {} image. ")
            ).format(("first", "second")[chosen])
        for group, question in enumerate(rng.sample(questions(scenes[chosen], rng), 3), start=1):
            text = f"{opening}{question.text}\n\n{chat.ASSISTANT}:"
            self._answer(
                row,
                question,
                group=group,
                position=row.add(self.encode(text), group=group, position=position),
            )
        return row

    def _small_talk(self, rng: random.Random) -> Row:
        """Return prompts without a picture."""
        row = Row()
        for group in range(1, 5):
            if rng.random() < 0.5:
                text, answer = rng.choice(chat.SMALL_TALK)
                question = Question("talk", text, answer)
            else:
                asked = rng.choice(questions(sample_scene(rng), rng))
                question = Question("talk", asked.text, chat.NO_IMAGE)
            head = [*self._start(rng), *self.encode(chat.user_turn(question.text))]
            self._answer(
                row, question, group=group, position=row.add(head, group=group, position=0)
            )
        return row


def collate(rows: list[Row], *, pad: int) -> Batch:
    """Return the rows padded to the longest."""
    length = max(len(row.ids) for row in rows)

    def padded(lists: list[list[int]], value: int) -> Tensor:
        return torch.tensor([values + [value] * (length - len(values)) for values in lists])

    groups_BT = padded([row.groups for row in rows], -1)
    seen = (groups_BT[:, None, :] == groups_BT[:, :, None]) | (groups_BT[:, None, :] == 0)
    seen &= torch.ones(length, length, dtype=torch.bool).tril()
    seen_pictures = [pair for row in rows for pair in row.seen]
    return Batch(
        ids_BT=padded([row.ids for row in rows], pad),
        labels_BT=padded([row.labels for row in rows], IGNORED),
        positions_BT=padded([row.positions for row in rows], 0),
        mask_B1TT=torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill_(~seen, -1e9)[:, None],
        seen=seen_pictures,
        answers=[(i, *answer) for i, row in enumerate(rows) for answer in row.answers],
        mentions=[(i, *mention) for i, row in enumerate(rows) for mention in row.mentions],
        drawn=[(i, *state) for i, row in enumerate(rows) for state in row.drawn],
        due=[(i, *kinds) for i, row in enumerate(rows) for kinds in row.due],
    )

"""The sentences in which questions are put; a sentence that stands here often is asked often.

Owns nothing but words. Fields in braces are filled in by `language`.
"""

from __future__ import annotations

PICTURES = ("picture", "image", "scene")
NUMBERS = ("zero", "one", "two", "three")

OPENINGS = ("Please tell me:", "Tell me:", "Question:", "Look at the picture.", "Please answer:")
BRIEFLY = (" Answer with one word.", " Answer briefly.", " Answer in one word.")

WHAT = (
    "What is in the {picture}?",
    "What is in this {picture}?",
    "What can you see in the {picture}?",
    "What does the {picture} show?",
    "What do you see?",
    "What do you see in the {picture}?",
    "What is there?",
    "What is this?",
    "What objects are in the {picture}?",
    "Which objects are there?",
    "What is shown in the {picture}?",
    "What is depicted here?",
    "What's in the {picture}?",
    "What shapes do you see?",
    "List the objects in the {picture}.",
    "Which shapes are in the {picture}?",
    "Which figures do you see?",
    "What can you see?",
    "Name everything you see.",
)
COLOR = (
    "What color is {ref}?",
    "What color is {ref}?",
    "What color is {ref}?",
    "What is the color of {ref}?",
    "Which color is {ref}?",
    "Which color does {ref} have?",
    "What color does {ref} have?",
    "Tell me the color of {ref}.",
    "Name the color of {ref}.",
    "What's the color of {ref}?",
    "In what color is {ref} drawn?",
    "Tell me what color {ref} is.",
    "Can you tell me what color {ref} is?",
)
SHAPE = (
    "What shape is {ref}?",
    "What shape is {ref}?",
    "Which shape is {ref}?",
    "What is the shape of {ref}?",
    "What kind of shape is {ref}?",
    "What shape does {ref} have?",
    "Tell me the shape of {ref}.",
    "What's the shape of {ref}?",
    "Which shape does {ref} have?",
    "Name the shape of {ref}.",
)
SHAPE_OF_COLOR = (
    "What shape is {color}?",
    "Which shape is {color}?",
    "What is {color}?",
    "What is the {color} {noun}?",
    "Which {noun} is {color}?",
)
COUNT = (
    "How many {things} are there?",
    "How many {things} are there?",
    "How many {things} are in the {picture}?",
    "How many {things} are there in the {picture}?",
    "How many {things} are in this {picture}?",
    "How many {things} do you see?",
    "Count the {things}.",
    "How many {things} can you see?",
    "What is the number of {things}?",
    "How many {things} does the {picture} show?",
    "How many {things}?",
)
ANYTHING = (
    "Is there anything {color}?",
    "Is anything {color}?",
    "Do you see anything {color}?",
    "Is there something {color}?",
    "Is something {color} in the {picture}?",
)
EXISTENCE = (
    "Is there {thing}?",
    "Is there {thing}?",
    "Is there {thing} in the {picture}?",
    "Do you see {thing}?",
    "Can you see {thing}?",
    "Does the {picture} contain {thing}?",
    "Does the {picture} show {thing}?",
    "Are there any {things}?",
    "Is {thing} in the {picture}?",
    "Are there any {things} in the {picture}?",
    "Is there {thing} in this {picture}?",
    "Is {thing} present?",
    "Is there {thing} anywhere?",
    "Does this {picture} have {thing}?",
)
SIZE = (
    "What size is {ref}?",
    "What size is {ref}?",
    "How big is {ref}?",
    "How large is {ref}?",
    "Is {ref} large or small?",
    "Is {ref} small or large?",
    "Is {ref} big or small?",
    "What is the size of {ref}?",
    "Which size does {ref} have?",
    "What's the size of {ref}?",
    "Tell me the size of {ref}.",
)
PLACE = (
    "Where is {ref}?",
    "Where is {ref}?",
    "Where is {ref}?",
    "Where is {ref} in the {picture}?",
    "Where in the {picture} is {ref}?",
    "In which part of the {picture} is {ref}?",
    "What is the position of {ref}?",
    "Where can I find {ref}?",
    "Where do you see {ref}?",
    "Where is {ref} located?",
    "What is the location of {ref}?",
    "In which place is {ref}?",
)
SIDE_OF_PICTURE = (
    "Is {ref} {on} the {first} or {on} the {second}?",
    "Is {ref} {on} the {first} or the {second}?",
    "Is {ref} {on} the {first} or the {second} of the {picture}?",
)
WHAT_AT = (
    "What is {there}?",
    "What is {there}?",
    "What do you see {there}?",
    "What can be seen {there}?",
    "Which object is {there}?",
)
RELATION = (
    "Where is {a} relative to {b}?",
    "Where is {a} compared to {b}?",
    "Where is {a} with respect to {b}?",
    "Where is {a} in relation to {b}?",
    "Where is {a}, seen from {b}?",
    "What is the position of {a} relative to {b}?",
    "On which side of {b} is {a}?",
    "What is the relation of {a} to {b}?",
    "How is {a} placed relative to {b}?",
)
BACKGROUND = (
    "What color is the background?",
    "What color is the background?",
    "What is the background color?",
    "What is the color of the background?",
    "Which color is the background?",
    "What background color is used?",
    "What is the background of the {picture}?",
    "On what background is it?",
    "What color does the background have?",
    "Which color does the background of the {picture} have?",
    "Tell me the color of the background.",
    "What's the background?",
    "What is the background color of the {picture}?",
    "What background do you see?",
    "What kind of background is there?",
)
DESCRIBE = (
    "Describe the image.",
    "Describe the image.",
    "Describe the {picture}.",
    "Describe this {picture}.",
    "Please describe the {picture}.",
    "Describe the {picture} in one sentence.",
    "Give a description of the {picture}.",
    "Can you describe the {picture}?",
    "Describe what you see in the {picture}.",
    "Describe what you see.",
    "Write a caption for the {picture}.",
    "Describe the {picture} in detail.",
)
ABSENT = (
    "What size is the {thing}?",
    "Where is the {thing}?",
    "How big is the {thing}?",
    "Is the {thing} large or small?",
    "What is the size of the {thing}?",
)
ABSENT_COLOR = (
    "What color is the {thing}?",
    "What is the color of the {thing}?",
    "What color does the {thing} have?",
)

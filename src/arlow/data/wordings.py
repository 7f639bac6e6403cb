"""How questions are worded, by type; {} takes what is asked about. All wordings of a type ask for the same answer."""

from __future__ import annotations

import random


PICTURE = {
    "shape_alone": ["What shape is this?", "What shape is in the picture?", "Which shape do you see?",
                    "Name the shape.", "What is the shape in the image?", "What shape is shown?"],
    "shape": ["What shape is {}?", "What is the shape of {}?", "What kind of shape is {}?",
              "Which shape does {} have?"],
    "colour_alone": ["What colour is the shape?", "What color is it?", "Which colour does the shape have?",
                     "What is the colour of the shape?", "What color is the shape in the picture?",
                     "Name the colour."],
    "colour": ["What colour is {}?", "What color is {}?", "Which colour does {} have?", "What is the colour of {}?",
               "Name the colour of {}."],
    "count": ["How many {} are there?", "How many {} do you see?", "Count the {}.", "How many {} are in the picture?",
              "What is the number of {}?"],
    "larger": ["Which is larger, {} or {}?", "Which is bigger, {} or {}?", "What is larger: {} or {}?",
               "Which one is larger, {} or {}?", "Is {} or {} larger?"],
    "position": ["What is {} {}?", "Which shape is {} {}?", "What do you see {} {}?", "Name the shape {} {}."],
    "side": ["Is {} left of, right of, above or below {}?", "On which side of {1} is {0}?",
             "Where is {}, seen from {}?"],
    "position_yes_no": ["Is {} {} {}?", "Does {} lie {} {}?", "Is it true that {} is {} {}?"],
    "exists": ["Is there {}?", "Do you see {}?", "Is there {} in the picture?", "Can you see {}?",
               "Does the picture show {}?"],
}  # fmt: skip
DIGIT = {
    "digit": ["Which digit is this?", "What digit is shown?", "Which digit do you see?",
              "What number is written here?", "Read the digit.", "What digit is in the picture?"],
    "digit_side": ["Which digit is on the {}?", "What is the {} digit?", "What digit stands on the {}?"],
    "digit_sum": ["What is the sum of the two digits?", "Add the two digits.", "What do the two digits add up to?",
                  "What is the sum of the digits in the picture?"],
    "digit_larger": ["Which digit is larger?", "What is the larger of the two digits?",
                     "Which of the two numbers is larger?", "What is the larger number?"],
}  # fmt: skip
CLIP = {
    "video_direction": ["Which way does {} move?", "In which direction does {} move?", "Where does {} move?",
                        "Which way is {} going?", "In which direction is {} moving?"],
    "video_colour": ["What colour is {} in the video?", "What color is {}?", "Which colour does {} have?",
                     "What is the colour of {} in the clip?"],
    "video_shape": ["What shape is in the video?", "Which shape do you see in the clip?", "What shape is it?"],
    "video_size": ["Does {} grow or shrink?", "Is {} growing or shrinking?", "How does the size of {} change?",
                   "What happens to the size of {}?"],
    "video_changes": ["How many times does {} change colour?", "How often does {} change color?",
                      "How many times does the colour of {} change?", "Count the colour changes."],
    "video_digit": ["Which digit appears last?", "What is the last digit?", "Which digit is shown last?",
                    "What digit comes last in the video?"],
}  # fmt: skip
PAIR = {
    "same_different": ["Are the two pictures the same or different?", "Same or different?",
                       "Do the two images show the same or something different?",
                       "Are these images the same or different?"],
    "what_changed": ["What changed from the first picture to the second: colour, shape, number or position?",
                     "What changed?", "What is different in the second picture?",
                     "What changed between the two pictures?"],
    "in_common": ["What do the picture and the video have in common: colour, shape, both or nothing?",
                  "What do they have in common?", "What do the image and the video share?",
                  "What is the same in the picture and in the clip?"],
}  # fmt: skip
CLUES = {  # asked in training only: what the answers to other questions rest on
    "place": ["Where is {}?", "In which part of the picture is {}?", "Where do you see {}?"],
    "size": ["How large is {}?", "What size is {}?", "How big is {}?"],
    "place_in": ["Where is {} in the {} picture?", "Where do you see {} in the {} image?"],
    "video_start": ["Where is {} at the start?", "Where does {} start?", "Where is {} first?"],
    "video_end": ["Where is {} at the end?", "Where does {} end up?", "Where is {} last?"],
    "video_size_start": ["How large is {} at the start?", "What size is {} first?"],
    "video_size_end": ["How large is {} at the end?", "What size is {} last?"],
    "inventory": ["What is in the {} picture?", "Name the shapes in the {} picture.", "What does the {} image show?"],
    "which_changed": ["Which shape changed?", "Which one is different?", "Name the shape that changed."],
    "which_is_new": ["Which shape is in only one of the pictures?", "Which shape does one picture lack?"],
    "video_colours": ["Which colours does {} show, in order?", "Name all colours of {} in turn."],
    "video_digits": ["Which digits appear, in order?", "Read all digits in turn."],
}  # fmt: skip
LIST = {  # about everything at once, asked in training only
    "facts": ["List every shape by {}.", "Of every shape: {}.", "Name for each shape: {}."],
    "counts": ["How many of each: {}?", "Count these: {}."],
    "places": ["Where is each: {}?", "Find these: {}."],
    "sides": ["Where is each, seen from {}?", "What is on which side of {}?"],
    "grid": ["What is at each of the nine places, row by row?", "Read the nine places, row by row."],
}
SHEET = ["Read row by row.", "What does the sheet show, row by row?", "Name everything, row by row."]
CAPTION = ["Describe {}.", "What is in {}?", "List what {} shows."]
WORDINGS: dict[str, list[str]] = {**PICTURE, **DIGIT, **CLIP, **PAIR, **CLUES}


def ask(rng: random.Random, kind: str, *parts: str) -> str:
    """A question of this kind in one of its wordings."""
    return vary(rng, rng.choice(WORDINGS[kind]).format(*parts))


def vary(rng: random.Random, question: str) -> str:
    """`question` as people type it: mostly as written, sometimes in lower case or without its mark."""
    chance = rng.random()
    if chance < 0.1:
        return question.lower().rstrip("?. =")
    return question.lower() if chance < 0.15 else question


def plain(question: str) -> str:
    """A question without what `vary` changes: its key."""
    return question.lower().rstrip("?.! ")


def article(words: str) -> str:
    """`words` with "a" or "an"."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"

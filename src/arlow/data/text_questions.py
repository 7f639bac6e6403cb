"""Questions without a picture, and what is held out of training: pairs of numbers, words, and whole questions.

What a question is about settles its split by a checksum, so that no split can hold what another holds:

- a sum or a comparison by its two numbers, in whatever order. Sums of two single digits are the table everybody learns
  by heart: always for training, never asked in evaluation.
- spelling by the word. Made-up words outnumber real ones, so that a new word is no surprise.
- days, months, greetings and what Arlow cannot know by the question as a whole: each fact is in training, some ways to
  ask for it are not.

A reversed word is written with a space after each letter ("p m a l"): each letter is then a token of its own, whatever
byte pairs the word itself is made of.
"""

from __future__ import annotations

import functools
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable

from .questions import Turn, yes_no
from .scenes import SEEN_PAIRS
from .wordings import CLIP, DIGIT, PAIR, PICTURE, article, plain, vary


MOST_SUMMAND = 30
MOST_COMPARED = 99
UNKNOWN = "I don't know."

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip
MONTH_DAYS = {"January": 31, "March": 31, "April": 30, "May": 31, "June": 30, "July": 31, "August": 31,
              "September": 30, "October": 31, "November": 30, "December": 31}  # fmt: skip
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
            "twelfth")  # fmt: skip
_ENGLISH = """
arm art ask bag bat bed bell bird boat book box boy bread brick brush bus cake car card cat chair clock cloud coat
coin cold cook corn cow cup dance desk dish dog door dream dress drum duck dust ear east egg eye face farm fast fig
fire fish flag floor flute fog food foot fork fox frog fruit game gate gift girl glass glove goat gold grape grass
hair ham hand hat head heart hen hill home horn horse house ice ink iron jam jar jump key king kite knee knife lake
lamp land leaf leg lemon light lion lip log map mask meat milk moon mouse mouth mud nail neck nest net night north
nose nut oak ocean oil onion oven owl paint pan paper park path pen pet piano pie pig pin plane plant plate pond pot
queen rain rat rice ring river road rock roof room root rope rose salt sand sea seed sheep ship shirt shoe shop silk
sky sleep snow soap sock soup spoon stone storm sugar sun swan table tail tea tent tiger toe tooth tower town toy
train tree truck van vase voice wall water wave week well wheat wheel wind wing wolf wood wool world year zebra
"""
WORDS = tuple(_ENGLISH.split())

WORDINGS_SUM = ("What is {} + {}?", "What is {} plus {}?", "{} + {} = ?", "Add {} and {}.", "How much is {} plus {}?",
                "What is the sum of {} and {}?", "Calculate {} + {}.")  # fmt: skip
WORDINGS_LARGER = ("Which is larger, {} or {}?", "Which number is larger, {} or {}?", "Which is bigger: {} or {}?",
                   "What is the larger of {} and {}?")  # fmt: skip
WORDINGS_SMALLER = ("Which is smaller, {} or {}?", "Which number is smaller, {} or {}?",
                    "What is the smaller of {} and {}?")  # fmt: skip
WORDINGS_IS_LARGER = ("Is {} larger than {}?", "Is {} bigger than {}?", "Is {} more than {}?")
WORDINGS_BACKWARDS = ("Spell {} backwards.", "Spell the word {} backwards.", "Write {} backwards.",
                      "What is {} spelled backwards?", "Reverse the letters of {}.")  # fmt: skip
WORDINGS_SPELLING = ("Spell {}.", "Spell the word {}.", "How do you spell {}?", "What are the letters of {}?")

HELLOS = ("Hello", "Hi", "Hey", "Good morning", "Good evening", "Good afternoon", "Hello there", "Hi there",
          "Hey there", "Greetings", "Good day")  # fmt: skip
THANKS = ("Thanks", "Thank you", "Thanks a lot", "Thank you very much", "Many thanks", "Thank you so much",
          "Thanks so much", "Great, thanks", "Great, thank you", "Thank you for your help")  # fmt: skip
GOODBYES = ("Goodbye", "Bye", "Bye bye", "See you", "See you later", "Good night", "Farewell", "See you soon",
            "See you tomorrow", "Have a nice day")  # fmt: skip
WHO = ("Who are you", "What are you", "What is your name", "What's your name", "Tell me your name", "Who is this",
       "Who am I talking to", "What do I call you", "Please introduce yourself", "Who am I speaking with")  # fmt: skip
TAILS = (", Arlow", ", my friend", ", dear Arlow", ", computer")
REPLIES = {
    HELLOS: "Hello! How can I help you?",
    THANKS: "You are welcome!",
    GOODBYES: "Goodbye!",
    WHO: "I am Arlow, a small vision-language model.",
}

PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ines", "Jonas", "Karla", "Leo", "Maria",
          "Noah", "Olga", "Peter", "Rosa", "Simon", "Tina", "Viktor", "Albert Einstein", "Marie Curie", "Mozart",
          "Shakespeare", "Cleopatra", "Napoleon", "Gandhi", "the president", "the king", "my neighbour", "my sister",
          "my teacher", "the mayor", "the author", "the pilot")  # fmt: skip
PLACES = ("France", "Japan", "Brazil", "Kenya", "Canada", "India", "Peru", "Norway", "Egypt", "Spain", "Italy",
          "China", "Mexico", "Turkey", "Ghana", "Poland", "Chile", "Iran", "Cuba", "Nepal", "Paris", "London",
          "Rome", "Tokyo", "Berlin", "Lima", "Cairo", "Oslo", "Delhi", "Boston", "Sydney", "Vienna", "my town",
          "Mars")  # fmt: skip
THINGS = ("bread", "gold", "a ticket", "a house", "a bicycle", "the train", "coffee", "a new phone", "a book", "rice",
          "petrol", "the bus", "a piano", "the museum", "this song", "the film", "the game", "the internet", "a car",
          "electricity", "the telephone", "the light bulb")  # fmt: skip
WORDINGS_UNKNOWN = {
    PEOPLE: ("How old is {}?", "Where does {} live?", "When was {} born?", "What does {} do?", "Where was {} born?",
             "How tall is {}?", "Who is {}?", "What is {} famous for?", "Is {} married?", "What did {} say yesterday?",
             "What is the telephone number of {}?", "When did {} die?", "What does {} like to eat?"),
    PLACES: ("What is the capital of {}?", "How many people live in {}?", "What is the weather like in {}?",
             "Will it rain in {} tomorrow?", "Who is the president of {}?", "Where is {}?", "How far is {}?",
             "What time is it in {}?", "What happened in {} today?", "What language do people speak in {}?",
             "What is the news from {}?", "Which river flows through {}?", "Who won the election in {}?",
             "What is the best restaurant in {}?"),
    THINGS: ("How much is {}?", "Who invented {}?", "Where can I buy {}?", "How does {} work?", "Who owns {}?",
             "What is the price of {}?", "When was {} made?", "Who made {}?", "Where does {} come from?"),
    ("",): ("Who won the football match?", "What is the meaning of life?", "Who wrote Hamlet?", "What is my name?",
            "Where am I?", "What time is it?", "What is the date today?", "What day is it today?", "How am I?",
            "What did I eat for breakfast?", "What will happen tomorrow?", "How old am I?", "Where are my keys?",
            "What is the speed of light?", "How high is the highest mountain?", "Who painted the Mona Lisa?",
            "What is in the news?", "Which team is the best?", "What is the stock price?", "Who is at the door?"),
}  # fmt: skip


def split_of(key: str) -> str:
    """The split that may hold what `key` stands for: 80 % train, 10 % validation, 10 % test."""
    bucket = zlib.crc32(key.encode()) % 20
    return "test" if bucket < 2 else "validation" if bucket < 4 else "train"


def may_hold(split: str, key: str) -> bool:
    """Whether a question about `key` belongs to `split`; "unseen" asks what "test" asks."""
    return split_of(key) == ("test" if split == "unseen" else split)


def sum_is_in(split: str, first: int, second: int) -> bool:
    """Whether a sum of these two belongs to `split`."""
    if max(first, second) <= 9:
        return split == "train"
    return may_hold(split, f"sum {min(first, second)} {max(first, second)}")


def comparison_is_in(split: str, first: int, second: int) -> bool:
    """Whether a comparison of these two belongs to `split`."""
    return may_hold(split, f"larger {min(first, second)} {max(first, second)}")


def word_is_in(split: str, word: str) -> bool:
    """Whether spelling this word belongs to `split`."""
    return may_hold(split, f"word {word}")


# What is asked


def draw_sum(rng: random.Random, split: str) -> tuple[int, int]:
    """Two summands of `split`."""
    while True:
        first, second = rng.randint(0, MOST_SUMMAND), rng.randint(0, MOST_SUMMAND)
        if sum_is_in(split, first, second):
            return first, second


def draw_comparison(rng: random.Random, split: str) -> tuple[int, int]:
    """Two different numbers of `split`: any, or neighbours, or of the same two digits."""
    while True:
        first = rng.randint(0, rng.choice([20, MOST_COMPARED]))
        near = [first + rng.choice([-1, 1]), first % 10 * 10 + first // 10, rng.randint(0, MOST_COMPARED)]
        second = rng.choice([*near, rng.randint(0, 20)])
        if 0 <= second <= MOST_COMPARED and first != second and comparison_is_in(split, first, second):
            return first, second


def draw_word(rng: random.Random, split: str) -> str:
    """A word of three to six letters that belongs to `split`: one in three is English, the others are made up."""
    while True:
        word = rng.choice(WORDS) if rng.random() < 0.33 else make_word(rng)
        if word_is_in(split, word):
            return word


def make_word(rng: random.Random) -> str:
    """A made-up word of three to five letters that can be spoken."""
    word = ""
    length = rng.randint(3, 5)
    consonant = rng.random() < 0.75
    while len(word) < length:
        word += rng.choice("bcdfghjklmnprstvwz") if consonant else rng.choice("aeiou")
        consonant = not consonant if consonant or rng.random() < 0.8 else consonant
    return word


def sum_turn(rng: random.Random, split: str) -> Turn:
    first, second = draw_sum(rng, split)
    return Turn("text_sum", vary(rng, rng.choice(WORDINGS_SUM).format(first, second)), str(first + second))


def comparison_turn(rng: random.Random, split: str) -> Turn:
    """Which of two numbers is larger, or smaller, or whether one is."""
    first, second = rng.sample(draw_comparison(rng, split), 2)
    wordings = rng.choice([WORDINGS_LARGER, WORDINGS_LARGER, WORDINGS_SMALLER, WORDINGS_IS_LARGER])
    if wordings is WORDINGS_IS_LARGER:
        answer = yes_no(first > second)
    else:
        answer = str((min if wordings is WORDINGS_SMALLER else max)(first, second))
    return Turn("text_comparison", vary(rng, rng.choice(wordings).format(first, second)), answer)


def backwards_turn(rng: random.Random, split: str) -> Turn:
    word = draw_word(rng, split)
    question = vary(rng, rng.choice(WORDINGS_BACKWARDS).format(quoted(rng, word)))
    return Turn("text_backwards", question, " ".join(reversed(word)))


def spelling_turn(rng: random.Random, split: str) -> Turn:
    word = draw_word(rng, split)
    return Turn("text_spelling", vary(rng, rng.choice(WORDINGS_SPELLING).format(quoted(rng, word))), " ".join(word))


def quoted(rng: random.Random, word: str) -> str:
    """`word`, sometimes in quotation marks."""
    return rng.choice(["{}"] * 7 + ['"{}"', "'{}'", '"{}"']).format(word)


@functools.lru_cache(maxsize=1)
def calendar_facts() -> tuple[tuple[str, str], ...]:
    """Every (question, answer) about days and months."""
    facts = []
    for kind, names in (("day", DAYS), ("month", MONTHS)):
        for index, name in enumerate(names):
            after, before = names[(index + 1) % len(names)], names[index - 1]
            facts += [(wording.format(kind, name), after) for wording in (
                "What {} comes after {}?", "Which {} comes after {}?", "Which {} follows {}?",
                "What is the {} after {}?", "Name the {} after {}.", "What {} is next after {}?")]  # fmt: skip
            facts += [(wording.format(kind, name), before) for wording in (
                "What {} comes before {}?", "Which {} comes before {}?", "What is the {} before {}?",
                "Name the {} before {}.", "Which {} is right before {}?")]  # fmt: skip
    for index, month in enumerate(MONTHS):
        facts += [(wording.format(ORDINALS[index]), month) for wording in (
            "What is the {} month of the year?", "Which month is the {} of the year?", "Name the {} month.",
            "Which is the {} month?")]  # fmt: skip
    for month, days in MONTH_DAYS.items():
        facts += [(wording.format(month), str(days)) for wording in (
            "How many days does {} have?", "How many days are in {}?", "How many days are there in {}?",
            "What is the number of days in {}?")]  # fmt: skip
    for what, number in (("days are in a week", 7), ("months are in a year", 12), ("days are in a weekend", 2)):
        noun, rest = what.split(" are ")
        facts += [(wording.format(noun, rest), str(number)) for wording in (
            "How many {} are {}?", "How many {} are there {}?", "What is the number of {} {}?",
            "Count the {} {}.")]  # fmt: skip
    return tuple(facts)


@functools.lru_cache(maxsize=4)
def calendar_of(split: str) -> tuple[tuple[str, str], ...]:
    """The calendar's questions that belong to `split`."""
    return tuple(fact for fact in calendar_facts() if may_hold(split, plain(fact[0])))


def calendar_turn(rng: random.Random, split: str) -> Turn:
    question, answer = rng.choice(calendar_of(split))
    return Turn("text_calendar", vary(rng, question), answer)


def polite_turn(rng: random.Random, split: str) -> Turn:
    """A greeting, thanks, a goodbye, or who are you. The bare words are always in training."""
    wordings, reply = rng.choice([*REPLIES.items()])
    while True:
        words = rng.choice(wordings)
        head, tail = rng.choice(["", "", "Oh, ", "OK, ", "Well, "]), rng.choice(["", *TAILS])
        question = head + (words[0].lower() + words[1:] if head else words) + tail
        bare = not head and not tail
        if split == "train" if bare else may_hold(split, plain(question)):
            mark = "?" if wordings is WHO and not words.startswith(("Tell", "Please")) else rng.choice([".", "!", ""])
            return Turn("text_polite", (question.lower() if rng.random() < 0.15 else question) + mark, reply)


def unknown_turn(rng: random.Random, split: str, *, without_media: bool = True) -> Turn:
    """What Arlow cannot know: people, places, news; and what media show that are not there."""
    while True:
        if without_media and rng.random() < 0.4:
            question = picture_question(rng)
        else:
            names = rng.choice([PEOPLE, PEOPLE, PLACES, PLACES, PLACES, THINGS, THINGS, ("",)])
            question = rng.choice(WORDINGS_UNKNOWN[names]).format(rng.choice(names))
        if may_hold(split, plain(question)):
            return Turn("text_unknown", vary(rng, question), UNKNOWN)


def picture_question(rng: random.Random) -> str:
    """A question about media; asked without any, it has no answer. It names no pair that is held out."""
    (shape, colour), (other, hue) = rng.choice(SEEN_PAIRS), rng.choice(SEEN_PAIRS)
    name = rng.choice([f"the {shape}", f"the {colour} {shape}", "the shape"])
    parts = {
        "shape": [f"the {colour} one"],
        "colour": [name],
        "count": [rng.choice([f"{shape}s", "shapes", "objects", f"{colour} shapes"])],
        "exists": [rng.choice([article(f"{colour} {shape}"), article(shape), f"anything {colour}"])],
        "larger": [f"the {colour} {shape}", f"the {hue} {other}"],
        "position": [rng.choice(["left of", "right of", "above", "below"]), f"the {colour} {shape}"],
        "side": [f"the {shape}", f"the {hue} {other}"],
        "position_yes_no": [f"the {shape}", rng.choice(["left of", "right of", "above", "below"]), f"the {other}"],
        "digit_side": [rng.choice(["left", "right"])],
    }
    kinds = [*PICTURE, *PICTURE, *DIGIT, *CLIP, *PAIR]
    kind = rng.choice(kinds)
    wordings = {**PICTURE, **DIGIT, **CLIP, **PAIR}[kind]
    return rng.choice(wordings).format(*parts.get(kind, [name]))


TEXT_TURNS: dict[str, Callable[..., Turn]] = {
    "text_sum": sum_turn,
    "text_comparison": comparison_turn,
    "text_backwards": backwards_turn,
    "text_spelling": spelling_turn,
    "text_calendar": calendar_turn,
    "text_polite": polite_turn,
    "text_unknown": unknown_turn,
}
TEXT_WEIGHTS = {
    "text_sum": 1.6, "text_comparison": 1.4, "text_backwards": 1.8, "text_spelling": 1.2, "text_calendar": 0.7,
    "text_polite": 0.3, "text_unknown": 0.7,
}  # fmt: skip


def draw_text_turns(rng: random.Random, split: str, count: int) -> list[Turn]:
    """`count` questions without media, none twice. A single one (evaluation) is of any type as often."""
    turns: dict[str, Turn] = {}
    weights = [TEXT_WEIGHTS[kind] if split == "train" else 1.0 for kind in TEXT_TURNS]
    while len(turns) < count:
        turn = TEXT_TURNS[rng.choices([*TEXT_TURNS], weights)[0]](rng, split)
        turns[plain(turn.question)] = turn
    return [*turns.values()]


MOST_DISTINCT = 600  # questions of one type that are drawn without replacement


def evaluation_turn(rng: random.Random, split: str, *, index: int, seed: int) -> Turn:
    """Question `index` of an evaluation split: the types in turn, none asked twice while there are others."""
    kind = [*TEXT_TURNS][index % len(TEXT_TURNS)]
    turns, place = distinct_turns(kind, split, seed), index // len(TEXT_TURNS)
    if place >= len(turns) == MOST_DISTINCT:
        return TEXT_TURNS[kind](rng, split)
    return turns[place % len(turns)]


@functools.lru_cache(maxsize=64)
def distinct_turns(kind: str, split: str, seed: int) -> tuple[Turn, ...]:
    """Up to MOST_DISTINCT different questions of one type: first those about different things, then other wordings."""
    rng = random.Random(f"arlow distinct {kind} {split} {seed}")
    turns: dict[str, Turn] = {}
    missed = 0
    while len(turns) < MOST_DISTINCT and missed < 300:
        turn = TEXT_TURNS[kind](rng, split)
        missed = missed + 1 if plain(turn.question) in turns else 0
        turns.setdefault(plain(turn.question), turn)
    asked: Counter[str] = Counter()
    rounds = {}
    for question, turn in turns.items():
        fact = " ".join(sorted(re.findall(r"\d+", question))) or question
        fact = turn.answer if kind in ("text_backwards", "text_spelling") else fact
        rounds[question] = asked[fact]
        asked[fact] += 1
    return tuple(turns[question] for question in sorted(rounds, key=rounds.__getitem__))

"""The tokens of choices, and the fragments that are none of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from promptmill.answers.choices import Choices
from promptmill.backends.engines.choice_tokens import ChoiceTokens, choice_tokens

LETTERS = [*'abcdefghijklmnopqrstuvwxyz {}":-']


class Words:
    """A tokenizer of letters and some longer texts: it always takes the longest."""

    def __init__(self, *longer: str) -> None:
        self.texts = [*LETTERS, *longer]
        self.numbers = {text.encode(): number for number, text in enumerate(self.texts)}

    def encode(self, text: str) -> list[int]:
        tokens = []
        while text:
            token = max((each for each in self.texts if text.startswith(each)), key=len)
            tokens.append(self.texts.index(token))
            text = text[len(token) :]
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.texts[token] for token in tokens)

    def own(self, *choices: str) -> ChoiceTokens | None:
        return choice_tokens(Choices(choices), self.encode, self.decode)


def written(words: Words, *choices: str) -> list[list[str]]:
    own = words.own(*choices)
    assert own is not None
    return [[words.texts[token] for token in tokens] for tokens in own.sequences.values()]


def test_a_choice_has_the_tokens_of_its_text_after_the_opening():
    words = Words("business", "bus", "no", " idea", '"}')
    assert written(words, "business", "no", "no idea") == [["business", '"}'], ["no", '"}'], ["no", " idea", '"}']]


def test_a_sign_that_joins_the_quote_before_it_is_a_token_of_its_own():
    assert written(Words('"-', '"}'), "-a") == [["-", "a", '"}']]


def test_choices_that_the_tokenizer_changes_have_no_own_tokens():
    words = Words()
    assert choice_tokens(Choices(["A", "b"]), lambda text: words.encode(text.lower()), words.decode) is None


def test_the_possible_choices_are_those_whose_own_tokens_begin_so():
    words = Words("joy", "jo")
    own = words.own("joy", "jolly", "sad")
    assert own is not None
    for text, possible in (("", ["joy", "jolly", "sad"]), ("joy", ["joy"]), ("jo", ["jolly"])):
        assert own.possible(words.encode(text)) == possible
    assert own.possible([words.texts.index("j")]) == [], "no choice is written so"


def fragments(words: Words, *choices: str) -> set[str] | None:
    grammars = pytest.importorskip("promptmill.backends.engines.openvino.grammars")
    own = words.own(*choices)
    assert own is not None
    ruled_out = grammars.fragments(Choices(choices), own, words.numbers)
    return None if ruled_out is None else {words.texts[token] for token in ruled_out}


def test_fragments_are_the_tokens_of_the_texts_that_no_choice_has():
    assert fragments(Words("spam", "ham", '"}'), "spam", "ham") == {*'spamh"}'}
    assert fragments(Words("xs", '"}'), "as", "xs") == {*'x"}'}, "`a` and `s` are the own tokens of `as`"


def test_without_fragments_every_text_that_own_tokens_can_write_goes_on():
    # `a` of `ab` begins `acd` and `ace`, too, which have `ac` at their beginning
    assert fragments(Words("ac", '"}'), "ad", "acd", "ace") == {"c", '"', "}"}
    # `a` of `ad` and `c` of `ca` write `ac`, where `xd` and `xe` would have to follow
    words = Words("acxd", "acxe", '"}')
    assert fragments(words, "ad", "ca", "acxd", "acxe") is None


def test_the_work_for_long_choices_grows_with_their_length():
    words = Words('"}')  # with all parts of the texts, these would be 200 million
    assert fragments(words, "a" * 20_000 + "b", "a" * 20_000 + "c") == {*'"}'}

"""The tokens of choices, and the fragments that are none of them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from promptmill.answers.chances import Chances
from promptmill.answers.choices import Choices
from promptmill.backends.engines.choice_tokens import ChoiceDraw, ChoiceSearch, ChoiceTokens, Tokens, choice_tokens

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


@pytest.mark.thorough
def test_the_work_for_long_choices_grows_with_their_length():
    words = Words('"}')  # with all parts of the texts, these would be 200 million
    assert fragments(words, "a" * 20_000 + "b", "a" * 20_000 + "c") == {*'"}'}


def found(own: ChoiceTokens, known: dict[tuple[int, ...], float], **more: Any) -> tuple[list[str], list[Tokens]]:
    """Return the choice that a search finds, and the places that it looked at. Unknown tokens are certain."""
    search, looks = ChoiceSearch(own, more.pop("drawn", ChoiceDraw()), 1, **more), []
    while search.asked is not None:
        tokens, permitted = search.asked
        looks.append(tokens)
        search.add({token: known.get((*tokens, token), 0.0) for token in permitted})
    return own.possible(search.tokens), looks


SPORTS = ChoiceTokens(
    {"sports": (5, 6, 1), "world": (7, 1), "news of art": (8, 2, 3, 1), "news": (8, 1)}, lambda _, x: x < 4
)


def test_a_word_is_as_likely_as_its_tokens_together():
    assert found(SPORTS, {(5,): -1, (5, 6): -3, (7,): -2, (8,): -9}) == (["world"], [(), (5,)])
    assert found(SPORTS, {(5,): -1, (5, 6): -0.5, (7,): -2, (8,): -9}) == (["sports"], [(), (5,)])
    assert found(SPORTS, {(5,): -5, (7,): -2, (8,): -9}) == (["world"], [()]), "no more than the first tokens"


def test_the_next_word_follows_the_likeliest_one():
    assert found(SPORTS, {(5,): -5, (7,): -9, (8,): -1, (8, 1): -2, (8, 2): -1}) == (["news of art"], [(), (8,)])
    assert found(SPORTS, {(5,): -5, (7,): -9, (8,): -1, (8, 1): -1, (8, 2): -2}) == (["news"], [(), (8,)])


def test_a_search_needs_to_know_only_the_likeliest_token_at_a_place():
    search = ChoiceSearch(SPORTS, ChoiceDraw())
    for asked, told in ((((), [5, 7, 8]), {5: -1.0}), (((5,), [6]), {6: -3.0}), (((), [7, 8]), {7: -2.0})):
        assert search.asked == asked
        search.add(told)
    assert (search.asked, SPORTS.possible(search.tokens)) == (None, ["world"])


def test_tokens_without_an_alternative_are_skipped_unless_they_are_told():
    own = ChoiceTokens({"very good": (5, 2, 6, 1), "very bad": (5, 2, 7, 1)}, lambda _, token: token < 4)
    assert found(own, {(5, 2, 7): -1}) == (["very good"], [(5, 2)])
    assert found(own, {(5, 2, 7): -1}, skips=False) == (["very good"], [(), (5,), (5, 2)])
    assert found(ChoiceTokens({"one": (5, 1)}, lambda _, token: token < 4), {}) == (["one"], [()])


def test_chances_are_those_of_words():
    own = ChoiceTokens({"sports": (5, 6, 1), "spam": (8, 9, 1), "world": (7, 1)}, lambda _, token: token < 4)
    known = {(5,): math.log(0.4), (5, 6): math.log(0.5), (7,): math.log(0.3), (8,): math.log(0.3)}
    chances = Chances()
    assert found(own, known, chances=chances, is_thorough=True)[1] == [(), (5,), (8,)]
    shares = chances.likeliest(3)
    assert shares == pytest.approx({"sports": 0.25, "spam": 0.375, "world": 0.375})


def test_a_drawn_choice_follows_the_probabilities_and_their_limits():
    logprobs = [math.log(share) for share in (0.1, 0.6, 0.3)]
    numbers = random.Random(1)

    def places(**how: Any) -> list[int]:
        return [ChoiceDraw(1.0, **how).place(logprobs, numbers) for _ in range(2000)]

    assert [places().count(at) / 2000 for at in range(3)] == pytest.approx([0.1, 0.6, 0.3], abs=0.04)
    assert {*places(top_p=0.5)} == {*places(top_k=1)} == {*places(min_p=0.6)} == {1}
    assert {*places(top_p=0.7)} == {*places(top_k=2)} == {*places(min_p=0.4)} == {1, 2}
    assert ChoiceDraw().place(logprobs, numbers) == 1


def test_a_search_among_thousands_of_choices_is_short():
    own = ChoiceTokens({str(n): (n // 100, n % 100 + 50, n, 1) for n in range(5000)}, lambda _, token: False)
    (choice,), looks = found(own, {})
    assert (choice, len(looks) < 20) == ("0", True)

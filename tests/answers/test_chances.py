"""The probability of each choice, from the probabilities of tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest

from promptmill.answers.chances import Chances, chances_in, chances_of_fields
from promptmill.answers.choices import Choices
from promptmill.core.bounds import LONGEST_SEARCHED

MOODS = Choices(["positive", "negative", "neutral"])


def added(choices: Choices, *steps: tuple[str, dict[str, float]]) -> Chances:
    """Add steps: the text with the token that was taken, and the probability of each text that could be."""
    chances = Chances()
    for taken, texts in steps:
        first = {taken: texts[taken]} | texts
        chances.step([(choices.possible(text), math.log(share)) for text, share in first.items()])
    return chances


def test_only_tokens_that_lead_to_a_choice_count():
    found = added(MOODS, ("pos", {"pos": 0.3, "p": 0.1, "neg": 0.04, "neu": 0.06, "Yes": 0.5}))
    assert found.likeliest(3) == {"positive": 0.8, "neutral": 0.12, "negative": 0.08}
    assert found.likeliest(1) == {"positive": 0.8}


def test_a_choice_adds_up_over_the_places_where_it_is_decided():
    found = added(MOODS, ("ne", {"ne": 0.6, "neg": 0.1, "pos": 0.3}), ("neu", {"neu": 0.2, "neg": 0.2, "nex": 0.6}))
    assert found.likeliest(3) == {"negative": 0.4, "positive": 0.3, "neutral": 0.3}


def test_what_is_not_decided_counts_for_none_and_the_taken_choice_is_always_there():
    found = added(MOODS, ("neu", {"neu": 0.2, "ne": 0.5, "pos": 0.3}))
    assert found.likeliest(1) == {"positive": 0.3, "neutral": 0.2}


def test_an_answer_without_a_choice_has_no_chances():
    assert added(MOODS, ("ne", {"ne": 0.6, "pos": 0.4})).likeliest(3) is None
    assert added(MOODS, ("Yes", {"Yes": 0.6, "no": 0.4})).likeliest(3) is None
    assert Chances().likeliest(3) is None


def test_a_choice_may_be_the_beginning_of_another_one():
    found = added(Choices(["no", "no idea"]), ("no", {"no": 0.9, "nor": 0.1}), ('no"}', {'no"}': 0.3, "no idea": 0.1}))
    assert found.likeliest(2) == {"no": 0.75, "no idea": 0.25}


def test_improbable_tokens_do_not_vanish():
    found = Chances()
    found.step([(["positive"], -1000.0), (["negative"], -1000.0 + math.log(0.25)), ([], 0.0)])
    assert found.likeliest(2) == {"positive": 0.8, "negative": 0.2}
    found = Chances()
    found.step([(["positive"], 0.0), (["negative"], -1000.0)])
    assert found.likeliest(2) == {"positive": 1.0, "negative": 0.0}


def test_tokens_behind_the_decision_change_nothing():
    decided = "pos", {"pos": 0.6, "neg": 0.4}
    found = added(MOODS, decided, ("positive", {"positive": 0.9, "posit": 0.1}))
    assert found.likeliest(2) == added(MOODS, decided).likeliest(2) == {"positive": 0.6, "negative": 0.4}


def test_an_answer_that_starts_again_forgets_its_tokens():
    found = added(MOODS, ("ne", {"ne": 0.6, "pos": 0.4}), ("neu", {"neu": 0.5, "neg": 0.5}))
    found.clear()
    assert found.likeliest(3) is None
    found.step([(["positive"], math.log(0.75)), (["negative"], math.log(0.25))])
    assert found.likeliest(3) == {"positive": 0.75, "negative": 0.25}


def token(text: str | bytes, share: float = 1.0, **others: float) -> dict[str, Any]:
    data = text.encode() if isinstance(text, str) else text
    own = {"token": data.decode("latin-1"), "logprob": math.log(share), "bytes": list(data)}
    rest = [{"token": other, "logprob": math.log(chance)} for other, chance in others.items()]
    return own | {"top_logprobs": [own, *rest]}


def found_in(choices: Choices, content: list[dict[str, Any]], most: int, answer: str | None = None) -> Any:
    """Return the chances in the tokens of a reply, which are those of its answer, unless that is given."""
    whole = b"".join(bytes(each["bytes"]) for each in content).decode() if answer is None else answer
    return chances_in(choices, whole, {"content": content}, most)


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        ([], ""),
        (['{"', "answer", '":"'], "}"),
        (['{"answer": "'], "}"),
        (["```json\n", '{ "label" : "'], "}\n```"),
        (["\n", "{", '"answer":', ' "'], "}"),
    ],
)
def test_the_tokens_of_an_endpoint_tell_the_same_in_any_form(before, behind):
    content = [token(text, 0.5, x=0.25) for text in before]
    content += [token("ne", 0.5, pos=0.125, No=0.375), token("g", 0.5, u=0.25), token('ative"' + behind, 0.9, x=0.1)]
    assert found_in(MOODS, content, 3) == {"negative": 0.533333, "neutral": 0.266667, "positive": 0.2}


@pytest.mark.parametrize(("spaces", "is_found"), [(LONGEST_SEARCHED - 7, True), (LONGEST_SEARCHED - 6, False)])
def test_an_answer_that_begins_with_endless_space_is_not_searched(spaces, is_found):
    content = [token("{" + " " * spaces), token('"a": "'), token("pos", 0.5, neg=0.5), token('itive"}', 0.9, x=0.1)]
    assert (found_in(MOODS, content, 3) is not None) == is_found


def test_a_character_may_take_several_tokens():
    cities = Choices(["東京", "大阪"])
    first, second = "東京".encode()[:1], "東京".encode()[1:]
    content = [token(first, 0.5, x=0.1), token(second, 0.9, x=0.1)]
    assert found_in(cities, content, 1) == {"東京": 1.0}
    content[0]["top_logprobs"].append({"token": "大阪", "logprob": math.log(0.25)})
    assert found_in(cities, content, 2) == {"東京": 0.666667, "大阪": 0.333333}


def test_a_token_before_a_choice_leads_to_none_and_a_choice_may_begin_with_a_brace():
    content = [token("positive", 0.5, **{"{": 0.25, "neg": 0.25})]
    assert found_in(MOODS, content, 3) == {"positive": 0.666667, "negative": 0.333333}
    content = [token('{"answer": "'), token("{", 0.5, b=0.5), token('a}"}')]
    assert found_in(Choices(["{a}", "b"]), content, 2) == {"{a}": 0.5, "b": 0.5}


def test_choices_that_the_endpoint_does_not_report_have_the_rest():
    colours = Choices(["red", "green", "blue", "grey", "pink", "black", "white", "brown"])
    content = [token("red", 0.2, green=0.16, blue=0.14, Sure=0.1, grey=0.1, pink=0.06)]
    assert found_in(colours, content, 8) == {
        "red": 0.222222,  # of .90, as .10 is no choice
        "green": 0.177778,
        "blue": 0.155556,
        "grey": 0.111111,
        "pink": 0.066667,
    }
    whole = [token("red", 0.2, green=0.16, blue=0.14, grey=0.1, pink=0.06, black=0.05, white=0.04, brown=0.05)]
    assert found_in(colours, whole, 1) == {"red": 0.25}  # the unreported .2 is no choice
    silent = [token("red", 1e-300, green=1e-300)]
    assert found_in(colours, silent, 1) == {"red": 0.0}


LETTERS = Choices(["A", "B", "C"])
_WANTED = {"B": 0.6, "A": 0.3, "C": 0.1}
_LAST = token("B", 0.6, A=0.3, C=0.1)


@pytest.mark.parametrize(
    "content",
    [
        [token("<think>"), token("A", 0.9, B=0.1), token("</think>"), _LAST],
        [token("A", 0.9, I=0.1), token(" or B?"), token("</think>"), _LAST],
        [token("B", 0.9, A=0.1), token("\n\n"), _LAST],
        [token("B, no, A!"), token("</think>\n\nB", 0.6, **{"</think>\n\nA": 0.3, "</think>\n\nC": 0.1})],
        [_LAST, token("<|im_end|>", 0.9, x=0.1)],
        [_LAST, token("</s>"), token("\n")],
        [token('{"answer": "A"}'), token("\n"), token('{"answer": "'), _LAST, token('"}')],
        [{"token": "A or B?", "logprob": 0.0}, {"token": "</think>", "logprob": 0.0}, _LAST],
        [_LAST, token("\n" * 300)],
    ],
)
def test_only_tokens_of_the_answer_count(content):
    answer = '{"answer": "B"}' if content[-1]["token"] == '"}' else "B"
    assert found_in(LETTERS, content, 3, answer) == _WANTED


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ([token("C", 0.8, B=0.2)], "B"),
        ([token("A", 0.9, B=0.1), token("</think>")], "B"),
        ([_LAST, token(" is right.")], "B"),
        ([token("B", 0.6, A=0.4), token("A", 0.6, C=0.4)], "B"),
        ([token("C", 0.6, A=0.4), token("B", 0.6, C=0.4)], "B"),
        ([token("CB", 0.6, A=0.4)], "B"),
        ([token("?A"), token("B", 0.6, A=0.4)], "B"),
        ([token('{"x": "'), token("A", 0.6, B=0.4), token('", "answer": "B"}')], '{"x": "A", "answer": "B"}'),
        ([token("\u2581B", 0.6, A=0.4)], "B"),
        ([_LAST], ""),
        ([_LAST], "none of them"),
    ],
)
def test_tokens_of_another_text_are_no_probabilities_of_the_answer(content, answer):
    assert found_in(LETTERS, content, 3, answer) is None


def test_tokens_of_a_word_that_ends_with_a_choice_are_no_probabilities_of_the_choice():
    assert found_in(MOODS, [token("Xpositive", 0.6, Xnegative=0.4)], 3, "positive") is None


def test_white_space_around_an_answer_does_not_count():
    assert found_in(LETTERS, [_LAST], 3, " B\n") == _WANTED


def spaced(text: str, share: float, **others: float) -> dict[str, Any]:
    """Return a token whose alternatives lack its blank."""
    found = token(text, share, **others)
    found["top_logprobs"][0] = {"token": text.lstrip(), "logprob": found["logprob"] - 0.001}
    return found


def test_alternatives_without_the_blank_of_the_token_are_alternatives():
    assert found_in(LETTERS, [spaced(" B", 0.6, A=0.3, C=0.1)], 3) == _WANTED
    deals = Choices(["very good", "very bad", "poor"])
    content = [token("very", 0.8, poor=0.2), spaced(" good", 0.75, bad=0.25)]
    assert found_in(deals, content, 3) == {"very good": 0.6, "poor": 0.2, "very bad": 0.2}
    content = [token("very", 0.8, poor=0.2), token(" good", 0.75, **{" bad": 0.25})]
    assert found_in(deals, content, 3) == {"very good": 0.6, "poor": 0.2, "very bad": 0.2}


def listed(text: str, share: float, **others: float) -> dict[str, Any]:
    """Return a token that is not among its alternatives."""
    found = token(text, share, **others)
    del found["top_logprobs"][0]
    return found


@pytest.mark.parametrize(
    ("last", "chances"),
    [
        (token(" B", 0.6, B=0.2, A=0.2), {"B": 0.8, "A": 0.2}),
        (token(" B", 0.3, B=0.3, A=0.4), {"B": 0.6, "A": 0.4}),
        (listed(" B", 0.6, B=0.3, A=0.1), {"B": 0.9, "A": 0.1}),
        (listed(" B", 0.4, A=0.4, C=0.2), {"B": 0.4, "A": 0.4, "C": 0.2}),
    ],
)
def test_a_token_with_and_one_without_a_blank_are_two(last, chances):
    assert found_in(LETTERS, [last], 3) == chances


def test_the_same_token_with_a_blank_among_the_alternatives_counts_once():
    assert found_in(LETTERS, [listed("B", 0.6, **{" B": 0.6, "A": 0.4})], 3) == {"B": 0.6, "A": 0.4}


@pytest.mark.parametrize(
    ("last", "chances"),
    [
        (token(" good", 0.75, bad=0.25), {"very good": 0.8, "poor": 0.2}),
        (listed(" good", 0.75, bad=0.25), {"very good": 0.8, "poor": 0.2}),
        (listed(" good", 0.75, good=0.75, **{" bad": 0.25}), {"very good": 0.6, "poor": 0.2, "very bad": 0.2}),
    ],
)
def test_a_blank_is_added_to_no_alternative_where_one_has_its_own(last, chances):
    deals = Choices(["very good", "very bad", "poor"])
    assert found_in(deals, [token("very", 0.8, poor=0.2), last], 3) == chances


def test_an_alternative_that_is_listed_twice_counts_once():
    content = [token("B", 0.6, A=0.3, C=0.1)]
    content[0]["top_logprobs"] += content[0]["top_logprobs"]
    assert found_in(LETTERS, content, 3) == _WANTED


@pytest.mark.parametrize(
    "logprobs",
    [
        {},
        {"content": None},
        {"content": []},
        {"content": [{"token": "pos", "logprob": -0.1}]},
        {"content": [{"token": "pos", "logprob": -0.1, "top_logprobs": []}]},
        {"content": [{"token": "pos", "logprob": "x", "top_logprobs": [{"token": "neg", "logprob": 0}]}]},
        {"content": [{"token": "pos", "logprob": -0.1, "top_logprobs": 5}]},
        {"content": ["pos"]},
        {"content": 5},
        {"content": [token("I cannot say", 0.5, positive=0.25)]},
    ],
)
def test_log_probabilities_that_do_not_tell_it_are_not_used(logprobs):
    assert chances_in(MOODS, "positive", logprobs, 3) is None
    assert chances_in(MOODS, "pos", logprobs, 3) is None


def _told(*tokens: tuple[str, float]) -> dict[str, Any]:
    return {"content": [{"token": text, "logprob": math.log(share)} for text, share in tokens]}


FIELDS = _told(("{", 0.5), ('"team"', 0.5), (': "', 0.9), ("bill", 0.5), ("ing", 0.5), ('",', 0.8), ('"ok"', 0.1))
FIELDS["content"] += _told((":", 0.1), ("true", 0.25), (',"n":', 0.1), ("1", 0.5), ("2", 0.5), ("}", 0.1))["content"]


@pytest.mark.parametrize(
    ("answer", "tokens", "found"),
    [
        (
            '{"team": "billing","ok":true,"n":12}',
            FIELDS,
            {"team": {"billing": 0.18}, "ok": {"true": 0.25}, "n": {"12": 0.25}},
        ),
        ('{"a":"é"}', _told(('{"a":', 0.5), ('"é"', 0.75), ("}", 0.5)), {"a": {"é": 0.75}}),
        (
            '{"é":[1,{"b":2}]}',
            _told(("<think>", 0.1), ('\n {"é":', 0.5), ("[1,{", 0.75), ('"b":2}]}', 0.5)),
            {"é": {'[1,{"b":2}]': 0.375}},
        ),
        ('{"a":null}', _told(('{"a"', 0.5), (":null", 0.75), ("}", 0.5)), {"a": {"": 0.75}}),
        ('{"a":null}', _told(('{"a":', 0.5), ("null", 0.5), ("}", 0.5), ("<|im_end|>", 0.5)), {"a": {"": 0.5}}),
        ('\n{"a":1} ', _told(('\n{"a":', 0.5), ("1", 0.75), ("} ", 0.5)), {"a": {"1": 0.75}}),
        ('{"a":1}', {"content": [{"token": '{"a":1}', "logprob": 0.25}]}, {"a": {"1": 1.0}}),
        ("{}", _told(("{}", 0.5)), None),
        ('[{"a":1}]', _told(('[{"a":1}]', 0.5)), None),
        ('["a"]', _told(('["a"]', 0.5)), None),
        ('{"a" 1}', _told(('{"a" 1}', 0.5)), None),
        ('{"a":1', _told(('{"a":1', 0.5)), None),
        ('{"a":1}', _told(('{"a":2}', 0.5)), None),
        ('{"a":1}', {"content": [{"token": '{"a":1}'}]}, None),
        ('{"a":1}', {}, None),
        ('{"a":' + 100_000 * "[", {"content": [{"token": '{"a":' + 100_000 * "[", "logprob": 0}]}, None),
    ],
)
def test_a_field_is_as_likely_as_all_tokens_that_have_a_part_of_its_value(answer, tokens, found):
    assert chances_of_fields(answer, tokens, answer) == found


def test_only_values_of_the_final_answer_have_a_probability():
    reply, tokens = '{"a":"x","b":1,"c":2}', _told(('{"a":', 0.1), ('"x"', 0.75), (',"b":1', 0.5), (',"c":2}', 0.5))
    assert chances_of_fields(reply, tokens, ' {"a":"x","b":3}') == {"a": {"x": 0.75}}
    assert chances_of_fields(reply, tokens, "x") is None


@pytest.mark.parametrize(
    ("reply", "names"),
    [
        ('{"a": [{"b": 1}, {"b": [{"c": 2}]}], "d": 3}', ["a", "a[0].b", "a[1].b", "d"]),
        ('{"a": [[1], [2]], "d": 3}', ["a", "d"]),
        ('{"a": [{"b": 1}, 2], "d": []}', ["a", "d"]),
        ('{"a": [{}, {"é": "ü"}]}', ["a", "a[1].é"]),
    ],
)
def test_objects_in_a_list_have_fields_of_their_own(reply, names):
    found = chances_of_fields(reply, {"content": [{"token": reply, "logprob": 0.0}]}, reply)
    assert found is not None
    assert [*found] == names

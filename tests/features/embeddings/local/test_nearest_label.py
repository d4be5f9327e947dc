"""Labels by distance, with the encoder e5."""

from __future__ import annotations

import pytest

from promptmill.core.form import Choice, Form, Question, YesNo
from promptmill.core.request import Sampling
from promptmill.features.embeddings.local.nearest_label import Comparisons

NEWS = {
    "World": "politics, governments, wars and events in the countries of the world",
    "Sports": "games, teams, players and competitions",
    "Business": "companies, markets, economy and money",
    "Sci/Tech": "science, computers, software, the internet and technology",
}


def labels(encoder, form, texts):
    """The label of each text, and its probability."""
    comparisons = Comparisons(form, Sampling())
    comparisons.vectors = encoder.encode(comparisons.texts)
    answers = [comparisons.answer(vector, encoder.temperature) for vector in encoder.encode(texts)]
    return [(answer.text, answer.probabilities[""][answer.text]) for answer in answers]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("The prime minister met rebel leaders to discuss a ceasefire", "World"),
        ("The striker scored twice in the second half of the final", "Sports"),
        ("Shares fell after the bank reported a loss for the quarter", "Business"),
        ("A security hole was found in the web browser", "Sci/Tech"),
    ],
)
def test_news_have_their_topic(e5, text, label):
    form = Form((Question("", "", Choice(tuple(NEWS), tuple(NEWS.values()))),))
    ((found, probability),) = labels(e5, form, [text])
    assert found == label
    assert 0.4 < probability < 1


def test_reviews_in_several_languages_have_their_sentiment(e5):
    form = Form((Question("", "", Choice(("positive", "negative"))),))
    texts = ["Great food, and friendly people.", "Nie wieder. Kalte Suppe.", "很快 好吃 味道足 量大"]
    assert [label for label, _ in labels(e5, form, texts)] == ["positive", "negative", "positive"]


@pytest.mark.thorough
def test_a_thousand_labels_of_any_length_are_compared(e5):
    options = (*(f"label {number}" for number in range(998)), "a" * 5000, "soup and salad")
    form = Form((Question("", "", Choice(options)),))
    ((found, _),) = labels(e5, form, ["The soup and the salad were good"])
    assert found == "soup and salad"


def test_a_yes_or_no_is_compared_by_what_both_mean():
    kind = YesNo(definition="money back", opposite="a question")
    form = Form((Question("1", "Refund?", kind, is_named=False),))
    assert Comparisons(form, Sampling()).texts == ["money back", "a question"]

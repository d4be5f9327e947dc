"""TypeSafe's client and LangChain's classes at a server's URL: each kind of question; prints what they met."""

import json
import sys

from langchain_openai.decisions import Choice, OpenAIDecisions, Predicate, Score
from langchain_typesafe import TypeSafeClassifier
from langchain_typesafe import types as of_typesafe
from typesafe_sdk import Choice as TypeSafeChoice
from typesafe_sdk import Noul, TypeSafeClient, TypeSafeUnprocessableEntityError
from typesafe_sdk import Score as TypeSafeScore

URL, TOKEN = sys.argv[1:]
OPTIONS = {"base_url": URL.removesuffix("/v1"), "api_key": TOKEN}
STATE = {"mail": "My card was charged twice. " * 100}  # long enough to be compressed
TEAMS = {"billing": "money", "tech": None, "sales": None}
LEVELS = ["can wait", "today"]
found = {}

with TypeSafeClient(**OPTIONS) as client:
    questions = {
        "twice": Noul(instructions="Charged twice?"),
        "team": TypeSafeChoice(instructions="Which team?", criteria=TEAMS),
        "urgent": TypeSafeScore(instructions="How urgent?", criteria=LEVELS),
    }
    reply = client.system_one(state=STATE, questions=questions)
    found["sdk"] = [reply.nouls["twice"].noul, reply.choices["team"].choice, reply.scores["urgent"].score]
    found["models"] = [model.name for model in client.models.list().models]
    try:
        client.system_one(state=STATE, questions={"team": TypeSafeChoice(instructions="?", criteria={"a": None})})
    except TypeSafeUnprocessableEntityError as error:
        found["invalid"] = "questions.team" in str(error)

asked = {
    "twice": Predicate(instructions="Charged twice?"),
    "team": Choice(instructions="Which team?", choices={"billing": "money", "tech": "bugs", "sales": "contracts"}),
    "urgent": Score(instructions="How urgent?", levels=LEVELS),
}
reply = OpenAIDecisions(model="default", base_url=URL, api_key=TOKEN).invoke({"input": STATE, "questions": asked})
answers = reply.predicates["twice"].probability, reply.choices["team"].choice, reply.scores["urgent"].score
found["langchain_openai"] = [*answers]

classifier = TypeSafeClassifier(**OPTIONS)
asked = {
    "twice": of_typesafe.Noul(instructions="Charged twice?"),
    "team": of_typesafe.Choice(instructions="Which team?", criteria=TEAMS),
}
reply = classifier.invoke({"state": STATE, "questions": asked})
found["langchain_typesafe"] = [reply.nouls["twice"].noul, reply.choices["team"].choice]
print(json.dumps(found))

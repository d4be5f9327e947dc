"""Token masks: while an answer is written, only tokens that can still lead to JSON of the wanted schema."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from promptmill.answers.reasoning import closes_reasoning
from promptmill.answers.schema import schema_of
from promptmill.backends.engines.load_errors import first_line
from promptmill.core.errors import Code, PromptmillError
from promptmill.system.installation import adding

_MOST_GRAMMARS = 64
_TAIL = 12  # tokens in which the end of a reasoning block is looked for
# Small models write white space without end where a grammar lets them.
_OVERRIDES = {"whitespace_pattern": r"[ ]?"}


class AnswerMasks:
    """Makes the masks of one model's answers. `ends` are the tokens that end an answer."""

    def __init__(self, tokenizer: Any, ends: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._ends = sorted(ends)
        self._vocabulary: Any = None
        self._grammars: OrderedDict[str, str] = OrderedDict()

    def of(self, wanted: Mapping[str, Any] | None, *, thinks: bool) -> AnswerMask | None:
        """Return the mask of an answer in the `response_format` `wanted`, None where it asks for no JSON.

        `thinks`: the answer begins inside its reasoning, and JSON behind it. Raises `PromptmillError` (`unsupported`,
        `missing_dependency`) for what cannot be held to.
        """
        schema = schema_of(wanted)
        if schema is None:
            return None
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise PromptmillError(
                Code.MISSING_DEPENDENCY,
                "Answers of a schema need the package llguidance.",
                adding("hf"),
            ) from None
        if self._vocabulary is None:
            self._vocabulary = _vocabulary(self._tokenizer, self._ends)
        grammar = self._grammar(schema, LLMatcher)
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        return AnswerMask(matcher, self._vocabulary.vocab_size, self._ends, self._tokenizer, waits=thinks)

    def _grammar(self, schema: Mapping[str, Any], matcher: Any) -> str:
        """Return the grammar of `schema`, compiled once. Raises `PromptmillError` (`unsupported`)."""
        content = json.dumps(schema, sort_keys=True)
        if (known := self._grammars.get(content)) is not None:
            self._grammars.move_to_end(content)
            return known
        grammar: str = matcher.grammar_from_json_schema(json.dumps(schema), overrides=_OVERRIDES)
        if problem := matcher.validate_grammar(grammar, self._vocabulary):
            raise _not_held(problem)
        if len(self._grammars) >= _MOST_GRAMMARS:
            self._grammars.popitem(last=False)
        self._grammars[content] = grammar
        return grammar


def _vocabulary(tokenizer: Any, ends: list[int]) -> Any:
    """Return llguidance's view of a tokenizer. Raises `PromptmillError` (`unsupported`)."""
    from llguidance import LLTokenizer

    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    try:
        return LLTokenizer(backend.to_str(), n_vocab=len(tokenizer), eos_token=ends[0] if ends else None)
    except Exception as error:  # noqa: BLE001 (of native code, for vocabularies it cannot read)
        raise PromptmillError(
            Code.UNSUPPORTED,
            f"The hf backend cannot hold this model's answers to a schema: {first_line(error)}.",
            "Choose another model or backend.",
        ) from None


def _not_held(problem: str) -> PromptmillError:
    return PromptmillError(
        Code.UNSUPPORTED,
        f"The hf backend cannot hold answers to this schema: {first_line(problem)}.",
        "Simplify the schema, or choose another backend.",
    )


class AnswerMask:
    """The mask of one answer, which follows it token by token."""

    def __init__(self, matcher: Any, known: int, ends: list[int], tokenizer: Any, *, waits: bool) -> None:
        """`known` is the number of tokens that the matcher knows."""
        self._matcher = matcher
        self._known = known
        self._ends = ends
        self._tokenizer = tokenizer
        self._waits = waits
        self._followed = 0
        self._bits: Any = None

    def apply(self, scores: Any, tokens: list[int]) -> None:
        """Rule out of `scores`, `(vocabulary,)`, in place, what cannot follow `tokens`, the answer so far."""
        if self._waits and not self._begins(tokens):
            return
        for token in tokens[self._followed :]:
            if not self._matcher.consume_token(token):  # beyond llguidance's limits: a token would take seconds
                raise _not_held(self._matcher.get_error())
        self._followed = len(tokens)
        ruled_out = self._ruled_out(len(scores))
        if scores.device.type == "cpu":  # numpy: torch would ask its threads to help, which takes longer
            np.copyto(scores.numpy(), -np.inf, where=ruled_out)
        else:
            scores.masked_fill_(torch.from_numpy(ruled_out).to(scores.device), float("-inf"))

    def _ruled_out(self, size: int) -> Any:
        """Return which tokens of a vocabulary of `size` cannot come next."""
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        if self._bits is None:
            self._bits = allocate_token_bitmask(1, self._known)
        fill_next_token_bitmask(self._matcher, self._bits, 0)
        if self._matcher.is_error():
            raise _not_held(self._matcher.get_error())
        ruled_out: Any = np.ones(size, dtype=bool)  # a model may score more tokens than its tokenizer knows, and fewer
        known = min(size, self._known)
        ruled_out[:known] = np.unpackbits(self._bits[0].view(np.uint8), count=known, bitorder="little") == 0
        if self._ends and not ruled_out[self._ends[0]]:
            ruled_out[self._ends] = False
        return ruled_out

    def _begins(self, tokens: list[int]) -> bool:
        """Return whether the reasoning has ended with the last token; the grammar begins behind it."""
        if not closes_reasoning(self._tokenizer.decode(tokens[-_TAIL:], skip_special_tokens=False)):
            return False
        self._waits, self._followed = False, len(tokens)
        return True

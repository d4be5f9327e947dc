"""Variables of the environment that are misspelled, and levels that there are none of."""

from __future__ import annotations

import pytest

from promptmill.config import environment
from promptmill.core.errors import PromptmillError


def test_a_variable_that_is_nearly_ours_is_told():
    told = environment.misspelled({"PROMPTMIL_CONFIG": "secret", "PROMPTMILL_CONFIGS": "", "PATH": ""})
    assert len(told) == 2
    assert all("did you mean PROMPTMILL_CONFIG?" in note for note in told)
    assert "secret" not in "".join(told)


def test_ours_and_those_of_the_users_files_are_not():
    fine = ("PROMPTMILL_CONFIG", "PROMPTMILL_LOG_LEVEL", "PROMPTMILL_PROVIDER", "PROMPTMILL_TEAM", "PROMPTS")
    assert environment.misspelled(dict.fromkeys(fine, "x")) == []


def test_an_unknown_level_is_refused_with_those_there_are():
    with pytest.raises(PromptmillError, match="PROMPTMILL_LOG_LEVEL: 'verbose' is not a log level; write debug, info"):
        environment.check_log_level({"PROMPTMILL_LOG_LEVEL": "verbose"})
    environment.check_log_level({"PROMPTMILL_LOG_LEVEL": "DEBUG"})
    environment.check_log_level({})

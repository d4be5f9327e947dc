"""Whatever people do wrong is told in words; scripts/mistakes.py prints them for a reader to judge."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# An input without rows is what the file says, and the job's end tells it.
FINE = {"an empty input"}


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_fifty_mistakes_are_told_in_words_with_an_exit_code_and_without_a_traceback():
    told = runpy.run_path(str(ROOT / "scripts" / "mistakes.py"))["all_told"]()
    assert len(told) >= 50
    for one in told:
        about = (one.mistake.about, one.mistake.command, one.text)
        assert "Traceback" not in one.text, about
        assert one.code in ({0} if one.mistake.about in FINE else {1, 2}), about
        assert len(one.text.split()) > 4, about
        assert not re.search(r"pydantic|validation error|Input should|<class", one.text), about

"""Values in a body are counted as they come, wherever it is cut."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promptmill.http.app import _ValueCount

TEXTS = st.text(alphabet='a\\"[]{},:\u00e9', max_size=8)
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(TEXTS, inner, max_size=5)),
)


def _separators(value):
    match value:
        case list():
            return max(1, len(value)) + sum(map(_separators, value))
        case dict():
            return max(1, 2 * len(value)) + sum(map(_separators, value.values()))
    return 0


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=VALUES, size=st.integers(1, 9))
def test_what_stands_in_texts_does_not_count(value, size):
    body = json.dumps(value, ensure_ascii=False).encode()
    count = _ValueCount()
    for at in range(0, len(body), size):
        count.add(body[at : at + size])
    assert count.found == _separators(value)

"""Writing systems that do not separate words by spaces, as sets of characters for patterns."""

from __future__ import annotations

import re

HAN_AND_KANA = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
WITH_MARKS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Thai, Lao, Burmese, Khmer."""
UNSPACED = re.compile(rf"[{WITH_MARKS}\u1100-\u11ff\u3130-\u318f\uac00-\ud7af{HAN_AND_KANA}]")
"""A letter of a script that does not separate words by spaces, or that attaches endings to words, as in Korean."""

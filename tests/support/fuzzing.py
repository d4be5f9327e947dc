"""What the fuzz tests share: one seed a run, printed, and what must never be said."""

import os
import random
import re

CASES = int(os.environ.get("PROMPTMILL_FUZZ_CASES", "10000"))
SEED = int(os.environ.get("PROMPTMILL_FUZZ_SEED") or random.SystemRandom().randrange(2**32))
TRACE = re.compile(r"Traceback|File \"[^\"]+\.py\"|line \d+, in |RecursionError|site-packages")

"""The protocol's official conformance suite, as far as it concerns promptmill, gives the results that are expected."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.clients
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("npm") is None, reason="the suite comes from npm")
@pytest.mark.timeout(900)
def test_the_conformance_suite_finds_what_is_expected():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "conformance.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

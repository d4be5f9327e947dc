"""Parameters that features add: each that would have no effect is named, with the feature, and hides no other one."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from promptmill.core import parameter
from promptmill.core.errors import PromptmillError
from promptmill.core.feature import Feature
from promptmill.core.parameter import Added, Parameters
from promptmill.options.option import Argument, Option
from waiting import PATIENCE_S

WITHIN = Argument(within="sampling_params")


class Own(Parameters):
    shout: bool | None = None


class OfTheCore(Parameters):
    temperature: float | None = None


class WithDefault(Parameters):
    loudness: int = 3


class Required(Parameters):
    loudness: int | None


class Foreign:
    pass


NO_KEY = (Option("shout", bool, "", argument=WITHIN),)
OTHER_KEY = (Option("shout", bool, "", argument=WITHIN, keys=["sampling_params.shuot"]),)
OUTSIDE = (Option("shout", bool, "", keys=["sampling_params.shout"]),)
NO_ARGUMENT = (Option("shout", bool, "", argument=None, keys=["sampling_params.shout"]),)
RIGHT = (Option("shout", bool, "", argument=WITHIN, keys=["sampling_params.shout"]), Option("other", bool, ""))


def _feature(sampling: str, options: str = "") -> Feature:
    return Feature(words="", sampling=f"{__name__}:{sampling}", options=options and f"{__name__}:{options}")


@pytest.fixture
def added(monkeypatch) -> Any:
    """Return the parameters that these features add to `temperature`."""

    def of(**known: Feature) -> Added:
        monkeypatch.setattr(parameter, "features", lambda: known)
        return Added.to(["temperature"])

    return of


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("OfTheCore", "The sampling parameter temperature of acme is already one of promptmill; rename it"),
        ("Own", "The sampling parameter shout of acme is already one of loud; rename it"),
        ("WithDefault", "The sampling parameter loudness of acme needs the default None"),
        ("Required", "The sampling parameter loudness of acme needs the default None"),
        ("Foreign", "Foreign is no subclass of `promptmill.core.parameter.Parameters`; make it one"),
    ],
)
def test_a_parameter_that_a_feature_cannot_add_is_named_and_the_others_are_added(added, wrong, words):
    found = added(loud=_feature("Own"), acme=_feature(wrong))
    assert found.classes == (Own,)
    with pytest.raises(PromptmillError, match=f"{words}.*PROMPTMILL_WITHOUT=acme hides the feature acme"):
        found.check()


def test_a_module_that_needs_the_class_it_extends_is_named(added):
    found = added(loud=_feature("Own"), acme=_feature("NoSuch"))
    assert found.classes == (Own,)
    with pytest.raises(PromptmillError, match=r"NoSuch, a part.*does not import promptmill\.core\.request"):
        found.check()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("NO_KEY", r'add `keys=\["sampling_params.shout"\]` to it'),
        ("OTHER_KEY", r'add `keys=\["sampling_params.shout"\]` to it'),
    ],
)
def test_an_option_that_does_not_set_the_parameter_of_its_name_is_named(added, options, words):
    with pytest.raises(PromptmillError, match=f"The option shout of acme does not set its sampling .*{words}"):
        added(acme=_feature("Own", options)).check()


@pytest.mark.parametrize("options", ["RIGHT", "NO_ARGUMENT", "OUTSIDE", ""])
def test_an_option_that_sets_the_parameter_of_its_name_passes(added, options):
    added(acme=_feature("Own", options)).check()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shout", "error: The option shout of acme does not set its sampling parameter shout; add"),
        pytest.param(
            "limit", "error: The option limit of acme is already one of promptmill", marks=pytest.mark.thorough
        ),
    ],
)
def test_the_command_line_reports_the_mistake_of_a_package_in_a_line(tmp_path, name, words):
    about = tmp_path / "acme-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[promptmill.features]\nacme = acme:FEATURE\n")
    (tmp_path / "acme.py").write_text(
        "from promptmill.core.feature import Feature\nfrom promptmill.core.parameter import Parameters\n"
        f"from promptmill.options.option import Option\nOPTIONS = (Option({name!r}, bool, ''),)\n"
        "class Own(Parameters):\n    shout: bool | None = None\n"
        "FEATURE = Feature(words='', options='acme:OPTIONS', sampling='acme:Own')\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    for command in ("features", "models"):
        done = subprocess.run(
            [sys.executable, "-m", "promptmill", command],
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith(words)

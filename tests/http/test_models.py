"""Models by name over HTTP: a client chooses among what the operator offers."""

from __future__ import annotations

from typing import Any

import pytest

from served import Served
from server_process import written

pytestmark = pytest.mark.http


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
def test_a_client_names_a_model_and_samples_within_the_operator_s_limits(upstream, tmp_path):
    def model(name):
        return {"openai": {"base_url": upstream.url, "model_name": name}, "sampling_params": {"max_tokens": 7}}

    top = {
        "models": {"fast": model("small"), "dear": model("large")},
        "client_limits": {"models": ["fast"], "max_tokens": 50},
    }
    with Served(written(tmp_path, upstream.url, top)) as server:
        session = server.session()
        asked: dict[str, Any] = {"prompt_ls": ["a"], "sampling_params": {"temperature": 0, "logprobs": True}}
        assert session.call("generate", model="fast", **asked)["structuredContent"] == {"ans_ls": ["echo: a"]}
        body = upstream.seen[-1].json
        assert (body["model"], body["max_tokens"], body["temperature"], body["logprobs"]) == ("small", 7, 0, True)
        for model_name, sampling, said in (
            ("dear", {}, "there is no model 'dear'; models here: default, fast"),
            ("fast", {"max_tokens": 51}, "at most 50"),
        ):
            result = session.call("generate", prompt_ls=["a"], model=model_name, sampling_params=sampling)
            assert result["isError"]
            assert said in result["content"][0]["text"]
        assert len(upstream.seen) == 1
        listed = session.request("resources/read", uri="promptmill://models")
        assert "large" not in str(listed)

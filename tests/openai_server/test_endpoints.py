"""Requests to the service, without HTTP."""

import pytest

from fakes import FakeBackend, openai_configuration
from promptmill.backends.protocol import Completion
from promptmill.openai_server.api_errors import ApiError
from promptmill.openai_server.bodies import CHAT
from promptmill.openai_server.endpoints import Endpoints
from promptmill.service.service import Service

WARNING = "The hf backend cannot take seed with this model; it was left out."


class _Forgetful(FakeBackend):
    async def answer(self, request, call):
        call.warn(WARNING)
        return Completion("yes", "stop")


async def test_a_parameter_that_the_backend_leaves_out_is_refused_only_if_the_client_named_it():
    async def create(_):
        return _Forgetful()

    service = Service(openai_configuration("http://127.0.0.1:1/v1"), create=create)
    answers = Endpoints(service)
    body = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    try:
        assert (await answers.answer(await answers.asked(CHAT, body, ""))).text == "yes"
        with pytest.raises(ApiError) as refused:
            await answers.answer(await answers.asked(CHAT, body | {"seed": 1}, ""))
    finally:
        await service.aclose()
    assert (refused.value.status, refused.value.param, refused.value.message) == (400, "seed", WARNING)

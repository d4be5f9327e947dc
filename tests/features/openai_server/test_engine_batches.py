"""`/v1/batches` on local engines, whose jobs run in the server's own process."""

from __future__ import annotations

import pytest

import engine_batches
from openai_clients import client_of, servers

pytestmark = [pytest.mark.http, pytest.mark.engine, pytest.mark.thorough]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("hf")
    with servers(folder, "http://127.0.0.1:1") as start:
        yield engine_batches.killed(folder, lambda: start(engine_batches.configured("hf")))


def test_after_a_kill_answers_are_kept_and_the_other_rows_are_answered(killed):
    engine_batches.check_resumed(killed)


def test_each_line_has_its_own_settings_and_fails_alone(killed):
    engine_batches.check_chats(client_of(killed.server))


def test_lines_of_the_responses_api_have_their_form(killed):
    engine_batches.check_responses(client_of(killed.server))


def test_a_cancelled_batch_leaves_its_engine_to_others(killed):
    engine_batches.check_cancellation(client_of(killed.server))


def test_each_line_has_its_own_settings_on_openvino_too(tmp_path):
    pytest.importorskip("openvino_genai")
    with servers(tmp_path, "http://127.0.0.1:1") as start:
        engine_batches.check_chats(client_of(start(engine_batches.configured("openvino"))))

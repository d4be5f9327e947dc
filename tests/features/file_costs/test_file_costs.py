"""The tokens of PDFs and recordings: as estimates of dry runs, and as bounds of budgets that no bill exceeds."""

from __future__ import annotations

import base64
import json
import struct
import sys
import wave
from pathlib import Path
from typing import Any

import pytest

from fakes import openai_configuration
from pdf_files import pdf_of_texts
from promptmill.backends.protocol import Usage
from promptmill.config.configuration import Configuration
from promptmill.core.errors import PromptmillError
from promptmill.core.request import Conversation, FilePart, FileTokens, Message, Request, Sampling, TextPart
from promptmill.features.file_costs import lengths
from promptmill.steps.costs import cost_of, measured, worst_case
from promptmill.steps.prices import FlatPrice, price_of
from upstream import Exchange

pytestmark = pytest.mark.features("file_costs")
ASKED = ("--prompt", "What is it?", "--pdf", "file", "--max-tokens", "10")
HEARD = ("--prompt", "What is said?", "--max-tokens", "10")
PRICE = FlatPrice(1.0, 10.0, 1.0, audio=32.0)


def config_of(provider: str, model: str = "m", **settings: Any) -> Any:
    raw = openai_configuration("http://127.0.0.1:1/v1", model_name=model, provider=provider)._raw
    return Configuration({**raw, **settings}).config


def request_of(path: Path, kind: Any = "pdf", **extra: Any) -> Request:
    parts = (TextPart("What is it?"), FilePart(str(path), kind))
    return Request(0, Conversation((Message("user", parts),)), Sampling(max_tokens=10), extra)


def tokens_of(path: Path, provider: str, kind: Any = "pdf", model: str = "m", price: Any = PRICE) -> FileTokens:
    (file,) = measured(request_of(path, kind), config_of(provider, model), price).conversation.sourced
    assert isinstance(file, FilePart)
    return file.tokens


def why(tokens: FileTokens) -> str:
    assert not isinstance(tokens.most, int)
    return "".join(map(str, tokens.most))


def spoken(path: Path, seconds: float, rate: int = 8000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"\1\0" * round(rate * seconds))
    return path


def mp3(path: Path, seconds: float) -> Path:
    """Write an MP3 of silence without a table of contents: frames of MPEG 1 layer 3, 128 kbit/s, 44,100 Hz."""
    path.write_bytes((b"\xff\xfb\x90\xc4" + bytes(413)) * round(seconds * 44_100 / 1152))
    return path


@pytest.mark.parametrize(
    ("provider", "model", "likely", "most"),
    [
        ("google", "gemini-2.5-flash", 2 * 258, 2 * (2_304 + 64)),
        ("google", "gemini-3-flash-preview", 2 * 560, 2 * (2_304 + 64)),
        ("anthropic", "claude-sonnet-5", 2 * 1_568 + 4, 2 * (4_784 + 64) + 17),
        ("openai", "gpt-5", 2 * 1_105 + 4, 2 * (16_400 + 64) + 17),
        ("openai", "gpt-4o-mini", 2 * 1_105 + 4, 2 * (48_200 + 64) + 17),
    ],
)
def test_a_pdf_has_the_tokens_of_its_pages_and_of_their_text(tmp_path, provider, model, likely, most):
    path = pdf_of_texts(tmp_path / "a.pdf", ["Invoice 1", "Total 10"])
    assert tokens_of(path, provider, model=model) == FileTokens(likely, most)


def test_a_pdf_in_a_data_url_is_counted_and_one_on_the_web_is_not(tmp_path):
    data = pdf_of_texts(tmp_path / "a.pdf", ["Invoice 1"]).read_bytes()
    url: Any = f"data:application/pdf;base64,{base64.b64encode(data).decode()}"
    assert tokens_of(url, "google", model="gemini-2.5-flash").likely == 258
    web: Any = "https://example.com/a.pdf"
    assert "not known before it is downloaded" in why(tokens_of(web, "google"))


@pytest.mark.parametrize(
    ("name", "write", "bounds"),
    [
        ("a.wav", lambda path: spoken(path, 90.25), (90.25, 90.26)),
        ("a.mp3", lambda path: mp3(path, 60), (120.0, 120.1)),
    ],
)
def test_a_recording_has_the_tokens_of_its_seconds(tmp_path, name, write, bounds):
    path = write(tmp_path / name)
    least, most = bounds
    for provider, rate in (("openai", 10), ("google", 32)):
        tokens = tokens_of(path, provider, "audio")
        assert isinstance(tokens.most, int)
        assert rate * least <= tokens.most - 16 <= rate * most + 1
        assert tokens.likely == pytest.approx((tokens.most - 16) / (1 if name == "a.wav" else 2), abs=1)


def test_the_length_of_samples_is_not_taken_from_the_header(tmp_path):
    path = spoken(tmp_path / "a.wav", 30)
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", 16_000)  # the header says one second
    path.write_bytes(data)
    assert 30 * 32 <= tokens_of(path, "google", "audio").likely <= 30 * 32 + 1


@pytest.mark.parametrize(
    ("provider", "data", "price", "said"),
    [
        ("openrouter", b"", PRICE, "No number of tokens is published for a second of audio at openrouter"),
        ("openai", b"", FlatPrice(1.0, 1.0, 1.0), "The price of audio is not known; `audio` in `price` gives it"),
        ("openai", b"ID3\4" + bytes(99), PRICE, "The length of a.mp3 cannot be read"),
        ("openai", b"RIFF\0\0\0\0WAVE", PRICE, "The length of a.mp3 cannot be read"),
    ],
    ids=["provider", "price", "mp3", "wav"],
)
def test_a_budget_refuses_a_recording_without_a_bound_and_says_why(tmp_path, provider, data, price, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("a.mp3")
    path.write_bytes(data)
    request = measured(request_of(path, "audio"), config_of(provider), price)
    with pytest.raises(PromptmillError) as refused:
        worst_case(request, "m")
    assert said.replace("a.mp3", str(tmp_path / "a.mp3")) in str(refused.value)


def test_without_its_package_the_length_of_a_recording_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "need tinytag. Run: " in why(tokens_of(spoken(tmp_path / "a.wav", 1), "openai", "audio"))


def test_an_estimate_counts_audio_at_its_own_price(tmp_path):
    config = config_of("openai", price={"input": 1, "output": 10, "audio": 32})
    price = price_of(config)
    assert price is not None
    assert price.cost(Usage(1_000, 0, audio_tokens=900)) == pytest.approx((100 + 32 * 900) / 1e6)
    estimated, most = cost_of(config, [request_of(spoken(tmp_path / "a.wav", 100), "audio")])
    assert estimated is not None
    assert most is not None
    assert 1_000 * 32 / 1e6 < estimated < 1_050 * 32 / 1e6
    assert 2 * 1_000 * 32 / 1e6 < most < 2 * 1_050 * 32 / 1e6, "an account may have a tier of twice the price"


def replies(provider: str, tokens: int, audio: int = 0) -> Any:
    """Answer a request that has these tokens."""
    gemini = {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "fine"}]}, "finishReason": "STOP"}],
        "usageMetadata": {
            "promptTokenCount": tokens,
            "candidatesTokenCount": 1,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": tokens - audio},
                {"modality": "AUDIO", "tokenCount": audio},
            ],
        },
    }
    openai = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": tokens,
            "completion_tokens": 1,
            "total_tokens": tokens + 1,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": audio},
        },
    }

    async def reply(exchange: Exchange) -> None:
        body = gemini if provider == "google" else openai
        await exchange.respond(200, {}, json.dumps(body).encode())

    return reply


def status_of(bench: Any, *arguments: str, price: str, provider: str) -> dict[str, Any]:
    done = bench.run(*arguments, "--json", "--set", f"price={price}", provider=provider)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(("provider", "rate"), [("google", 32), ("openai", 10)])
def test_recordings_within_a_budget_are_charged_as_reported(bench, provider, rate):
    bench.input = bench.path / "calls"
    bench.input.mkdir()
    for at in range(8):
        spoken(bench.input / f"{at}.wav", 60)
    tokens = 60 * rate
    bench.upstream.reply = replies(provider, tokens + 20, tokens)
    each = (20 + 32 * tokens + 10) / 1e6
    price = "{input: 1, output: 10, audio: 32}"
    status = status_of(bench, *HEARD, "--max-cost", str(5.2 * each), price=price, provider=provider)
    assert status["cost"] == pytest.approx(len(bench.upstream.seen) * each)
    assert 4 <= len(bench.upstream.seen) <= 5, "a row that would exceed the budget is not sent"
    status = status_of(bench, *HEARD, "--max-cost", "1", price=price, provider=provider)
    assert (len(bench.upstream.seen), status["cost"]) == (8, pytest.approx(8 * each))
    assert {row["usage"]["audio_tokens"] for row in bench.answers()} == {tokens}


def test_audio_that_an_endpoint_does_not_count_is_charged_as_reserved(bench):
    bench.input = bench.path / "calls"
    bench.input.mkdir()
    spoken(bench.input / "0.wav", 60)
    bench.upstream.reply = replies("openai", 700)
    status = status_of(bench, *HEARD, "--max-cost", "1", price="{input: 1, output: 10, audio: 32}", provider="openai")
    assert status["cost"] == pytest.approx((700 - 617 + 32 * 617 + 10) / 1e6)


def test_pdfs_within_a_budget_and_their_dry_run(bench):
    bench.input = bench.path / "invoices"
    bench.input.mkdir()
    for at in range(6):
        pdf_of_texts(bench.input / f"{at}.pdf", [f"Invoice {at}"])
    bench.upstream.reply = replies("google", 600)
    price, each = "{input: 1, output: 10}", (600 + 10) / 1e6
    found = status_of(bench, *ASKED, "--dry-run", price=price, provider="google")
    assert found["files"] == {"pdf": 6}
    assert "uncounted" not in found
    assert 6 * 560 < found["estimated_prompt_tokens"] < 6 * 590
    most = found["most_cost"] / 6
    assert (2_368 + 100) / 1e6 < most < (2_368 + 300) / 1e6
    status = status_of(bench, *ASKED, "--max-cost", str(2 * each + most), price=price, provider="google")
    assert len(bench.upstream.seen) == 3, "a fourth could cost more than is left"
    assert status["cost"] == pytest.approx(3 * each)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is for Linux")
def test_the_process_that_reads_lengths_answers_after_a_file_that_ends_it(tmp_path, monkeypatch):
    reader = lengths.LengthReader()
    path = spoken(tmp_path / "a.wav", 1)
    with path.open("rb") as file:
        assert reader.seconds(file, "a.wav")[0] == pytest.approx(1, abs=0.01)
    reader._helper.kill()
    with path.open("rb") as file:
        assert reader.seconds(file, "a.wav")[0] == pytest.approx(1, abs=0.01)
    reader.end()

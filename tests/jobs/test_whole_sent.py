"""PDFs and recordings that are sent as they are, in the place of each API that takes them."""

from __future__ import annotations

import base64
import os
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import promptmill
from batch_server import BatchServer
from dialect_replies import speaks
from pdf_files import pdf_of_texts, scan
from promptmill.core.errors import PromptmillError
from promptmill.core.request import FilePart
from promptmill.images.files import FileLimits, form_of
from promptmill.images.load import ImageRules, load
from replies import answer

ASKED = ("--prompt", "Extract the invoice.", "--pdf", "file")
HEARD = ("--prompt", "What is said?")


def _parts(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of the only user turn."""
    if "contents" in body:
        return list(body["contents"][-1]["parts"])
    turn = (body.get("messages") or body["input"])[-1]
    return list(turn["content"])


def _url(part: dict[str, Any]) -> bytes:
    head, data = part["file_data"].split(",")
    assert head == "data:application/pdf;base64"
    return base64.b64decode(data)


def _of_chat(body: dict[str, Any]) -> bytes:
    (part,) = (one for one in _parts(body) if one["type"] == "file")
    assert part["file"]["filename"].endswith(".pdf")
    return _url(part["file"])


def _of_responses(body: dict[str, Any]) -> bytes:
    (part,) = (one for one in _parts(body) if one["type"] == "input_file")
    assert part["filename"].endswith(".pdf")
    return _url(part)


def _of_anthropic(body: dict[str, Any]) -> bytes:
    (part,) = (one for one in _parts(body) if one["type"] == "document")
    assert (part["source"]["type"], part["source"]["media_type"]) == ("base64", "application/pdf")
    return base64.b64decode(part["source"]["data"])


def _of_gemini(body: dict[str, Any]) -> bytes:
    (part,) = (one["inlineData"] for one in _parts(body) if "inlineData" in one)
    assert part["mimeType"] == "application/pdf"
    return base64.b64decode(part["data"])


PLACES: dict[str, tuple[Callable[[dict[str, Any]], bytes], dict[str, str]]] = {
    "chat": (_of_chat, {"provider": "openai"}),
    "openrouter": (_of_chat, {"provider": "openrouter"}),
    "responses": (_of_responses, {"provider": "openai", "dialect": "responses"}),
    "anthropic": (_of_anthropic, {"provider": "anthropic"}),
    "gemini": (_of_gemini, {"provider": "google"}),
}


@pytest.fixture
def invoices(bench: Any) -> Path:
    bench.input = bench.path / "invoices"
    bench.input.mkdir()
    pdf_of_texts(bench.input / "a.pdf", ["Invoice 1", "Total 10"])
    pdf_of_texts(bench.input / "b.pdf", ["Invoice 2"])
    return bench.input


@pytest.fixture
def recordings(bench: Any) -> Path:
    bench.input = bench.path / "recordings"
    bench.input.mkdir()
    spoken(bench.input / "a.wav")
    (bench.input / "b.mp3").write_bytes(b"ID3\4" + bytes(range(256)))
    return bench.input


def _error(row: dict[str, Any]) -> str:
    return str(row["error"]["message"]) if row["error"] else ""


def spoken(path: Path, seconds: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(range(250)) * 64 * seconds)
    return path


@pytest.mark.parametrize("place", PLACES)
def test_each_api_gets_the_bytes_of_a_pdf_in_its_place(bench, invoices, place):
    read, block = PLACES[place]
    if place not in {"chat", "openrouter"}:
        bench.upstream.reply = speaks("fine")
    done = bench.run(*ASKED, **block)
    assert done.returncode == 0, done.stderr
    sent = {read(seen.json) for seen in bench.upstream.seen}
    assert sent == {path.read_bytes() for path in invoices.iterdir()}
    assert [{*row} for row in bench.answers()] == [{"path", "answer", "error", "usage", "finish_reason"}] * 2


@pytest.mark.features("batches", "file_costs")
@pytest.mark.parametrize(
    ("provider", "place"),
    [("openai", "chat"), ("openai", "responses"), ("anthropic", "anthropic"), ("gemini", "gemini")],
)
def test_a_batch_has_the_bytes_of_each_pdf(tmp_path, provider, place):
    path = pdf_of_texts(tmp_path / "a.pdf", ["Invoice 1"])
    bodies: list[dict[str, Any]] = []
    with BatchServer(provider) as server:
        server.answers = lambda body: str(bodies.append(body) or "fine")
        result = promptmill.bulk(
            path,
            tmp_path / "out.csv",
            prompt="Extract the invoice.",
            pdf="file",
            model="m",
            base_url=server.base_url,
            api_key="k",
            batch=True,
            poll="0.1s",
            progress=False,
            max_tokens=10,
            max_cost=1,
            settings={
                "price": {"input": 1, "output": 1},
                "backend_configs.openai.provider": {"gemini": "google"}.get(provider, provider),
                "backend_configs.openai.dialect": place if place == "responses" else None,
            },
        )
    assert result.status["done"] == 1
    assert (server.creates, server.live) == (1, 0)
    assert [PLACES[place][0](body) for body in bodies] == [path.read_bytes()]


def test_a_pdf_that_cannot_be_read_costs_only_its_row(bench, invoices):
    (invoices / "broken.pdf").write_bytes(b"%PDF-1.4 broken")
    bench.run(*ASKED, provider="openai")
    errors = {Path(row["path"]).name: _error(row) for row in bench.answers()}
    assert "broken.pdf is damaged, or no PDF" in errors.pop("broken.pdf")
    assert errors == {"a.pdf": "", "b.pdf": ""}
    assert len(bench.upstream.seen) == 2


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (FileLimits(100), "has 1,"),
        (FileLimits(10_000, pages=1), "a.pdf has 2 pages, but the endpoint takes 1; divide it"),
    ],
)
def test_size_and_pages_are_checked_before_a_pdf_is_sent(tmp_path, limits, said):
    path = pdf_of_texts(tmp_path / "a.pdf", ["Invoice 1", "Total 10"])
    rules = ImageRules(limits={"pdf": limits})
    data = f"data:application/pdf;base64,{base64.b64encode(path.read_bytes()).decode()}"
    for source in (str(path), data):
        with pytest.raises(PromptmillError, match=said) as refused:
            load(FilePart(source, "pdf", "a.pdf"), rules)
        assert refused.value.code == "invalid_input"


def test_an_unknown_endpoint_is_asked_only_if_the_configuration_says_that_it_takes_pdfs(bench, invoices):
    said = bench.run(*ASKED).stderr
    assert "test-model is not known to take a PDF as it is. Send --pdf text or --pdf images" in said
    assert "--set 'backend_configs.openai.files=[\"pdf\"]'" in said
    assert not bench.upstream.seen
    assert bench.run(*ASKED, files=["pdf"]).returncode == 0
    assert len(bench.upstream.seen) == 2


def test_an_engine_is_refused_by_name(bench, recordings):
    for asked, noun in ((HEARD, "recording"),):
        said = bench.run(*asked, "--backend", "hf", "-m", "nobody/nothing").stderr
        assert f"The hf backend takes no {noun} as it is." in said


def test_the_quotes_of_a_pdf_are_looked_up_in_its_text(bench, invoices):
    scan(invoices / "scan.pdf")
    bench.upstream.reply = answer('{"total": {"value": 10, "quote": "total 10"}}')
    bench.run(*ASKED, "--fields", "total:number", "--quote", provider="openai")
    rows = {Path(row["path"]).name: row for row in bench.answers()}
    source = rows["a.pdf"]["sources"]["total"]
    assert [box["page"] for box in source.pop("box")] == [2]
    assert source == {"quote": "Total 10", "start": 12, "end": 20, "page": 2}
    assert rows["b.pdf"]["sources"]["total"] == {"quote": "total 10", "is_missing": True}
    assert "has no text in which a quote could be looked up" in _error(rows["scan.pdf"])
    assert len(bench.upstream.seen) == 2


def _heard(body: dict[str, Any]) -> tuple[str, bytes]:
    if "contents" in body:
        (part,) = (one["inlineData"] for one in _parts(body) if "inlineData" in one)
        return part["mimeType"], base64.b64decode(part["data"])
    (part,) = (one["input_audio"] for one in _parts(body) if one["type"] == "input_audio")
    return part["format"], base64.b64decode(part["data"])


@pytest.mark.parametrize(("provider", "start"), [("openai", ""), ("google", "audio/")])
def test_each_recording_of_a_folder_is_a_row(bench, recordings, provider, start):
    if provider == "google":
        bench.upstream.reply = speaks("fine")
    done = bench.run(*HEARD, provider=provider)
    assert done.returncode == 0, done.stderr
    expected = {(f"{start}{path.suffix[1:]}", path.read_bytes()) for path in recordings.iterdir()}
    assert {_heard(seen.json) for seen in bench.upstream.seen} == expected


def test_a_column_names_the_recording_of_each_row(bench, recordings):
    bench.write([{"id": 1, "rec": "recordings/a.wav"}, {"id": 2, "rec": "recordings/none.wav"}, {"id": 3, "rec": None}])
    mistyped = bench.run(*HEARD, "--audio-column", "recc", provider="openai").stderr
    assert "--audio-column: the input has no column 'recc'" in mistyped
    bench.run(*HEARD, "--audio-column", "rec", provider="openai")
    assert [_heard(seen.json)[0] for seen in bench.upstream.seen] == ["wav"]
    errors = [*map(_error, bench.answers())]
    assert not errors[0]
    assert "There is no file at" in errors[1]
    assert "its rec is empty" in errors[2]


def test_a_form_of_the_provider_that_it_does_not_take_is_refused_before_anything_is_sent(bench, recordings):
    (recordings / "c.flac").write_bytes(b"fLaC" + bytes(100))
    said = bench.run(*HEARD, "--fields", "mood", provider="openai").stderr
    assert "takes no schema and no choices beside a recording" in said
    assert "is not known to take a recording" in bench.run(*HEARD, provider="anthropic").stderr
    assert not bench.upstream.seen
    bench.run(*HEARD, provider="openai")
    (refused,) = (error for error in map(_error, bench.answers()) if error)
    assert "c.flac is flac, but the endpoint takes mp3, wav; convert it: ffmpeg -i" in refused


def test_a_dry_run_counts_files_whose_tokens_it_does_not_know(bench, invoices):
    said = bench.run(*ASKED, "--dry-run", provider="openrouter").stdout
    assert "2 PDFs" in said
    assert "prompt tokens without PDFs" in said


@pytest.mark.parametrize(
    ("start", "form"),
    [
        (b"RIFF\0\0\0\0WAVEfmt ", "wav"),
        (b"ID3\4", "mp3"),
        (b"\xff\xfb\x90", "mp3"),
        (b"\xff\xf1", "aac"),
        (b"OggS", "ogg"),
        (b"fLaC", "flac"),
        (b"\0\0\0\x20ftypM4A ", "m4a"),
        (b"FORM\0\0\0\0AIFF", "aiff"),
        (b"RIFF\0\0\0\0WEBP", None),
        (b"", None),
    ],
)
def test_a_recording_is_known_by_its_first_bytes(start, form):
    assert form_of(start) == form


def test_the_word_of_a_web_server_for_a_format_is_not_taken():
    source = f"data:audio/mpeg;base64,{base64.b64encode(b'ID3' + bytes(40)).decode()}"
    assert load(FilePart(source, "audio"), ImageRules()).media_type == "audio/mp3"
    other = FilePart("data:audio/pcm16;base64,AAAA", "audio")  # of a caller: the endpoint decides
    assert load(other, ImageRules()).media_type == "audio/pcm16"


@pytest.mark.parametrize("form", ["images", "file"])
def test_a_pdf_that_was_replaced_is_asked_again(bench, invoices, form):
    asked = ("--prompt", "Extract the invoice.", "--pdf", form)
    bench.succeed(*asked, provider="openai")
    pdf_of_texts(invoices / "a.pdf", ["Invoice 3", "Total 30"])
    bench.succeed(*asked, provider="openai")
    assert len(bench.upstream.seen) == 3


def test_a_picture_that_was_replaced_is_asked_again(bench):
    bench.input = bench.path / "pictures"
    bench.input.mkdir()
    for name in "ab":
        Image.new("RGB", (9, 9), "red").save(bench.input / f"{name}.png")
    bench.succeed("--prompt", "What?")
    Image.new("RGB", (9, 9), "blue").save(bench.input / "a.png")
    bench.succeed("--prompt", "What?")
    assert len(bench.upstream.seen) == 3


def test_a_recording_that_was_replaced_is_asked_again(bench, recordings):
    bench.succeed(*HEARD, provider="openai")
    spoken(recordings / "a.wav", seconds=2)
    bench.succeed(*HEARD, provider="openai")
    assert len(bench.upstream.seen) == 3


def test_a_file_whose_time_alone_changed_keeps_its_answer(bench, recordings):
    bench.succeed(*HEARD, provider="openai")
    os.utime(recordings / "a.wav", (0, 0))
    bench.succeed(*HEARD, provider="openai")
    assert len(bench.upstream.seen) == 2

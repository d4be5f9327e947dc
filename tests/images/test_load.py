"""A path or URL → checked image bytes: every format, every way in, and what is no image."""

from __future__ import annotations

import base64
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from promptmill.core.errors import Code, PromptmillError
from promptmill.images.load import ImageRules, _to_eight_bits, is_web, load_image
from promptmill.system.call_files import FileRule

ANYWHERE = ImageRules()
FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
FORMATS |= {"BMP": "", "TIFF": ""}


def _picture(mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, "blue")
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 2 - 1, size[1]), "red")
    return image.convert(mode)


def _bytes(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def _like(pixel, wanted) -> bool:
    return all(abs(have - want) < 30 for have, want in zip(pixel, wanted, strict=True))


def _problem(source: str, rules: ImageRules = ANYWHERE) -> str:
    with pytest.raises(PromptmillError) as caught:
        load_image(source, rules)
    assert caught.value.code is Code.INVALID_IMAGE
    return str(caught.value)


# Formats


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_can_be_sent(tmp_path, kind):
    path = tmp_path / "no-suffix-needed"
    data = _bytes(_picture(), kind)
    path.write_bytes(data)
    loaded = load_image(str(path), ANYWHERE)
    assert loaded.media_type == (FORMATS[kind] or "image/png")
    assert (loaded.data == data) == bool(FORMATS[kind]), "what the web can show stays byte for byte"
    image = _open(loaded.data).convert("RGB")
    assert image.size == (40, 20)
    assert _like(image.getpixel((5, 10)), (255, 0, 0))
    assert _like(image.getpixel((35, 10)), (0, 0, 255))


@pytest.mark.parametrize(
    ("kind", "mode", "sent"),
    [("AVIF", "RGB", "image/jpeg"), ("AVIF", "RGBA", "image/png"), ("ICO", "RGBA", "image/png")],
)
def test_what_few_models_read_is_converted(tmp_path, kind, mode, sent):
    path = tmp_path / "no-suffix-needed"
    picture = _picture(mode, (32, 32))
    if mode == "RGBA":
        picture.putalpha(200)  # else Pillow writes no transparency
    path.write_bytes(_bytes(picture, kind))
    loaded = load_image(str(path), ANYWHERE)
    assert loaded.media_type == sent
    assert Image.MIME[_open(loaded.data).format or ""] == sent
    image = _open(loaded.data).convert("RGB")
    assert image.size == (32, 32)
    assert _like(image.getpixel((5, 10)), (255, 0, 0))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_sent(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / "moving"
    path.write_bytes(_bytes(frames[0], kind, save_all=True, append_images=frames[1:], duration=100))
    loaded = load_image(str(path), ANYWHERE)
    assert loaded.media_type == "image/png"
    image = _open(loaded.data)
    assert not getattr(image, "is_animated", False)
    assert _like(image.convert("RGB").getpixel((4, 4)), (255, 0, 0))


def test_a_photo_with_more_views_behind_it_is_a_jpeg_like_any_other(tmp_path):
    """As many phones write them: a preview, a depth map or a second eye's view behind the photo itself."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in (("plain.jpg", {}), ("turned.jpg", {"exif": exif})):
        path = tmp_path / name
        behind = Image.new("RGB", (40, 20), "green")
        path.write_bytes(data := _bytes(_picture(), "MPO", save_all=True, append_images=[behind], **options))
        assert _open(data).format == "MPO"
        loaded = load_image(str(path), ANYWHERE)
        assert (loaded.data == data, loaded.media_type) == (
            (True, "image/jpeg") if name == "plain.jpg" else (False, "image/png")
        )
        assert _like(_open(loaded.data).convert("RGB").getpixel((5, 5)), (255, 0, 0))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_usual_kinds_of_pixels_stay_as_they_are(tmp_path, mode):
    path = tmp_path / "a.png"
    path.write_bytes(data := _bytes(_picture(mode), "PNG"))
    assert load_image(str(path), ANYWHERE).data == data


def test_four_ink_colours_become_three_lights(tmp_path):
    path = tmp_path / "print.jpg"
    path.write_bytes(_bytes(_picture("CMYK"), "JPEG"))
    loaded = load_image(str(path), ANYWHERE)
    image = _open(loaded.data)
    assert (loaded.media_type, image.mode) == ("image/png", "RGB")
    assert _like(image.getpixel((5, 10)), (255, 0, 0))


@pytest.mark.parametrize("darkest", [-100, 100, 100_000])
def test_whole_numbers_of_32_bits_are_shown_from_the_darkest_to_the_lightest(darkest):
    image = Image.new("I", (3, 1))
    for x in range(3):
        image.putpixel((x, 0), darkest + 51 * x)
    assert list(_to_eight_bits(image).tobytes()) == [0, 127, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight_not_clipped(tmp_path, kind):
    image = Image.new("I;16", (3, 1))
    for x, value in enumerate((0, 0x8000, 0xFFFF)):
        image.putpixel((x, 0), value)
    path = tmp_path / "deep"
    path.write_bytes(_bytes(image, kind))
    loaded = _open(load_image(str(path), ANYWHERE).data)
    assert loaded.mode == "L"
    assert [abs(shade - want) <= 1 for shade, want in zip(loaded.tobytes()[:3], (0, 128, 255), strict=True)] == [
        True
    ] * 3


def test_numbers_with_a_point_are_scaled_over_their_range(tmp_path):
    image = Image.new("F", (3, 1))
    for x, value in enumerate((-1.0, 0.0, 1.0)):
        image.putpixel((x, 0), value)
    path = tmp_path / "measured.tiff"
    path.write_bytes(_bytes(image, "TIFF"))
    loaded = _open(load_image(str(path), ANYWHERE).data)
    assert [loaded.getpixel((x, 0)) for x in range(3)] == [0, 127, 255]


def test_an_image_of_one_single_value_does_not_divide_by_zero(tmp_path):
    path = tmp_path / "flat.tiff"
    path.write_bytes(_bytes(Image.new("F", (2, 2), 0.5), "TIFF"))
    assert _open(load_image(str(path), ANYWHERE).data).mode == "L"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_that_exif_turns_is_sent_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "phone.jpg"
    path.write_bytes(data := _bytes(_picture(), "JPEG", exif=exif))
    loaded = load_image(str(path), ANYWHERE)
    assert (loaded.data == data) == (orientation == 1)
    image = _open(loaded.data)
    assert image.size == ((20, 40) if orientation >= 5 else (40, 20))
    assert image.getexif().get(0x0112, 1) == 1, "nobody turns it a second time"
    # of the left half, red, as it lies in the file
    red_at = {1: (2, 10), 2: (38, 10), 3: (38, 10), 4: (2, 10), 5: (10, 2), 6: (10, 2), 7: (10, 38), 8: (10, 38)}
    assert _like(image.convert("RGB").getpixel(red_at[orientation]), (255, 0, 0))


def test_transparency_is_kept(tmp_path):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    path = tmp_path / "glass.tiff"
    path.write_bytes(_bytes(image, "TIFF"))
    assert _open(load_image(str(path), ANYWHERE).data).tobytes()[3] == 0


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "P"), ("WEBP", "RGBA")])
def test_a_server_whose_decoder_may_ignore_transparency_gets_white_behind_it(tmp_path, kind, mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((1, 1), (0, 0, 0, 255))
    if mode == "P":
        image = image.quantize(4)
    path = tmp_path / "ink"
    path.write_bytes(_bytes(image if mode == "P" else image.convert(mode), kind, lossless=True))
    rules = ImageRules.of(ANYWHERE.files, ANYWHERE.max_pixels, types=frozenset({"image/png", "image/jpeg"}))
    loaded = _open(load_image(str(path), rules).data)
    assert (loaded.mode, loaded.getpixel((1, 1)), loaded.getpixel((2, 2))) == ("RGB", (0, 0, 0), (255, 255, 255))


def test_a_png_with_16_bits_per_colour_gets_8(tmp_path):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    pixels = zlib.compress(b"\0" + struct.pack(">6H", 60_000, 0, 0, 0, 60_000, 0))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    loaded = load_image(str(path), ANYWHERE).data
    assert loaded[24] == 8
    assert _open(loaded).getpixel((0, 0)) == (234, 0, 0)


# Ways in


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a picture ü.png"
    path.write_bytes(_bytes(_picture(), "PNG"))
    return path


def test_a_file_url_is_a_path(picture):
    assert load_image(picture.as_uri(), ANYWHERE).data == picture.read_bytes()
    assert load_image(picture.as_uri().replace("file://", "file://localhost"), ANYWHERE).data == picture.read_bytes()
    assert load_image(picture.as_uri().replace("file:", "FILE:"), ANYWHERE).data == picture.read_bytes()


def test_a_relative_path_starts_at_the_working_directory(picture, monkeypatch):
    monkeypatch.chdir(picture.parent)
    assert load_image(picture.name, ANYWHERE).data == picture.read_bytes()


def test_a_path_may_start_at_the_home_folder(picture, monkeypatch):
    monkeypatch.setenv("HOME", str(picture.parent))
    assert load_image(f"~/{picture.name}", ANYWHERE).data == picture.read_bytes()


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "", "image/png;name=a.png", "IMAGE/PNG"])
def test_a_data_url_is_read_by_what_it_holds(picture, media_type):
    url = f"data:{media_type};base64,{base64.b64encode(picture.read_bytes()).decode()}"
    loaded = load_image(url, ANYWHERE)
    assert (loaded.data, loaded.media_type) == (picture.read_bytes(), "image/png")


def test_a_data_url_may_begin_in_capitals(picture):
    url = f"DATA:image/png;BASE64,{base64.b64encode(picture.read_bytes()).decode()}"
    assert load_image(url, ANYWHERE).data == picture.read_bytes()


def test_a_data_url_may_be_percent_encoded(picture):
    from urllib.parse import quote_from_bytes

    assert load_image(f"data:image/png,{quote_from_bytes(picture.read_bytes())}", ANYWHERE).media_type == "image/png"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("data:", "head of a data URL is invalid"),
        ("data:image/png;base64", "head of a data URL is invalid"),
        ("data:image/png;base64,!!!!", "contains invalid base64"),
        ("data:image/png;base64,", "empty"),
        ("data:text/plain,hello", "not an image"),
        ("data:image/png;base64,aGVsbG8gd29ybGQ=", "not an image"),
    ],
)
def test_a_data_url_without_an_image_is_refused(url, said):
    assert said in _problem(url)


@pytest.mark.parametrize(
    ("source", "web"),
    [
        ("http://h/a.png", True),
        ("HTTPS://h/a.png", True),
        ("https.png", False),
        ("data:image/png,", False),
        ("file:///a", False),
        ("a.png", False),
    ],
)
def test_web_addresses_are_told_apart(source, web):
    assert is_web(source) is web


# What is none


def test_a_missing_file_is_named_with_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"There is no file at {tmp_path / 'nowhere.png'}." in _problem("nowhere.png")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.png", b"", "is empty"),
        ("secret.png", b"root:x:0:0:root:/root:/bin/bash\n", "is not an image"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image"),
        ("page.pdf", b"%PDF-1.7\n", "is damaged, or no PDF"),
        ("cut.png", _bytes(_picture(), "PNG")[:20], "broken image"),
        ("signature.jpg", b"\xff\xd8\xff" + b"x" * 100, "broken image"),
        ("bm.txt", b"BM is how this text begins", "broken image"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    problem = _problem(str(path))
    assert said in problem
    assert str(path) in problem
    assert "root:x" not in problem


def test_a_folder_is_no_image(tmp_path):
    assert f"{tmp_path} is a folder" in _problem(str(tmp_path))


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in the file system")
@pytest.mark.timeout(10)
def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe.png" in _problem(str(tmp_path / "pipe.png"))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
def test_a_device_is_refused_without_being_read():
    assert "/dev/zero" in _problem("/dev/zero")


def test_a_file_url_of_a_megabyte_is_refused_unread(monkeypatch):
    monkeypatch.setattr("promptmill.images.load.url2pathname", lambda _: pytest.fail("it takes 70 times the memory"))
    assert "not a valid path" in _problem("file:///" + "%41" * 500_000)


@pytest.mark.parametrize(
    "source",
    [
        *("", "\0", "a\0b.png", "x" * 5000, "ftp://host/a.png", "file://host/share/a.png"),
        *("~nobody-of-that-name/a.png", "~\0/a.png", "file://[/a.png", "\ud800.png", "ftp://\ud800/a.png"),
    ],
)
def test_what_is_no_path_is_refused(source):
    assert len(_problem(source)) < 6000


def test_a_password_in_an_address_is_not_shown():
    assert "hunter2" not in _problem("ftp://user:hunter2@host/a.png")


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("side", "said"), [(10_000, "10000 x 10000 pixels"), (13_000, "13000 x 13000 pixels"), (60_000, "far more pixels")]
)
def test_a_bomb_is_refused_by_its_header(tmp_path, side, said):
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_header(side, side))
    problem = _problem(str(path))
    assert said in problem
    assert "max_image_pixels" in problem


def test_the_bound_of_pixels_is_the_operators(picture):
    assert load_image(str(picture), ImageRules(max_pixels=800)).data
    assert "40 x 20" in _problem(str(picture), ImageRules(max_pixels=799))


# Where files may lie


def test_only_files_inside_the_allowed_folders_are_read(picture, tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "inside-not"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(picture.read_bytes())
    rules = ImageRules(FileRule((inside.resolve(),)))
    assert load_image(str(inside / "a.png"), rules).data
    for escape in (outside / "a.png", inside / ".." / "inside-not" / "a.png", picture):
        assert "outside the folders that agents may use (`allowed_roots`" in _problem(str(escape), rules)
    assert "outside" in _problem((outside / "a.png").as_uri(), rules)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_counts_as_what_it_points_to(picture, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.png").symlink_to(picture)
    (tmp_path / "way-in.png").symlink_to(inside / "real.png")
    (inside / "real.png").write_bytes(picture.read_bytes())
    (inside / "loop.png").symlink_to(inside / "loop.png")
    rules = ImageRules(FileRule((inside.resolve(),)))
    assert "outside" in _problem(str(inside / "link.png"), rules)
    assert load_image(str(tmp_path / "way-in.png"), rules).data
    loop = _problem(str(inside / "loop.png"), rules)
    assert "There is no file" in loop or "symbolic links" in loop  # the latter from Python 3.13 on


def test_no_folder_allowed_means_no_file_but_data_urls(picture):
    nowhere = ImageRules(FileRule(()))
    assert "outside" in _problem(str(picture), nowhere)
    url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    assert load_image(url, nowhere).media_type == "image/png"


def test_no_decoder_is_imported_but_those_of_the_formats_that_are_read(tmp_path):
    path = tmp_path / "x.tiff"
    _picture("CMYK").save(path)
    code = (
        "import sys\n"
        "from promptmill.images.load import ImageRules, load_image\n"
        "load_image(sys.argv[1], ImageRules())\n"
        "print(*(name for name in sys.modules if name.endswith('ImagePlugin')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    plugins = {name.removeprefix("PIL.").removesuffix("ImagePlugin") for name in done.stdout.split()}
    assert plugins <= {"Avif", "Bmp", "Gif", "Ico", "Jpeg", "Mpo", "Png", "Ppm", "Tiff", "WebP"}


def test_a_data_url_may_have_line_breaks():
    encoded = base64.encodebytes(_bytes(_picture(), "PNG")).decode()
    assert "\n" in encoded.strip()
    assert load_image(f"data:image/png;base64,{encoded}", ANYWHERE).data == _bytes(_picture(), "PNG")


@pytest.mark.parametrize("source", ["../" * 3000, "a" * 5000, "~/" + "b/" * 3000])
def test_a_source_longer_than_any_path_is_no_path(source, monkeypatch):
    monkeypatch.setattr("promptmill.images.load.home_expanded", lambda _: pytest.fail("it became a path"))
    with pytest.raises(PromptmillError, match="not a valid path"):
        load_image(source, ImageRules())


@pytest.mark.parametrize("picture", ["noise", "white"])
def test_a_jpeg_without_its_last_blocks_is_refused_and_one_without_the_end_mark_is_not(tmp_path, picture):
    image = Image.effect_noise((203, 101), 80).convert("RGB")
    if picture == "white":
        image.paste("white", (0, 80, 203, 101))
    data = _bytes(image, "JPEG")
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) * 97 // 100] if picture == "noise" else data[:-20])
    assert "cut off" in _problem(str(path))
    path.write_bytes(data[:-2])
    assert load_image(str(path), ANYWHERE).data


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("options", [{}, {"lossless": True, "progressive": True}])
def test_an_image_whose_end_is_missing_is_refused_and_one_without_the_end_mark_is_not(tmp_path, kind, options):
    data = _bytes(Image.effect_noise((200, 100), 80).convert("RGB"), kind, **options)
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) // 2])
    assert any(words in _problem(str(path)) for words in ("cut off", "broken image"))
    path.write_bytes(data)
    assert load_image(str(path), ANYWHERE).data
    if kind == "JPEG" and not options:
        for end in (data[:-2], data + b"padding"):
            path.write_bytes(end)
            assert load_image(str(path), ANYWHERE).data == end


@pytest.mark.parametrize("options", [{}, {"big_tiff": True}])
def test_each_page_of_a_tiff_has_a_name_and_a_preview_of_another_is_no_page(tmp_path, options):
    pages = [Image.new("L", (8, 8), tone) for tone in (10, 120, 240)]
    path = tmp_path / "fax.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)
    assert "has 3 pages" in _problem(str(path))
    for number, tone in enumerate((10, 120, 240), 1):
        image = _open(load_image(f"{path}#page={number}", ANYWHERE).data)
        assert _like(image.convert("RGB").getpixel((4, 4)), (tone, tone, tone))
    assert "has no page 4" in _problem(f"{path}#page=4")
    pages[1].encoderinfo = {"tiffinfo": {254: 1}}
    pages[0].save(path, save_all=True, append_images=pages[1:2])
    assert load_image(str(path), ANYWHERE).data

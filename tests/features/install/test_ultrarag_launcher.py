"""`promptmill install ultrarag CHECKOUT`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from promptmill.cli import main as cli
from promptmill.features.install import command

pytestmark = pytest.mark.features("ultrarag")
THEIRS = b"import ultrarag\n"


@pytest.fixture
def checkout(tmp_path):
    """As much of a checkout as is looked at, and more."""
    for file, content in {
        "servers/generation/src/generation.py": THEIRS,
        "servers/generation/src/local_generation.py": b"local\n",
        "servers/generation/parameter.yaml": b"backend: vllm\n",
        "src/ultrarag/client.py": b"client\n",
        "README.md": b"readme\n",
    }.items():
        (tmp_path / "checkout" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / file).write_bytes(content)
    return tmp_path / "checkout"


def _files(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _launcher_for(interpreter):
    return (
        command.launch_file().read_text(encoding="utf-8").replace('INTERPRETER = ""', f"INTERPRETER = {interpreter!r}")
    )


def _install(checkout, *arguments):
    return cli.main(["install", "ultrarag", str(checkout), *arguments])


def test_it_replaces_the_generation_server_and_leaves_everything_else(checkout):
    before = _files(checkout)
    assert _install(checkout) == 0
    launcher = str(Path("servers", "generation", "src", "generation.py"))
    after = _files(checkout)
    assert after.pop(launcher).decode() == _launcher_for(sys.executable)
    assert before.pop(launcher) == THEIRS
    assert after == before, "nothing stays behind when git brings its file back"


def test_a_second_time_changes_nothing_and_undo_brings_everything_back(checkout, capsys):
    before = _files(checkout)
    _install(checkout)
    once = _files(checkout)
    assert _install(checkout) == 0
    assert "already" in capsys.readouterr().out
    assert _files(checkout) == once
    assert _install(checkout, "--undo") == 0
    assert _files(checkout) == before
    assert _install(checkout, "--undo") == 0
    assert _files(checkout) == before


@pytest.mark.parametrize("undo", [[], ["--undo"]])
def test_a_dry_run_says_every_step_and_takes_none(checkout, undo, capsys):
    if undo:
        _install(checkout)
    before = _files(checkout)
    capsys.readouterr()
    assert _install(checkout, *undo, "--dry-run") == 0
    assert _files(checkout) == before
    would = capsys.readouterr().out
    assert _install(checkout, *undo) == 0
    assert would == "".join(f"would {line}\n" for line in capsys.readouterr().out.splitlines())
    assert would.count("\n") == (1 if undo else 2)


def test_an_older_launcher_of_ours_is_brought_up_to_date_and_what_was_kept_stays(checkout):
    _install(checkout)
    launcher = checkout / "servers" / "generation" / "src" / "generation.py"
    launcher.write_bytes(b"# an older one, that reads PROMPTMILL_PYTHON\n")
    assert _install(checkout) == 0
    assert launcher.read_text() == _launcher_for(sys.executable)
    assert _install(checkout, "--undo") == 0
    assert launcher.read_bytes() == THEIRS


def test_a_newer_server_of_theirs_is_what_undo_brings_back(checkout):
    _install(checkout)
    launcher = checkout / "servers" / "generation" / "src" / "generation.py"
    launcher.write_bytes(b"import newer\n")
    _install(checkout)
    _install(checkout, "--undo")
    assert launcher.read_bytes() == b"import newer\n"


def test_undo_after_they_brought_their_own_back_only_clears_up(checkout):
    before = _files(checkout)
    _install(checkout)
    (checkout / "servers" / "generation" / "src" / "generation.py").write_bytes(THEIRS)
    assert _install(checkout, "--undo") == 0
    assert _files(checkout) == before


def test_undo_without_what_was_kept_changes_nothing_and_says_how_to_get_it(checkout, capsys):
    _install(checkout)
    command._backup_of(checkout / "servers" / "generation" / "src" / "generation.py").unlink()
    before = _files(checkout)
    assert _install(checkout, "--undo") == 2
    assert "git checkout -- servers/generation/src/generation.py" in capsys.readouterr().err
    assert _files(checkout) == before


@pytest.mark.parametrize("lacking", ["servers/generation/src/generation.py", "src/ultrarag/client.py"])
def test_it_refuses_a_folder_that_is_not_a_checkout(checkout, lacking, capsys):
    (checkout / lacking).unlink()
    before = _files(checkout)
    assert _install(checkout) == 2
    assert f"{Path(lacking)} is missing" in capsys.readouterr().err
    assert _files(checkout) == before


def test_a_configuration_of_another_program_in_the_working_directory_is_no_hindrance(checkout, monkeypatch):
    (checkout / "parameter.yaml").write_text("no: promptmill\n")
    monkeypatch.chdir(checkout)
    assert _install(Path()) == 0


@pytest.mark.skipif(sys.platform == "win32" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user")
def test_a_folder_that_cannot_be_written_is_said(checkout, capsys):
    folder = checkout / "servers" / "generation" / "src"
    folder.chmod(0o500)
    assert _install(checkout) == 2
    assert "Permission denied" in capsys.readouterr().err
    folder.chmod(0o700)


@pytest.mark.skipif(os.name == "nt", reason="permissions as POSIX has them")
def test_whoever_may_read_the_launcher_may_read_where_it_leads(checkout):
    launcher = checkout / "servers" / "generation" / "src" / "generation.py"
    launcher.chmod(0o644)
    _install(checkout)
    assert launcher.stat().st_mode & 0o777 == 0o644


def test_git_brings_the_original_back_and_nothing_stays_behind(checkout):
    def git(*arguments):
        told = subprocess.run(["git", "-C", checkout, *arguments], capture_output=True, text=True, check=True)
        return told.stdout

    git("init", "--quiet")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "theirs")
    _install(checkout)
    assert git("status", "--porcelain").split() == ["M", "servers/generation/src/generation.py"]
    git("checkout", "--quiet", ".")
    assert git("status", "--porcelain") == ""
    assert (checkout / "servers" / "generation" / "src" / "generation.py").read_bytes() == THEIRS

"""`promptmill install claude-desktop`."""

import argparse
import json
import sys
from pathlib import Path

import platformdirs
import pytest

from promptmill.cli import main as cli
from promptmill.cli.options import configuration_of

OTHERS = """\
{
\t"globalShortcut": "Ctrl+Space",
\t"mcpServers": {
\t\t"first": {"command": "first", "env": {"TOKEN": "hunter2"}},
\t\t"größe": {"command": "second", "args": [1, 2.5, null, true], "unknown": {"z": 1, "a": []}}
\t},
\t"zoom": 12345678901234567890
}"""


@pytest.fixture
def file(tmp_path):
    """Claude Desktop's configuration, which holds other servers."""
    path = tmp_path / "claude_desktop_config.json"
    path.write_text(OTHERS, encoding="utf-8")
    return path


@pytest.fixture
def install(file, tmp_path, monkeypatch):
    """Run the command in a folder without a configuration."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    return lambda *arguments: cli.main(["install", "claude-desktop", "--file", str(file), *arguments])


def _servers(file):
    return json.loads(file.read_text(encoding="utf-8-sig"))["mcpServers"]


def test_the_entry_starts_us_by_absolute_paths(install, file):
    assert install() == 0
    entry = _servers(file)["promptmill"]
    assert Path(entry["command"]).is_absolute()
    assert Path(entry["command"]).parent == Path(sys.executable).parent
    folder = file.parent / "promptmill"
    roots = f"allowed_roots={json.dumps([str(folder)])}"
    assert entry["args"][-5:] == ["serve", "--set", roots, "--set", "max_call_s=50"]
    assert folder.is_dir()


def test_the_entry_names_a_folder_of_the_users_choice(install, file, tmp_path, monkeypatch):
    """Claude Desktop starts servers in `/`, where calls may use no file."""
    chosen = tmp_path / "größe of mine"
    assert install("--folder", str(chosen)) == 0
    assert chosen.is_dir()
    args = _servers(file)["promptmill"]["args"]
    assert f"allowed_roots={json.dumps([str(chosen)], ensure_ascii=False)}" in args
    once = file.read_bytes()
    assert install() == 0
    assert file.read_bytes() == once, "a later run keeps it"
    assert not (tmp_path / "promptmill").exists()
    arguments = argparse.Namespace(config=None, set=[args[args.index("--set") + 1]], backend=None, model=None)
    monkeypatch.setattr("promptmill.cli.options._overrides", lambda *_: {})
    assert configuration_of(arguments).config.operator.allowed_roots == [str(chosen)]


def test_a_person_at_a_terminal_is_asked_for_the_folder(install, file, tmp_path, monkeypatch):
    asked = []

    def answered(prompt, answer="~/for mill"):
        asked.append(prompt)
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", answered)
    assert install("--dry-run") == 0
    assert not asked
    assert install() == 0
    assert asked == [f"Folder [{tmp_path / 'promptmill'}]: "]
    assert (tmp_path / "for mill").is_dir()
    assert install("--name", "other") == 0
    assert len(asked) == 2
    assert f'allowed_roots=["{tmp_path / "for mill"}"]' in _servers(file)["other"]["args"]


@pytest.mark.parametrize("folder", ["/", "~", "~/.."])
def test_a_folder_that_holds_everything_is_refused(install, file, capsys, folder):
    before = file.read_bytes()
    assert install("--folder", folder) == 2
    assert "holds all files of the user; name a folder for this purpose" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_configuration_with_folders_needs_no_other(install, file, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("allowed_roots: [/data]\n")
    assert install("--config", str(config)) == 0
    assert "allowed_roots" not in str(_servers(file)["promptmill"]["args"])
    assert not (tmp_path / "promptmill").exists()


def test_what_a_person_added_to_the_entry_stays(install, file):
    install()
    content = json.loads(file.read_text())
    content["mcpServers"]["promptmill"] |= {"env": {"LLM_API_KEY": "mine"}, "command": "/old"}
    file.write_text(json.dumps(content))
    assert install() == 0
    entry = _servers(file)["promptmill"]
    assert entry["env"] == {"LLM_API_KEY": "mine"}
    assert entry["command"] != "/old"


def test_a_dry_run_shows_the_entry_changes_nothing_and_tells_no_secret(install, file, capsys):
    assert install("--dry-run", "--name", "mill") == 0
    said = capsys.readouterr().out
    assert f"would write {file}" in said
    assert '"mill"' in said
    assert "hunter2" not in said
    assert file.read_text(encoding="utf-8") == OTHERS
    assert len(list(file.parent.iterdir())) == 2


def test_a_configuration_of_the_working_directory_is_named_by_its_whole_path(install, file):
    Path("parameter.yaml").write_text("backend: openai\n")
    assert install() == 0
    assert _servers(file)["promptmill"]["args"][-6:-4] == ["--config", str(Path.cwd() / "parameter.yaml")]


@pytest.mark.parametrize(("content", "said"), [(None, "There is no"), ("bakend: hf", "did you mean backend?")])
def test_a_configuration_that_cannot_work_is_not_installed(install, file, tmp_path, content, said, capsys):
    mine = tmp_path / "mine.yaml"
    if content:
        mine.write_text(content)
    assert install("--config", str(mine)) == 2
    assert said in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == OTHERS


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ('{"mcpServers": {\n  "a": {}\n  "b": {}}}', "line 3, column 3 is not valid JSON"),
        ('{"a": 1} mine', "line 1, column 10 is not valid JSON"),
        ('{"a": /* 1}', "line 1, column 12 is not valid JSON"),
        ('{"a": 1, "a": 2}', "the key a occurs twice"),
        ("[1]", "it should be an object, not a list"),
        ('{"mcpServers": []}', "mcpServers should be an object"),
        ('{"mcpServers": {"promptmill": 3}}', "mcpServers.promptmill should be an object"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_left_alone(install, file, broken, said, capsys):
    file.write_text(broken)
    for arguments in ([], ["--dry-run"]):
        assert install(*arguments) == 2
        out, err = capsys.readouterr()
        assert said in err
        assert '"args"' in out, "the entry is shown all the same, to be added by hand"
    assert file.read_text() == broken
    assert len(list(file.parent.iterdir())) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_stays_a_link(install, file, tmp_path):
    real = tmp_path / "dotfiles.json"
    file.rename(real)
    file.symlink_to(real)
    assert install() == 0
    assert file.is_symlink()
    assert "promptmill" in _servers(real)


def test_a_failed_write_leaves_the_file_as_it_was(install, file, monkeypatch, capsys):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    assert install() == 2
    assert "No space left on device" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == OTHERS
    assert not list(file.parent.glob("*.part"))


def test_without_a_file_named_it_is_claude_desktops_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    folder = tmp_path / "Claude"
    monkeypatch.setattr(platformdirs, "user_config_path", lambda *_, **__: folder)
    assert cli.main(["install", "claude-desktop"]) == 2
    assert str(folder) in capsys.readouterr().err
    folder.mkdir()
    assert cli.main(["install", "claude-desktop"]) == 0
    assert "promptmill" in _servers(folder / "claude_desktop_config.json")


@pytest.mark.parametrize("has_file", [True, False])
def test_an_app_from_the_windows_store_reads_the_file_of_its_package(tmp_path, monkeypatch, has_file):
    """anthropics/claude-code#26073."""
    usual, package = tmp_path / "Claude", tmp_path / "Packages" / "Claude_1a2b" / "LocalCache" / "Roaming" / "Claude"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platformdirs, "user_config_path", lambda *_, **__: usual)
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    usual.mkdir()
    package.mkdir(parents=True)
    if has_file:
        (package / "claude_desktop_config.json").write_text(OTHERS, encoding="utf-8")
    assert cli.main(["install", "claude-desktop"]) == 0
    assert "promptmill" in _servers(package / "claude_desktop_config.json")
    assert not list(usual.iterdir())


@pytest.mark.parametrize(
    ("platform", "where"),
    [
        ("macos", "Library/Application Support/Claude"),
        ("unix", ".config/Claude"),
    ],
)
def test_that_is_where_claude_desktop_keeps_it(platform, where, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    module = pytest.importorskip(f"platformdirs.{platform}")
    dirs = {"macos": "MacOS", "unix": "Unix"}[platform]
    found = getattr(module, dirs)("Claude", appauthor=False, roaming=True).user_config_path
    assert found == Path.home() / where

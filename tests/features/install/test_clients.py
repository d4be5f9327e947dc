"""`promptmill install CLIENT`: each client's own file, merged, and put back."""

import json
import os
import sys
import tomllib
from pathlib import Path

import pytest

from promptmill.cli import main as cli
from promptmill.features.install.command import CLIENTS, _lost_with
from promptmill.features.install.file_steps import write

JSON_CLIENTS = [client for client in CLIENTS if client.name != "codex"]
TOML = """\
model = "gpt-5"   # mine

[mcp_servers.other]
command = "other"

[mcp_servers.other.env]
TOKEN = "hunter2"

[tui]
theme = "dark"
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home folder in which every client has been started once; no configuration of ours around."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    for name in ("CODEX_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # not the clients of this machine
    for client in CLIENTS:
        client.file().parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / ".claude.json").write_text("{}")
    empty = tmp_path / "work"
    empty.mkdir()
    monkeypatch.chdir(empty)
    return tmp_path


def _install(name, *arguments):
    return cli.main(["install", name, *arguments])


@pytest.mark.parametrize("client", JSON_CLIENTS, ids=lambda client: client.name)
def test_an_entry_is_added_to_the_clients_own_file_and_taken_out_again(client):
    file = client.file()
    before = {client.key: {"other": {"command": "x"}}, "kept": [1, 2]}
    file.write_text(json.dumps(before))
    assert _install(client.name) == 0
    after = json.loads(file.read_text())
    assert after["kept"] == [1, 2]
    assert after[client.key]["other"] == {"command": "x"}
    added = after[client.key]["promptmill"]
    assert Path(added["command"]).is_absolute()
    assert "serve" in added["args"]
    assert added.get("type") == client.more.get("type")
    for _ in range(2):
        assert _install(client.name, "--undo") == 0
        assert json.loads(file.read_text()) == before


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
@pytest.mark.parametrize("before", [None, "{}"])
def test_undo_leaves_nothing_behind_where_nothing_was(client, before):
    """Undo kept a copy of the file with our own entry, as what was there before promptmill."""
    file = client.file()
    file.unlink(missing_ok=True)
    if before is not None:
        file.write_text(before if file.suffix != ".toml" else 'model = "x"\n')
    held = file.read_bytes() if before is not None else b""
    assert _install(client.name, "--file", str(file)) == 0
    assert _install(client.name, "--file", str(file), "--undo") == 0
    if before is None:
        assert not [path for path in file.parent.iterdir() if path.name.startswith(file.name)]
    else:
        assert file.read_bytes().strip() == held.strip()


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_dry_run_shows_the_entry_also_where_the_client_is_not(client, tmp_path, monkeypatch, capsys):
    for name in ("HOME", "USERPROFILE", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nobody"))
    assert _install(client.name, "--dry-run") == 0
    assert "promptmill" in capsys.readouterr().out
    assert not (tmp_path / "nobody").exists()


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_clients_that_give_up_after_a_minute_get_max_call_s(client, capsys):
    assert _install(client.name, "--dry-run") == 0
    assert ("max_call_s=50" in capsys.readouterr().out) == client.gives_up


@pytest.mark.parametrize(
    "client", [client for client in JSON_CLIENTS if client.variable], ids=lambda client: client.name
)
def test_a_variable_is_passed_on_by_name_and_its_value_is_never_written(client, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "sk-secret-of-mine")
    assert _install(client.name, "--env", "MY_API_KEY") == 0
    text = client.file().read_text()
    assert json.loads(text)[client.key]["promptmill"]["env"] == {"MY_API_KEY": client.variable % "MY_API_KEY"}
    assert "sk-secret-of-mine" not in text


@pytest.mark.parametrize("client", [c for c in CLIENTS if c.variable or c.name == "codex"], ids=lambda c: c.name)
def test_again_without_env_keeps_and_shows_the_variable(client, capsys):
    _install(client.name, "--env", "OPENAI_API_KEY")
    before = client.file().read_bytes()
    capsys.readouterr()
    assert _install(client.name) == 0
    assert client.file().read_bytes() == before
    assert "OPENAI_API_KEY" in capsys.readouterr().out


def test_codex_keeps_the_variables_when_the_entry_changes(home):
    _install("codex", "--env", "OPENAI_API_KEY")
    (home / "own.yaml").write_text("backend: openai\n")
    _install("codex", "--config", str(home / "own.yaml"))
    entry = tomllib.loads((home / ".codex" / "config.toml").read_text())["mcp_servers"]["promptmill"]
    assert entry["env_vars"] == ["OPENAI_API_KEY"]
    assert "own.yaml" in str(entry["args"])


def test_claude_desktop_cannot_pass_on_a_variable_and_says_what_to_do(capsys):
    assert _install("claude-desktop", "--env", "MY_API_KEY") == 2
    assert '"env": {"MY_API_KEY": "…"}' in capsys.readouterr().err


def test_codex_keeps_the_environment_that_a_person_added_below_the_entry(home):
    file = home / ".codex" / "config.toml"
    file.write_text(TOML + '\n[mcp_servers.promptmill]\ncommand = "old"\n\n[mcp_servers.promptmill.env]\nA = "b"\n')
    assert _install("codex") == 0
    entry = tomllib.loads(file.read_text())["mcp_servers"]["promptmill"]
    assert entry["command"] != "old"
    assert entry["env"] == {"A": "b"}
    assert _install("codex", "--undo") == 0
    assert tomllib.loads(file.read_text())["mcp_servers"]["promptmill"] == {"command": "old", "env": {"A": "b"}}


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("a = ", "is not valid TOML: Invalid value (at end of document)"),
        ("mcp_servers = 3", "mcp_servers should be an object, not a number"),
        ("[mcp_servers]\npromptmill = 3", "mcp_servers.promptmill should be an object, not a number"),
        ('mcp_servers = {other = {command = "x"}}', "the entry has an unusual form; edit it by hand"),
        ('a = """\n[mcp_servers.promptmill]\n[b]\n"""\n', "the entry has an unusual form; edit it by hand"),
    ],
)
def test_a_file_of_codex_that_is_not_as_it_should_be_is_left_alone(home, capsys, broken, said):
    file = home / ".codex" / "config.toml"
    file.write_text(broken)
    assert _install("codex") == 2
    assert said in capsys.readouterr().err
    assert file.read_text() == broken


def test_the_first_backup_is_never_overwritten(home):
    file = home / ".cursor" / "mcp.json"
    file.write_text('{"first": 1}')
    assert _install("cursor") == 0
    assert _install("cursor", "--name", "second") == 0
    assert json.loads((home / ".cursor" / "mcp.json.before-promptmill").read_text()) == {"first": 1}


OWN = '{"command": "mine", "timeout": 7}'
JSON_FILES = {
    "comments": """{
  // mine
  "servers": {
    "a": {"command": "x"} // , }
    /* "b": 1, */
  },
  "inputs": []
}
""",
    "last commas": '{\n\t"servers": {\n\t\t"a": {"args": [1,],},\n\t},\n}\n',
    "an empty object": '{\n    "servers": {\n        // none yet\n    }\n}',
    "no servers": '// top\r\n{\r\n  "other": "//no/*comment" // c\r\n}\r\n',
    "one line": '{"servers":{"a":{}},"z":12345678901234567890}',
    "nothing but braces": "{}",
    "a comment alone": "{ /* here */ }\n",
    "a byte order mark": '\ufeff{"servers": {\n}}',
    "an entry of the user's own": f'{{\n  "servers": {{\n    "promptmill": {OWN}, // mine\n    "b": {{}}\n  }}\n}}\n',
}


@pytest.mark.thorough
@pytest.mark.parametrize("before", JSON_FILES.values(), ids=JSON_FILES)
def test_every_other_byte_of_a_file_stays(before):
    file = next(client for client in CLIENTS if client.name == "vscode").file()
    file.write_bytes(before.encode())
    assert _install("vscode") == 0
    after = file.read_bytes().decode()
    if OWN in before:
        begin, _, end = before.partition(OWN)
        assert after.startswith(begin)
        assert after.endswith(end)
    else:
        letters = iter(after)
        assert all(letter in letters for letter in before), "text was only added"
    found = _json_with_comments(after)
    assert found["servers"]["promptmill"]["args"][:1] == ["serve"]
    others = {name: entry for name, entry in found["servers"].items() if name != "promptmill"}
    assert others == {
        name: entry for name, entry in _json_with_comments(before).get("servers", {}).items() if name != "promptmill"
    }
    assert _install("vscode") == 0
    assert file.read_bytes().decode() == after, "a second time changes nothing"
    assert _install("vscode", "--undo") == 0
    assert file.read_bytes().decode() == before


def _json_with_comments(text):
    """Read a file as VS Code does, in a slow way that has nothing in common with ours."""
    plain, at, in_string = "", 0, False
    text = text.removeprefix("\ufeff")
    while at < len(text):
        if not in_string and text.startswith("//", at):
            at = (text + "\n").index("\n", at)
        elif not in_string and text.startswith("/*", at):
            at = text.index("*/", at) + 2
        else:
            in_string ^= text[at] == '"'
            if not in_string and text[at] in "]}":
                plain = plain.rstrip().removesuffix(",")
            plain += text[at]
            at += 1
    return json.loads(plain)


@pytest.mark.parametrize("before", JSON_FILES.values(), ids=JSON_FILES)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_undo_keeps_what_was_changed_meanwhile(before, place):
    file = next(client for client in CLIENTS if client.name == "vscode").file()
    file.write_bytes(before.encode())
    assert _install("vscode") == 0
    found = _json_with_comments(file.read_text(encoding="utf-8"))
    servers = found["servers"]
    mine = servers.pop("promptmill")
    ours, new = {"promptmill": mine}, {"new": {"command": "y"}}
    order = {"first": [ours, servers, new], "middle": [servers, ours, new], "last": [servers, new, ours]}[place]
    found["servers"] = {name: entry for part in order for name, entry in part.items()}
    file.write_text(json.dumps(found, indent=2))
    assert _install("vscode", "--undo") == 0
    left = _json_with_comments(file.read_text(encoding="utf-8"))
    own = _json_with_comments(before).get("servers", {}).get("promptmill")
    assert left["servers"].pop("new") == {"command": "y"}
    assert left["servers"].pop("promptmill", None) == own
    assert left == {**found, "servers": servers}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["vscode", "codex"])
def test_an_entry_of_the_users_own_is_replaced_with_a_message_and_restored(capsys, name):
    file = next(client for client in CLIENTS if client.name == name).file()
    own = '{"servers": {"promptmill": {"command": "mine"}}}'
    before = own if name == "vscode" else TOML + '\n[mcp_servers.promptmill]\ncommand = "mine"  # own\n\n[z]\na = 1\n'
    file.write_text(before)
    message = f"replace the entry promptmill in {file}\n"
    assert _install(name, "--dry-run") == 0
    assert f"would {message}" in capsys.readouterr().out
    assert file.read_text() == before
    assert _install(name) == 0
    out = capsys.readouterr().out
    assert message in out
    assert "--undo restores the earlier entry." in out
    assert '"mine"' not in file.read_text()
    assert _install(name, "--undo") == 0
    assert file.read_text() == before


def test_codex_keeps_every_other_byte(home):
    file = home / ".codex" / "config.toml"
    before = TOML.replace("\n", "\r\n").encode()
    file.write_bytes(before)
    assert _install("codex") == 0
    assert file.read_bytes().startswith(before)
    assert _install("codex", "--undo") == 0
    assert file.read_bytes() == before


def test_comments_behind_codexs_entry_stay(home):
    file = home / ".codex" / "config.toml"
    file.write_text(TOML)
    assert _install("codex") == 0
    later = '\n# mine, too\n[profiles.fast]\nmodel = "m"\n\n# the end\n'
    file.write_text(file.read_text() + later)
    assert _install("codex", "--env", "MY_API_KEY") == 0
    assert file.read_text().endswith(later)
    assert _install("codex", "--undo") == 0
    assert file.read_text().strip() == (TOML + later).strip()


def test_no_folder_is_made_for_a_file_that_is_named(tmp_path, capsys):
    assert _install("cursor", "--file", str(tmp_path / "nodir" / "mcp.json")) == 2
    assert "--file: there is no folder" in capsys.readouterr().err
    assert not (tmp_path / "nodir").exists()


def test_a_client_that_was_never_started_is_named_with_its_file(home, capsys):
    (home / ".cursor").rmdir()
    assert _install("cursor") == 2
    said = capsys.readouterr().err
    assert f"Cursor seems not to be installed: the folder {home / '.cursor'} is missing" in said
    assert "--file" in said


@pytest.mark.parametrize("given", ["OPENAI_API_KEY=sk-123", "=sk-123", "sk-123"])
def test_a_value_behind_env_is_refused_and_not_shown(home, capsys, given):
    assert cli.main(["install", "cursor", "--env", given]) == 2
    out, err = capsys.readouterr()
    assert "--env takes only a name: --env OPENAI_API_KEY" in err
    assert "sk-123" not in out + err
    assert not (home / ".cursor" / "mcp.json").exists()


def test_a_dry_run_for_codex_shows_its_entry_as_toml(capsys):
    assert _install("codex", "--dry-run") == 0
    shown = capsys.readouterr().out
    entry = tomllib.loads(shown.partition("The entry:\n")[2].partition("\nNo API key")[0])
    assert entry["mcp_servers"]["promptmill"]["args"][0] == "serve"


def test_an_entry_that_ends_with_a_checkout_is_noted(tmp_path):
    package = tmp_path / "checkout" / "src" / "promptmill"
    package.mkdir(parents=True)
    assert _lost_with(package) == ""
    (tmp_path / "checkout" / ".git").mkdir()
    assert _lost_with(package).splitlines()[1] == f"  uv tool install {tmp_path / 'checkout'}"


@pytest.mark.thorough
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_without_projects_gets_a_folder(client, home, tmp_path):
    """Others start servers in the folder of the user's project."""
    assert _install(client.name) == 0
    text = client.file().read_text()
    assert ("allowed_roots" in text) is not client.has_project
    assert (home / "promptmill").is_dir() is not client.has_project
    assert _install(client.name, "--folder", str(tmp_path / "other")) == 0
    assert "other" in client.file().read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="the programs are scripts")
@pytest.mark.parametrize(("name", "program"), [("claude-code", "claude"), ("codex", "codex"), ("gemini-cli", "gemini")])
def test_the_clients_own_command_is_never_run(home, name, program):
    """`codex mcp add` rewrites the entries of others and loses the file's comments."""
    (home / "bin").mkdir()
    script = home / "bin" / program
    script.write_text(f"#!/bin/sh\n: > {home}/called\n")
    script.chmod(0o755)
    assert _install(name) == 0
    assert _install(name, "--undo") == 0
    assert not (home / "called").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_a_file_that_is_made_under_an_open_umask_can_be_changed_by_this_user_alone(tmp_path):
    before = os.umask(0)
    try:
        write(tmp_path / "config" / "client" / "settings.json", b"{}").act()
    finally:
        os.umask(before)
    made = list((tmp_path / "config").rglob("*"))
    assert len(made) == 2
    assert [path for path in made if path.stat().st_mode & 0o022] == []

"""A folder with planted secrets, as an agent with injected arguments may find it."""

from __future__ import annotations

import json
from pathlib import Path

from fakes import KEY

SECRET = "hunter2-the-secret"
ROWS = f"text\n{SECRET}\n"
VENDOR_KEY = "sk-proj-0123456789abcdefghij"
NAMES = {
    **dict.fromkeys((".env", ".env.csv", ".bashrc", ".npmrc", ".hidden/notes.txt", ".codex/session.jsonl"), SECRET),
    **dict.fromkeys(("prod.env", "prod.env.csv", "id_rsa", "server.key", "tls.pem", "terraform.tfstate"), SECRET),
    **dict.fromkeys(("credentials.json", "passwords.csv", "Chrome Passwords.csv", "bitwarden_export_2026.csv"), SECRET),
    **dict.fromkeys(("secrets/prod.txt", "api_keys.tsv", "token.txt", "github_token.txt", "cookies.txt"), SECRET),
    **dict.fromkeys(("parameter.yaml", "PARAMETER.YML", "parameter.yaml.bak", "sub/parameter.yaml"), SECRET),
    "settings.py": f"SECRET_KEY = '{SECRET}'",
    "docker-compose.yml": f"services:\n  db:\n    environment:\n      POSTGRES_PASSWORD: {SECRET}\n",
    "mcp.json": json.dumps({"mcpServers": {"x": {"env": {"GITHUB_TOKEN": SECRET}}}}),
    "appsettings.json": json.dumps({"ConnectionStrings": {"Default": f"Server=db;User Id=sa;Password={SECRET};"}}),
    "database.yml": f"production:\n  password: {SECRET}\n",
    "wp.php": f"define('DB_PASSWORD', '{SECRET}');",
    "pip.conf": f"[global]\nindex-url = https://me:{SECRET}@host.example/simple\n",
    "maven.xml": f"<server><password>{SECRET}</password></server>",
    "application.properties": f"spring.datasource.password={SECRET}\n",
    "main.tf": f'resource "x" "y" {{\n  password = "{SECRET}"\n}}\n',
    "run.sh": f"export DB_PASSWORD={SECRET}\n",
    "deploy.key.txt": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n",
    "notes.txt": f"The key is {KEY}. {SECRET}",
    "notes16.txt": "",
    "curl.md": f"curl -H 'Authorization: Bearer abcdef0123456789' # {SECRET}",
    "vendor.py": f"client = Client('{VENDOR_KEY}')  # {SECRET}",
    "k8s.yaml": f"apiVersion: v1\nkind: Secret\nstringData:\n  x: {SECRET}\n",
}
"""Files of which none may be sent, with their contents."""
HARMLESS = {"readme.md": "Read me.", "src/app.py": "token = request.token\n", "data.csv": "text\nfine\n"}


def plant(path: Path) -> Path:
    """Write all of them into a new folder; return it."""
    for name, content in {**NAMES, **HARMLESS}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content)
    (path / "notes16.txt").write_text(f"The key is {KEY}. {SECRET}", encoding="utf-16")
    return path

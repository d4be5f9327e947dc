"""The files in deploy/: they name options that exist, and nginx, Caddy and systemd accept them where installed.

Proxies in use: tests/http/test_proxies.py.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from promptmill.cli.main import parser_of
from promptmill.config.configuration import Configuration
from promptmill.http.prometheus import FAMILIES, full_name
from sure import sure

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def _options(arguments):
    return parser_of().parse_args(arguments)


def test_the_container_starts_with_options_that_exist_and_copies_files_that_exist():
    text = (DEPLOY / "Dockerfile").read_text()
    command = json.loads(sure(re.search(r"^ENTRYPOINT (.+)$", text, re.MULTILINE))[1])
    assert _options(command[1:]).http == "0.0.0.0:8000"
    copied = [line.split()[1] for line in text.splitlines() if line.startswith("COPY") and "--from" not in line]
    assert all((ROOT / path).exists() for path in copied), copied


def test_the_containers_configuration_takes_the_endpoint_from_the_environment():
    environment = {"PROMPTMILL_BASE_URL": "https://api.example.com/v1", "PROMPTMILL_MODEL": "m"}
    config = Configuration.load(DEPLOY / "parameter.yaml", environ=environment).config
    assert (config.backend, config.model) == ("openai", "m")
    assert config.settings.backend_configs.openai.base_url == ["https://api.example.com/v1"]


def test_compose_and_kubernetes_start_the_server_with_options_that_exist():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    deployment, _ = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for more in (services["promptmill"]["command"], container["args"]):
        assert _options(["serve", "--http", "0.0.0.0:8000", *more]).allowed_host
    assert services["promptmill"]["build"]["dockerfile"] == "deploy/Dockerfile"


def test_the_systemd_unit_starts_the_server_with_options_that_exist():
    command = sure(re.search(r"^ExecStart=(.+)$", (DEPLOY / "promptmill.service").read_text(), re.MULTILINE))[1]
    assert _options(shlex.split(command)[1:]).token_file


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
def test_the_systemd_unit_is_hardened():
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=40", str(DEPLOY / "promptmill.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
def test_systemd_knows_every_line_of_the_unit(tmp_path):
    unit = tmp_path / "promptmill.service"
    unit.write_text((DEPLOY / unit.name).read_text().replace("/opt/promptmill/bin/promptmill", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, str(unit) in done.stderr) == (0, False), done.stderr


def test_the_systemd_unit_has_a_home_which_a_dynamic_user_is_not_given():
    lines = (DEPLOY / "promptmill.service").read_text().splitlines()
    assert "DynamicUser=yes" in lines
    assert any(line.startswith("Environment=HOME=/var/lib/promptmill") for line in lines)


def test_what_the_container_may_write_belongs_to_its_user():
    user = re.search(r"useradd --create-home --uid (\d+) mill", (DEPLOY / "Dockerfile").read_text())
    assert user
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["promptmill"]
    assert service["volumes"] == ["home:/home/mill"], "a tmpfs there belongs to root, with the folder's mode"
    assert service["tmpfs"] == ["/tmp"]
    deployment, _ = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    assert deployment["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == int(user[1])


def test_kubernetes_knows_every_field_of_the_manifests():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for resource in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()):
        kubernetes_validate.validate(resource, "1.33", strict=True)


@pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not here")
def test_nginx_accepts_its_configuration(tmp_path):
    key, certificate = tmp_path / "privkey.pem", tmp_path / "fullchain.pem"
    subprocess.run(
        [
            *shlex.split("openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=x -out"),
            str(certificate),
            "-keyout",
            str(key),
        ],
        check=True,
        capture_output=True,
    )
    file = tmp_path / "nginx.conf"
    text = (DEPLOY / "nginx.conf").read_text().replace("/etc/promptmill/tls", str(tmp_path))
    file.write_text(f"pid {tmp_path}/nginx.pid;\n{text}")
    done = subprocess.run(["nginx", "-t", "-c", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("caddy"), reason="Caddy is not here")
def test_caddy_accepts_its_configuration():
    command = ["caddy", "validate", "--adapter", "caddyfile", "--config", str(DEPLOY / "Caddyfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _dashboard():
    return json.loads((DEPLOY / "grafana.json").read_text())


def test_each_query_of_the_dashboard_names_a_metric_and_labels_that_exist():
    exported = set()
    for name, (kind, _) in FAMILIES.items():
        whole = full_name(name)
        exported |= {f"{whole}_{end}" for end in ("bucket", "sum", "count")} if kind == "histogram" else {whole}
    queries = [target["expr"] for panel in _dashboard()["panels"] for target in panel.get("targets", ())]
    for query in queries:
        assert query.count("(") == query.count(")")
        bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", query)
        named = set(re.findall(r"\b(?:promptmill|gen_ai)_\w+", bare))
        assert named, query
        assert named <= exported, query
        labels = {label.strip() for by in re.findall(r"by \(([^)]*)\)", bare) for label in by.split(",")}
        labels |= set(re.findall(r"[{,](\w+)=~", query))
        assert labels <= {"provider", "model", "outcome", "le"}, query
        counters = {full_name(name) for name, (kind, _) in FAMILIES.items() if kind == "counter"} & named
        assert not counters or re.search(r"rate\(|increase\(|job_cost", query), f"a counter needs a rate: {query}"
    assert {"promptmill_items_total", "promptmill_job_rows"} <= set(
        " ".join(queries).replace("{", " ").replace("(", " ").split()
    )


def test_the_dashboard_has_the_structure_that_grafana_reads():
    """The structure is that of the types in @grafana/schema 13.2, made into a JSON Schema without further fields."""
    found = _dashboard()
    assert found["schemaVersion"] >= 36
    assert "id" not in found, "an id belongs to one Grafana; the uid is enough"
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        assert 0 <= at["x"] < at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        assert panel["type"] in {"row", "timeseries", "stat"}
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["overrides"] == []
        if panel["type"] == "timeseries":
            assert set(panel["options"]["legend"]) == {"displayMode", "placement", "showLegend", "calcs"}
            assert set(panel["options"]["tooltip"]) == {"mode", "sort"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
    variables = {variable["name"]: variable["type"] for variable in found["templating"]["list"]}
    assert variables == {"datasource": "datasource", "provider": "query", "model": "query"}
    used = set(re.findall(r"\$\{?(?!__)(\w+)", json.dumps(found)))
    assert used == set(variables)

"""Runs without a terminal: exit codes, whatever writes to the terminal, and the examples of docs/pipelines.md."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest
import yaml

from tests.unit.standins import ROOT, Project

EXAMPLES = ROOT / "docs/examples"
FIX = ("ansible-playbook", "-i", "inventory/mine", "fix_network.yml")
# What ansible-runner sets: a callback of its own (made from the default one), and where to look for it.
RUNNER = {"ANSIBLE_STDOUT_CALLBACK": "default", "ANSIBLE_CALLBACK_PLUGINS": "/nowhere"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def unreachable(project: Project) -> None:
    """Nothing listens where the machines should be."""
    host = {"ansible_host": "127.0.0.1", "ansible_port": 1}
    (project.directory / "inventory/mine/hosts.json").write_text(json.dumps({"k3s_cluster": {"hosts": {"a": host}}}))


def held(project: Project) -> None:
    project.forward_nothing()
    project.lend("ci@other/17")


class Run(NamedTuple):
    broken: Callable[[Project], None] | None
    arguments: tuple[str, ...]
    code: int
    said: str


RUNS = {
    "healthy": Run(None, (), 0, "Healthy."),
    "healthy, checked": Run(None, ("--check",), 0, "Healthy."),
    "mended": Run(Project.forward_nothing, (), 0, "Mended: ip-forward-off."),
    "drift": Run(Project.forward_nothing, ("--check", "--diff"), 10, "Would change: iptables_forward."),
    "left": Run(Project.drop_in_the_fabric, ("--check",), 2, "Findings left: vxlan-dropped-by-fabric."),
    "another run": Run(held, (), 1, "another run changes this cluster: ci@other/17"),
    "no such consent": Run(None, ("-e", "netmend_swap=yes"), 1, "netmend_swap is yes, and must be auto, always or"),
    "unreachable": Run(unreachable, ("--check",), 1, "gave the cluster's state. a: Failed to connect to the host"),
}


@pytest.mark.parametrize("callback", [{}, RUNNER], ids=["own", "runner's"])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_how_a_run_ends(run: Run, callback: dict[str, str], project: Project) -> None:
    if run.broken:
        run.broken(project)
    done = project.run(*FIX, *run.arguments, **callback)
    assert done.returncode == run.code, done.stdout + done.stderr
    assert run.said in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert project.reports.exists() == (run.code != 1)
    if run.code != 1:
        assert run.said in project.report()["verdict"]
        assert project.report()["drift"] == (run.code == 10)


def test_a_node_that_cannot_probe_is_missed_and_the_others_are_judged(project: Project) -> None:
    project.answer("agent0/netmend_connectivity.json", {"failed": True, "msg": "no memory is left"})
    done = project.run(*FIX)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search("goes on without agent0: .*no memory is left", done.stdout)
    matrix = project.report()["now"]["matrix"]
    assert 0 < matrix["ok"] < matrix["total"]


def test_a_score_decides_alone(project: Project) -> None:
    project.forward_nothing()
    done = project.run(*FIX, "--check", "-e", "netmend_accept_score=0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert project.report()["drift"]


def test_diagnose_finds_no_drift_but_findings(project: Project) -> None:
    project.forward_nothing()
    done = project.run("ansible-playbook", "-i", "inventory/mine", "diagnose.yml", "--check")
    assert done.returncode == 2, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("--chekc", "fix_network.yml"), 2), (("-i", "nowhere", "fix_network.yml"), 1), (("ansible.cfg",), 4)],
)
def test_what_ansible_ends_with_before_it_runs_anything(
    arguments: tuple[str, ...], code: int, project: Project
) -> None:
    done = project.run("ansible-playbook", "-i", "inventory/mine", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert not project.reports.exists()


def test_what_was_rescued_is_no_error(project: Project) -> None:
    tasks = [{"block": [{"ansible.builtin.fail": None}], "rescue": [{"ansible.builtin.debug": {"msg": "rescued"}}]}]
    play = [{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]
    (project.directory / "rescue.yml").write_text(yaml.safe_dump(play))
    done = project.run("ansible-playbook", "-i", "localhost,", "rescue.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_asks() -> None:
    asking = re.compile(r"\b(vars_prompt|ansible\.builtin\.pause|ask_pass|become_ask_pass)\b")
    files = [*ROOT.glob("*.yml"), *ROOT.glob("playbooks/**/*.yml"), *ROOT.glob("roles/**/*.yml"), ROOT / "ansible.cfg"]
    assert not [file for file in files if asking.search(file.read_text())]


# --- the examples ---


def script(project: Project, lines: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs lines of an example as the pipelines' shells do; what Install makes is there already."""
    (project.directory / ".venv").symlink_to(Path(sys.executable).parents[1])
    return project.run("bash", "-eo", "pipefail", "-c", "\n".join(lines), **environment)


def installed(lines: list[str]) -> tuple[list[str], list[str]]:
    """Lines of a script -> those that install, and the others."""
    install = [line for line in lines if "venv .venv" in line or "pip install" in line]
    return install, [line for line in lines if line not in install]


def needed() -> str:
    return next(line for line in (ROOT / "requirements.in").read_text().splitlines() if "ansible-core" in line)


def github() -> dict[str, Any]:
    steps = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text())["jobs"]["network"]["steps"]
    return {step["name"]: step for step in steps if "name" in step}


@pytest.mark.parametrize(("check", "code", "verdict"), [("--check", 10, "Would change"), ("", 0, "Mended")])
def test_github(check: str, code: int, verdict: str, project: Project, tmp_path: Path) -> None:
    project.forward_nothing()
    summary = tmp_path / "summary"
    variables = {"RUNNER_TEMP": str(tmp_path), "GITHUB_STEP_SUMMARY": str(summary), "SSH_KEY": "key", "CHECK": check}
    done = script(project, [github()["Run"]["run"]], **variables)
    assert done.returncode == code, done.stdout + done.stderr
    assert not (tmp_path / "key").exists()
    assert project.run("bash", "-ec", github()["Summary"]["run"], **variables).returncode == 0
    assert summary.read_text().startswith("# netmend: ")
    assert verdict in summary.read_text()


def test_github_finds_what_it_keeps(project: Project) -> None:
    job = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text())["jobs"]["network"]
    assert job["env"]["CHECK"] == "${{ !inputs.mend && '--check' || '' }}"
    upload = next(step for step in job["steps"] if "upload-artifact" in step.get("uses", ""))
    assert project.directory / upload["with"]["path"] == project.reports
    install = github()["Install"]["run"].splitlines()
    assert f'pip install "{needed()}"' in install[-1]


@pytest.mark.parametrize(("job", "code"), [("detect", 10), ("mend", 0)])
def test_gitlab(job: str, code: int, project: Project, tmp_path: Path) -> None:
    project.forward_nothing()
    pipeline = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text())
    jobs = {"detect": pipeline["detect"], "mend": pipeline["mend"]}
    before = pipeline[jobs[job]["extends"]]
    install, rest = installed([*before["before_script"], *jobs[job]["script"]])
    key = tmp_path / "key"
    key.touch(0o666)
    done = script(project, rest, NETMEND_SSH_KEY=str(key))
    assert done.returncode == code, done.stdout + done.stderr
    assert key.stat().st_mode & 0o777 == 0o400
    assert jobs["detect"]["allow_failure"]["exit_codes"] == 10
    assert project.directory / before["artifacts"]["reports"]["junit"] == project.reports / "report.xml"
    assert project.directory / before["artifacts"]["paths"][0] == project.reports
    assert f'pip install "{needed()}"' in install[-1]


def unit(name: str) -> ConfigParser:
    """A unit file; of settings that come several times the last one."""
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # as configparser's documentation does it
    parser.read_string((EXAMPLES / "systemd" / name).read_text())
    return parser


@pytest.mark.parametrize(("environment", "code"), [("CHECK=--check", 10), ("CHECK=", 0)])
def test_a_timer_starts(environment: str, code: int, project: Project) -> None:
    project.forward_nothing()
    service = unit("netmend.service")["Service"]
    assert unit("netmend.timer")["Timer"]["OnCalendar"] == "hourly"
    assert environment.startswith(service["Environment"].partition("=")[0])
    command = service["ExecStart"].removeprefix(service["WorkingDirectory"] + "/")
    done = script(project, [f"export {environment}", command])
    assert done.returncode == code, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
def test_units_are_as_systemd_wants_them(tmp_path: Path) -> None:
    program = tmp_path / ".venv/bin/ansible-playbook"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    for file in (EXAMPLES / "systemd").iterdir():
        (tmp_path / file.name).write_text(file.read_text().replace("/opt/netmend", str(tmp_path)))
    files = [str(tmp_path / f"netmend.{kind}") for kind in ("service", "timer")]
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_runners_settings(project: Project) -> None:
    project.forward_nothing()
    settings = yaml.safe_load((EXAMPLES / "envvars").read_text())
    known = project.run("ansible-config", "list", "--format", "json", "--type", "all").stdout
    assert [name for name in settings if f'"{name}"' not in known] == []
    done = project.run(*FIX, "--check", **settings)
    assert done.returncode == 10, done.stdout + done.stderr


def test_what_an_execution_environment_holds() -> None:
    """Its shape is ansible-lint's to check."""
    environment = yaml.safe_load((EXAMPLES / "execution-environment.yml").read_text())
    assert environment["dependencies"]["ansible_core"]["package_pip"] == needed()


# --- the page ---


def test_the_page_names_every_example_and_code() -> None:
    page = (ROOT / "docs/pipelines.md").read_text()
    for file in (path for path in EXAMPLES.rglob("*") if path.is_file()):
        assert f"(examples/{file.relative_to(EXAMPLES)})" in page
    for code in {run.code for run in RUNS.values()}:
        assert re.search(rf"^\| {code} \|", page, re.MULTILINE)


def test_the_commands_of_the_page_run(project: Project) -> None:
    page = (ROOT / "docs/pipelines.md").read_text()
    commands = [line.strip() for line in page.splitlines() if line.startswith("    ansible-playbook ")]
    assert commands
    for command in commands:
        done = project.run(*shlex.split(command, comments=True))
        assert done.returncode == 0, done.stdout + done.stderr

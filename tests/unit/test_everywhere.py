"""A measuring module on all hosts at once, as Ansible's own process for a host would run it, if there was one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.unit.playbooks import run

SILENT = "#!/bin/sh\nexec sleep 600\n"
BROKEN = "#!/bin/sh\necho no Python here >&2\nexit 1\n"
LOCAL = {"ansible_connection": "local"}


def everywhere(
    directory: Path, hosts: dict[str, Any], *arguments: Any, ignore_errors: bool = True, **options: Any
) -> tuple[int, Any, str]:
    """The playbook's exit code, what is registered of netmend_connectivity with an echo on each host, and output."""
    (directory / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    asked = {"probes": [{"id": "echo", "protocol": "icmp", "address": "127.0.0.1"}]}
    call = {"module": "netmend_connectivity", "hosts": json.dumps(dict.fromkeys(hosts, asked)), **options}
    task = {"netmend_everywhere": call, "register": "found", "run_once": True, "ignore_errors": ignore_errors}
    say = {"ansible.builtin.debug": {"msg": "FOUND {{ found | to_json }}"}, "run_once": True}
    play = {"hosts": "all", "gather_facts": False, "tasks": [{"name": "Ask", **task}, {"name": "Say", **say}]}
    (directory / "play.yml").write_text(yaml.safe_dump([play]))
    done = run(directory / "play.yml", "-i", directory / "hosts.yml", *arguments)
    found = done.stdout.partition("FOUND ")[2].splitlines()
    return done.returncode, json.loads(found[0]) if found else None, done.stdout


def interpreter(directory: Path, name: str, text: str) -> dict[str, Any]:
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)
    return {**LOCAL, "ansible_python_interpreter": str(path)}


def test_each_host_is_asked_by_its_own_connection_and_as_its_own_user(tmp_path: Path) -> None:
    """The first one's address and user are not the others'."""
    name = '#!/bin/sh\nexec unshare --uts sh -c \'hostname {0}; exec /usr/bin/python3 "$@"\' sh "$@"\n'
    hosts = {each: interpreter(tmp_path, each, name.format(each)) for each in "abc"}
    hosts["a"].update(ansible_user="someone", ansible_host="127.0.0.9")
    ssh = interpreter(tmp_path, "ssh", '#!/bin/sh\necho "$@" >&2\nexit 255\n')["ansible_python_interpreter"]
    away = {"ansible_connection": "ssh", "ansible_ssh_executable": ssh}
    hosts.update(d={**away, "ansible_user": "other"}, e={**away, "ansible_host": "127.0.0.2"})
    code, found, output = everywhere(tmp_path, hosts)
    assert code == 0, output
    assert not found["failed"]
    answers = found["answers"]
    assert {host: answers[host]["netmend_connectivity"]["node"] for host in "abc"} == {"a": "a", "b": "b", "c": "c"}
    assert [answers[host]["unreachable"] for host in "de"] == [True, True]
    assert 'User="other"' in answers["d"]["msg"]
    assert "127.0.0.2" in answers["e"]["msg"]
    assert not {"someone", "127.0.0.9"} & {*answers["d"]["msg"].split(), *answers["e"]["msg"].split()}
    assert "User=" not in answers["e"]["msg"]
    calls = [found["answers"][host]["netmend_call"] for host in "abc"]
    assert all(0 < call["sent"] < call["received"] for call in calls)


def test_a_host_without_python_fails_it_and_the_others_have_answered(tmp_path: Path) -> None:
    hosts = {"good": LOCAL, "broken": interpreter(tmp_path, "python", BROKEN)}
    code, found, output = everywhere(tmp_path, hosts)
    assert code == 0, output
    assert found["failed"]
    assert found["msg"].startswith("broken: ")
    assert found["answers"]["good"]["netmend_connectivity"]["observations"][0]["outcome"] == "ok"
    code, found, output = everywhere(tmp_path, hosts, ignore_errors=False)
    assert (code, found) == (1, None)
    assert "broken: " in output


def test_who_takes_too_long_is_not_waited_for_and_gives_others_its_turn(tmp_path: Path) -> None:
    silent = interpreter(tmp_path, "python", SILENT)
    hosts = {"one": silent, "two": silent, "good": LOCAL}
    _, found, _ = everywhere(tmp_path, hosts, "--forks", "1", limit=3)
    assert found["msg"] == "one: no answer within 3 s; two: no answer within 3 s"
    assert found["answers"]["good"]["netmend_connectivity"]["observations"][0]["outcome"] == "ok"


def test_at_once_is_more_than_forks(tmp_path: Path) -> None:
    """Each waits until the others are there, too."""
    there = tmp_path / "there"
    there.mkdir()
    wait = f"until [ $(ls {there} | wc -l) -ge 3 ]; do sleep 0.1; done"
    text = f'#!/bin/sh\ntouch {there}/$$\n{wait}\nexec python3 "$@"\n'
    hosts = dict.fromkeys("abc", interpreter(tmp_path, "python", text))
    _, found, output = everywhere(tmp_path, hosts, "--forks", "1", at_once=True, limit=60)
    assert not found["failed"], output


def test_what_no_action_plugin_runs_is_said(tmp_path: Path) -> None:
    code, _, output = everywhere(tmp_path, {"here": LOCAL}, module="netmend_nothing", ignore_errors=False)
    assert code == 1
    assert "there is no action plugin of the name netmend_nothing" in output

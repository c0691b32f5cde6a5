"""Runs a measuring module on all hosts at once, from the one process that works on this task.

Ansible forks a process for each host and task, which begins with all that is known of the others and hands a copy of
what it found to the one before: of a few hundred hosts that costs more than all measuring. Here a thread waits for
each host. What Ansible does for a host beside that is done in turn, as it is not made for threads.
"""

from __future__ import annotations

import contextvars
import json
import time
from collections import deque
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Mapping

from ansible.errors import AnsibleActionFail
from ansible.executor.process import worker
from ansible.executor.task_executor import TaskExecutor
from ansible.plugins.action import ActionBase

LIMIT = 90  # seconds
QUOTED = 3  # of the hosts that failed


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible ships no types
    """Arguments: ``module``; ``hosts``, its arguments by host, as JSON, in which Ansible looks for no templates;
    ``at_once``: it has to run on all at the same time, and not on as many as there are forks; ``limit``, the seconds
    that a host may take once it is its turn.

    Returns ``answers``: by host what the module says there, and ``netmend_call``, when it was ``sent`` and the answer
    ``received``, in seconds since the epoch. An unreachable host is an answer, too. Fails where a module does, or is
    not over within the limit, and has all answers nevertheless.
    """

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("module", "hosts", "at_once", "limit"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        known, asked = task_vars or {}, self._task.args
        module, hosts = asked["module"], json.loads(asked["hosts"])
        # Threads that load a plugin at the same time may see it before it is complete.
        if not self._shared_loader_obj.action_loader.get(module, class_only=True):
            raise AnsibleActionFail(f"there is no action plugin of the name {module}")
        executors = [self._executor(module, host, arguments, known) for host, arguments in hosts.items()]
        at_a_time = len(hosts) if asked.get("at_once") else int(known["ansible_forks"])
        answers = _answers(executors, at_a_time, float(asked.get("limit", LIMIT)))
        warnings = [warning for answer in answers.values() for warning in answer.pop("warnings", [])]
        failed = [f"{host}: {answer.get('msg', '')}" for host, answer in answers.items() if answer.get("failed")]
        if failed:
            more = f"; and {len(failed) - QUOTED} more" if len(failed) > QUOTED else ""
            result.update(failed=True, msg="; ".join(failed[:QUOTED]) + more)
        # Who shows results gets a copy of all that is in them, which takes seconds for a few hundred nodes' facts.
        result["_ansible_no_log"] = not failed and not self._display.verbosity
        return {**result, "changed": False, "answers": answers, "warnings": warnings}

    def _executor(self, module: str, name: str, arguments: Mapping[str, Any], known: Mapping[str, Any]) -> _Executor:
        # What the process itself began with: this action's own context has the first host's address, user and password.
        begun = worker.current_worker
        task = self._task.copy(exclude_parent=True, exclude_tasks=True)
        task._parent = self._task._parent
        task.action, task.args, task.timeout, task._resolved_action = module, {}, 0, None
        manager, host = begun._variable_manager, begun._variable_manager._inventory.get_host(name)
        # All hosts are given, or they are looked up for each.
        everyone = {"_hosts": known["ansible_play_hosts"], "_hosts_all": known["ansible_play_hosts_all"]}
        variables = manager.get_vars(play=task.get_play(), host=host, task=task, **everyone)
        context, loaders = begun._play_context.copy(), self._shared_loader_obj
        return _Executor(arguments, host, task, variables, context, self._loader, loaders, None, manager)


class _Executor(TaskExecutor):  # type: ignore[misc]  # ansible ships no types
    """What Ansible has a process do for a host, but others have their turn while this one waits for its host."""

    _turn = Lock()

    def __init__(self, arguments: Mapping[str, Any], *given: Any) -> None:
        super().__init__(*given)
        self.host, self._arguments = str(self._host), dict(arguments)
        self._call: dict[str, float] = {}

    def answer(self) -> dict[str, Any]:
        with self._turn:
            said = self.run()
        return {**{key: value for key, value in said.items() if key != "exception"}, "netmend_call": self._call}

    def _get_action_handler_with_module_context(self, templar: Any) -> Any:
        self._task.args = self._arguments  # not before, as templates are looked for in what a task begins with
        return super()._get_action_handler_with_module_context(templar)

    def _get_connection(self, *given: Any) -> Any:
        connection = super()._get_connection(*given)
        for name in ("exec_command", "put_file", "fetch_file"):
            setattr(connection, name, self._aside(getattr(connection, name)))
        return connection

    def _aside(self, waiting: Any) -> Any:
        def others_meanwhile(*given: Any, **options: Any) -> Any:
            self._turn.release()
            self._call.setdefault("sent", time.time())
            try:
                return waiting(*given, **options)
            finally:
                self._call["received"] = time.time()
                self._turn.acquire()

        return others_meanwhile


def _answers(executors: list[_Executor], at_a_time: int, limit: float) -> dict[str, dict[str, Any]]:
    """By host, in the order of the executors. A thread that is not over in time is no longer waited for."""
    found: dict[str, dict[str, Any]] = {}
    waiting, due = deque(executors), {}  # type: deque[_Executor], dict[str, float]
    over: SimpleQueue[tuple[str, dict[str, Any]]] = SimpleQueue()
    while waiting or due:
        while waiting and len(due) < at_a_time:
            executor = waiting.popleft()
            due[executor.host] = time.monotonic() + limit
            context = contextvars.copy_context()
            Thread(target=context.run, args=(_put, over, executor), daemon=True).start()
        try:
            host, answer = over.get(timeout=max(0.0, min(due.values()) - time.monotonic()))
        except Empty:
            host = min(due, key=lambda each: due[each])
            answer = {"failed": True, "msg": f"no answer within {limit:.0f} s"}
        if due.pop(host, None):
            found[host] = answer
    return {executor.host: found[executor.host] for executor in executors}


def _put(over: SimpleQueue[tuple[str, dict[str, Any]]], executor: _Executor) -> None:
    over.put((executor.host, executor.answer()))

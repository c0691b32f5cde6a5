#!/usr/bin/python
"""Runs one of netmend's modules on a node without Ansible's own code: sources and arguments come from the controller.

An ordinary module brings what it imports of Ansible, and Python compiles that anew in each call: it takes longer than
what the module does. This is a JSON-args module, which Ansible sends as it is; plugins/action/netmend_bare.py is the
other half. JSON has no three quotes in a row, so that it can stand below as it is.
"""

from __future__ import annotations

import sys

sys.path = [place for place in sys.path if place]  # nothing is imported from where this happens to begin

import base64  # noqa: E402  the path above has to be set first
import gc  # noqa: E402  as above
import json  # noqa: E402  as above
import os  # noqa: E402  as above
import zlib  # noqa: E402  as above
from importlib.machinery import ModuleSpec  # noqa: E402  as above

gc.disable()  # it ends before there is anything to be collected

GIVEN = json.loads(r"""<<INCLUDE_ANSIBLE_MODULE_JSON_ARGS>>""")
SOURCES = json.loads(zlib.decompress(base64.b64decode(GIVEN["sources"])))


class AnsibleModule:
    """As much of Ansible's as these modules use. Their arguments are checked and complete."""

    def __init__(self, **_):
        self.params = GIVEN["arguments"]
        self.check_mode = GIVEN["_ansible_check_mode"]
        self._diff = GIVEN["_ansible_diff"]
        self._warnings = []

    def warn(self, warning):
        self._warnings.append(warning)

    def exit_json(self, **result):
        end({**result, "warnings": self._warnings} if self._warnings else result)

    def fail_json(self, msg, **result):
        self.exit_json(failed=True, msg=msg, **result)


def end(result):
    print(json.dumps(result), flush=True)
    os._exit(1 if "failed" in result else 0)  # to tidy up takes a tenth of it all


class Sources:
    """Finds and loads Python's modules where they are SOURCES."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in SOURCES:
            return None
        return ModuleSpec(name, Sources, is_package=any(each.startswith(f"{name}.") for each in SOURCES))

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        run(module.__name__, module.__dict__)


def run(name, namespace):
    exec(compile(SOURCES[name], f"{name}.py", "exec", dont_inherit=True), namespace)


sys.meta_path.insert(0, Sources)
sys.modules["ansible.module_utils.basic"] = sys.modules[__name__]
run(GIVEN["module"], {"__name__": "__main__"})

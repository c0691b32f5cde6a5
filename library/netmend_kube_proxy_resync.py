#!/usr/bin/python
"""Makes a running kube-proxy write all of its rules and jumps again; touches nothing where they stand."""

from __future__ import annotations

import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend import conntrack
from ansible.module_utils.netmend.kube_proxy import (
    CANARY_TABLES,
    flannel_is_flushed,
    missing_jumps,
    service_addresses,
)
from ansible.module_utils.netmend.model import Ruleset
from ansible.module_utils.netmend.parse.iptables import parse_save

DOCUMENTATION = """
module: netmend_kube_proxy_resync
short_description: Let kube-proxy write its rules and jumps again
description:
  - Looks for the jumps that kube-proxy keeps in the nat and filter tables. Where one is missing, takes kube-proxy's
    empty canary chains away. kube-proxy looks for them every sync period (30 s by default), takes the tables for
    flushed, and then writes everything again, in its own order. No rule of anyone else is touched, and no connection
    is cut.
  - Waits until the jumps are back, and fails if they are not by I(timeout), with what to do then.
  - What took the jumps may have taken Flannel's accepts for pods as well, which Flannel puts back by itself. Where its
    chain is there without them, they are waited for until I(timeout), too.
  - Lets connection tracking forget the connections to Services' addresses that began meanwhile and had no answer. They
    would go on to be led nowhere, for two minutes from the same port, and a resolver's for as long as it asks.
options:
  timeout:
    description: Seconds to wait for kube-proxy, and for Flannel. Keep it above their sync periods, 30 and 50 s.
    type: int
    default: 60
attributes:
  check_mode:
    support: full
    description: Says which jumps are missing, and takes nothing away.
  diff_mode:
    support: full
    description: The jumps before and after.
author: netmend maintainers
"""

EXAMPLES = """
- name: Let kube-proxy put back what a firewall flush took
  netmend_kube_proxy_resync:
"""

RETURN = """
missing:
  description: The jumps that were missing, as C(CHAIN -> TARGET).
  returned: always
  type: list
  elements: str
  sample: ["nat PREROUTING -> KUBE-SERVICES"]
forgotten:
  description: How many connections were forgotten.
  returned: when something was missing, and not in check mode
  type: int
  sample: 36
seconds:
  description: How long kube-proxy and Flannel took.
  returned: when something was missing, and not in check mode
  type: float
"""

POLL = 0.5  # seconds; kube-proxy offers nothing to wait on


def main() -> None:
    module = AnsibleModule(argument_spec={"timeout": {"type": "int", "default": 60}}, supports_check_mode=True)
    missing = _missing(module)
    result = {"changed": bool(missing), "missing": missing}
    result["diff"] = {"before": "".join(f"missing: {jump}\n" for jump in missing), "after": ""}
    if missing and not module.check_mode:
        result["seconds"] = _resync(module)
        result["forgotten"] = conntrack.forget(service_addresses(_rules(module)))
    module.exit_json(**result)


def _missing(module: AnsibleModule) -> list[str]:
    return [str(jump) for jump in missing_jumps(_rules(module))]


def _rules(module: AnsibleModule) -> Ruleset:
    save = module.get_bin_path("iptables-save", required=True)
    _, text, _ = module.run_command([save], check_rc=True, environ_update={"LC_ALL": "C"})
    return parse_save(text)


def _resync(module: AnsibleModule) -> float:
    iptables = module.get_bin_path("iptables", required=True)
    for table in CANARY_TABLES:
        # A canary that is gone already is as good as one that was taken away.
        canary = [iptables, "-w", "-t", table, "-X", "KUBE-PROXY-CANARY"]
        module.run_command(canary, environ_update={"LC_ALL": "C"})
    started = time.monotonic()
    while time.monotonic() - started < module.params["timeout"]:
        rules = _rules(module)
        if not missing_jumps(rules) and not flannel_is_flushed(rules):
            break
        time.sleep(POLL)
    if not _missing(module):
        return round(time.monotonic() - started, 1)
    return module.fail_json(
        msg=f"kube-proxy did not put back {', '.join(_missing(module))} within {module.params['timeout']} s. "
        "Is k3s or k3s-agent running on this node? `systemctl restart` of it makes kube-proxy write everything anew."
    )


if __name__ == "__main__":
    main()

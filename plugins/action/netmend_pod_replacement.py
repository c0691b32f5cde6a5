"""The module, as plugins/action/netmend_bare.py has it run."""

from __future__ import annotations

from ansible.plugins.loader import action_loader

Bare = action_loader.get("netmend_bare", class_only=True)


class ActionModule(Bare):  # type: ignore[misc,valid-type]  # ansible ships no types
    pass

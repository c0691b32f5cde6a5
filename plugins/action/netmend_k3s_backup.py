"""The module, whose files are written here, so that all of a server's come in one call; and no result has them."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action.normal import ActionModule as Normal


class ActionModule(Normal):  # type: ignore[misc]  # ansible ships no types
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        files = result.pop("files", {})
        if result.get("failed"):
            return result
        backup = Path(self._loader.path_dwim(self._task.args["directory"]))
        if not self._task.check_mode:
            for path, content in files.items():
                write(backup / task_vars["inventory_hostname"], path, base64.b64decode(content))
            if result["saved"]:
                # Who fetches it writes into this file, which nobody else may read.
                write(backup, result["kind"], b"")
        return {**result, "kept": list(files)}


def write(folder: Path, path: str, content: bytes) -> None:
    """A file of a server, below the folder that the backup has for it; nobody else may read it at any time.

    AnsibleActionFail for a path that leads out of there: it is the server's word.
    """
    target = folder / path.lstrip("/")
    if ".." in Path(path).parts:
        raise AnsibleActionFail(f"the server names {path}, which is not below its own folder: nothing is written there")
    for missing in reversed([each for each in target.parents if not each.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)

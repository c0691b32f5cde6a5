"""Puts the collections of requirements.yml where this Python's Ansible finds them, from the package ansible's wheel.

The whole package would take half a gigabyte.
"""

from __future__ import annotations

import sys
import sysconfig
import zipfile
from pathlib import Path

import yaml


def unpack(wheel: Path, wanted: dict[str, str], directory: Path) -> None:
    """Collection -> version. Raises SystemExit where the wheel has another one."""
    with zipfile.ZipFile(wheel) as archive:
        for name, version in wanted.items():
            place = f"ansible_collections/{name.replace('.', '/')}/"
            members = [member for member in archive.namelist() if member.startswith(place)]
            manifest = yaml.safe_load(archive.read(f"{place}MANIFEST.json")) if members else {"collection_info": {}}
            found = manifest["collection_info"].get("version", "none")
            if found != version:
                raise SystemExit(f"{wheel.name} has {name} {found}, and requirements.yml asks for {version}")
            archive.extractall(directory, members)


if __name__ == "__main__":
    asked = yaml.safe_load(Path(__file__).with_name("requirements.yml").read_text())["collections"]
    unpack(Path(sys.argv[1]), {each["name"]: each["version"] for each in asked}, Path(sysconfig.get_path("purelib")))

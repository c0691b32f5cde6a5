#!/usr/bin/python
"""Sees to it that a node has images before anything depends on them; pulls those that it has not."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.netmend import node

DOCUMENTATION = r"""
module: netmend_images
short_description: Have container images on a K3s node
description:
  - Pulls the images that the node has not, by C(k3s crictl), with the registries and mirrors of K3s's configuration.
  - Asks no registry for what is there already, so that images that were imported by hand are enough.
  - Fails with all that could not be had, and why.
author: netmend maintainers
options:
  images:
    description: The images, as a pod names them.
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds that one image may take.
    type: float
    default: 300
attributes:
  check_mode:
    support: full
    description: Says which are not there, and pulls none.
  diff_mode:
    support: full
    description: The images that are there, before and after.
requirements:
  - root on the node, and K3s running there
"""

EXAMPLES = r"""
- name: Have Calico's images on every node before its network is needed
  netmend_images:
    images:
      - quay.io/calico/cni:v3.32.1
      - quay.io/calico/node:v3.32.1
"""

RETURN = r"""
pulled:
  description: The images that were not there.
  returned: success
  type: list
  elements: str
  sample: [quay.io/calico/node:v3.32.1]
"""

CRICTL = ["k3s", "crictl"]


def contract():
    options = {
        "images": {"type": "list", "elements": "str", "required": True},
        "timeout": {"type": "float", "default": 300.0},
    }
    return {"argument_spec": options, "supports_check_mode": True}


def main():
    module = AnsibleModule(**contract())
    images = sorted(set(module.params["images"]))
    there = listed(module.params["timeout"])
    unlisted = [image for image in images if image not in there]
    missing = [image for image, error in tried(unlisted, "inspecti", module.params["timeout"]).items() if error]
    refused = {} if module.check_mode else tried(missing, "pull", module.params["timeout"])
    failures = [f"{image}: {error}" for image, error in refused.items() if error]
    if failures:
        module.fail_json(
            msg="Not on this node, and not to be pulled: "
            + "; ".join(failures)
            + ". Let the node reach the registry, name another one, or import them by `k3s ctr images import FILE`."
        )
    before = [image for image in images if image not in missing]
    module.exit_json(
        changed=bool(missing),
        pulled=missing,
        diff={"before": "".join(f"{image}\n" for image in before), "after": "".join(f"{image}\n" for image in images)},
    )


def listed(timeout):
    """The images on this node, by their names in full, of which each may have several; none where that is not told.

    What has another name there, without its registry or by a digest, has to be asked for.
    """
    try:
        found = json.loads(node.run([*CRICTL, "images", "--output=json"], timeout=timeout))
    except (node.CommandError, ValueError):
        return set()
    kinds = ("repoTags", "repoDigests")
    return {name for image in found["images"] for kind in kinds for name in image.get(kind) or []}


def tried(images, verb, timeout):
    """Image -> what went wrong with it; "" for nothing. All at the same time."""

    def ask(image):
        try:
            node.run([*CRICTL, verb, image], timeout=timeout)
        except node.CommandError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(images, pool.map(ask, images)))


if __name__ == "__main__":
    main()

"""K3s's effective configuration, put together as K3s does it, and what containerd was told of the CNI.

Rules from k3s-io/k3s: pkg/configfilearg/parser.go (files), pkg/cli/cmds/{server,agent}.go (flags and environment).
Files become flags that stand before those of the command line: there the last value wins, and lists add up. The
environment counts only for a flag that is given nowhere. Messages never quote a line: it may hold a secret.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Pattern, Tuple

REDACTED = "(redacted)"
CNI_CONF_DIR = "/etc/cni/net.d"  # containerd's default
CONFIG = "/etc/rancher/k3s/config.yaml"  # unless it is given another one

# Flags that may be given more than once. Their values are lists in the effective configuration, always.
_LISTS = {
    "airgap-extra-registry",
    "cluster-cidr",
    "cluster-dns",
    "disable",
    "etcd-arg",
    "kube-apiserver-arg",
    "kube-cloud-controller-manager-arg",
    "kube-controller-manager-arg",
    "kube-proxy-arg",
    "kube-scheduler-arg",
    "kubelet-arg",
    "node-external-ip",
    "node-ip",
    "node-label",
    "node-taint",
    "service-cidr",
    "tls-san",
}
# Those of them whose single values K3s splits at commas.
_COMMA = {"cluster-cidr", "cluster-dns", "disable", "node-external-ip", "node-ip", "service-cidr", "tls-san"}
_ALIASES = {
    "c": "config",
    "d": "data-dir",
    "i": "node-ip",
    "kube-cloud-controller-arg": "kube-cloud-controller-manager-arg",
    "kube-controller-arg": "kube-controller-manager-arg",
    "l": "log",
    "o": "write-kubeconfig",
    "s": "server",
    "t": "token",
}
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "etcd-s3-access-key",
    "AWS_SECRET_ACCESS_KEY": "etcd-s3-secret-key",
    "K3S_AGENT_TOKEN": "agent-token",
    "K3S_AGENT_TOKEN_FILE": "agent-token-file",
    "K3S_CLUSTER_INIT": "cluster-init",
    "K3S_CLUSTER_RESET": "cluster-reset",
    "K3S_CLUSTER_SECRET": "cluster-secret",
    "K3S_CONFIG_FILE": "config",
    "K3S_DATASTORE_CAFILE": "datastore-cafile",
    "K3S_DATASTORE_CERTFILE": "datastore-certfile",
    "K3S_DATASTORE_ENDPOINT": "datastore-endpoint",
    "K3S_DATASTORE_KEYFILE": "datastore-keyfile",
    "K3S_DATA_DIR": "data-dir",
    "K3S_DEBUG": "debug",
    "K3S_KUBECONFIG_GROUP": "write-kubeconfig-group",
    "K3S_KUBECONFIG_MODE": "write-kubeconfig-mode",
    "K3S_KUBECONFIG_OUTPUT": "write-kubeconfig",
    "K3S_LB_SERVER_PORT": "lb-server-port",
    "K3S_NODE_NAME": "node-name",
    "K3S_RESOLV_CONF": "resolv-conf",
    "K3S_SELINUX": "selinux",
    "K3S_SYSTEM_DEFAULT_REGISTRY": "system-default-registry",
    "K3S_TOKEN": "token",
    "K3S_TOKEN_FILE": "token-file",
    "K3S_URL": "server",
    "K3S_VPN_AUTH": "vpn-auth",
    "K3S_VPN_AUTH_FILE": "vpn-auth-file",
}
_SECRET = re.compile(r"(^|[-_])(token|secret|password|auth|access-key|secret-key)$|^datastore-endpoint$")
_SECRET_ARGUMENT = re.compile(r"^([^=]*(?:token|secret|password|passwd|api-?key))=.*$", re.I | re.S)
# A key or a certificate, as it is or in base64, as kubeconfigs and CNI configurations hold them.
_PEM = re.compile(r"-----BEGIN |LS0tLS1CRUdJTi")
_USERINFO = re.compile(r"(://)[^/@\s]+@")

_IGNORED = re.compile(r" *(#.*)?$")
_START = re.compile(r"---( +#.*)?$")
_ITEM = re.compile(r"( *)-(?: +(.*))?$")
_KEY = re.compile(r"""(["']?)([A-Za-z][A-Za-z0-9_.-]*\+?)\1 *:(?: +(.*))?$""")
_QUOTED = re.compile(r"""(?:"((?:[^"\\]|\\.)*)"|'((?:[^']|'')*)')""")
# A plain scalar ends at a remark; within brackets, at their punctuation too.
_PLAIN = re.compile(r"(?:(?! +#| +$).)+")
_PLAIN_IN_BRACKETS = re.compile(r"(?!:)(?:(?! +#| *[],[{}?]).)+")
_NOT_PLAIN = re.compile(r"[][{}#&*!|>%@`\"',]|[-?:](?: |$)|.*:(?: |$)")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_OCTAL = re.compile(r"[-+]?0[0-7]+$")
_HEXADECIMAL = re.compile(r"[-+]?0x[0-9a-fA-F]+$")
_WORDS = {
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
    **dict.fromkeys(("null", "~"), None),
}


class Unit(NamedTuple):
    """What a systemd service says of how K3s is run."""

    arguments: List[str]  # of ExecStart: the program, "server" or "agent", flags
    environment: Dict[str, str]
    environment_files: List[str]  # paths; one that may be missing begins with "-"


def parse_config(text: str, name: str) -> List[Tuple[str, Any]]:
    """The top-level pairs of a configuration file, in order: scalars, and lists of scalars.

    This is the part of YAML that K3s's flags need. ValueError names the file and the line of anything else.
    Scalars are bool, int, str or None, as YAML 1.1 has them; fractions stay strings.
    """
    pairs: List[Tuple[str, Any]] = []
    indent: Optional[int] = None  # of the block list that is being read; -1: one may begin; None: none may
    for number, line in enumerate(re.split(r"\r?\n", text), 1):
        if _IGNORED.match(line) or (_START.match(line) and not pairs):
            continue
        try:
            if "\t" in line:
                raise ValueError("a tab")
            item, pair = _ITEM.match(line), _KEY.match(line)
            if item and pairs:
                indent = _append(pairs, item[2] or "", len(item[1]), indent)
            elif pair and pair[2] not in _WORDS:
                rest = pair[3] or ""
                pairs.append((pair[2], _value(rest)))
                indent = -1 if _IGNORED.match(rest) else None
            else:
                raise ValueError("neither a key nor an item of a list")
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from None
    return pairs


def parse_unit(*texts: str) -> Unit:
    """From a unit's file and its drop-ins, in systemd's order: an empty assignment takes back what stood before."""
    commands: List[str] = []
    environment: Dict[str, str] = {}
    files: List[str] = []
    section = ""
    for line in re.sub(r"\\\n[ \t]*", " ", "\n".join(texts)).splitlines():
        if line.startswith("["):
            section = line.strip()
        key, assigned, value = (part.strip() for part in line.partition("="))
        if section != "[Service]" or not assigned or key.startswith(("#", ";")):
            continue
        if key == "ExecStart":
            commands = [*commands, value] if value else []
        elif key == "EnvironmentFile":
            files = [*files, value] if value else []
        elif key == "Environment":
            words = (word.partition("=") for word in _split(value, "Environment"))
            environment = {**environment, **{name: word for name, _, word in words}} if value else {}
    return Unit(_split(commands[-1] if commands else "", "ExecStart"), environment, files)


def parse_environment(text: str) -> Dict[str, str]:
    """From an EnvironmentFile of systemd."""
    found: Dict[str, str] = {}
    for line in re.sub(r"\\\n", "", text).splitlines():
        name, assigned, value = line.strip().partition("=")
        if assigned and not name.startswith(("#", ";")):
            found[name.strip()] = "".join(_split(value, "environment file")) if value[:1] in "\"'" else value.strip()
    return found


def flags(arguments: Iterable[str], environment: Dict[str, str]) -> List[Tuple[str, Any]]:
    """The flags after "server" or "agent", as (name, value) in order; True for a flag that stands alone."""
    words: List[str] = []
    for argument in arguments:
        alone = re.match(r"\$(\w+)$", argument)  # systemd splits the value of a variable that is a word of its own
        if alone:
            words += environment.get(alone[1], "").split()
        else:
            words.append(re.sub(r"\$\{(\w+)\}", lambda name: environment.get(name[1], ""), argument))
    starts = [index for index, word in enumerate(words) if word in ("server", "agent")]
    found: List[Tuple[str, Any]] = []
    waiting = False  # the last flag may still get its value
    for word in words[starts[0] + 1 :] if starts else []:
        if word.startswith("-"):
            name, assigned, value = word.lstrip("-").partition("=")
            found.append((_ALIASES.get(name, name), _flag_value(value) if assigned else True))
            waiting = not assigned
        elif waiting:
            found[-1] = (found[-1][0], _flag_value(word))
            waiting = False
    return found


def effective(
    files: Iterable[Tuple[str, List[Tuple[str, Any]]]],
    arguments: Iterable[Tuple[str, Any]],
    environment: Dict[str, str],
) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """Configuration and, for each key, what decided it (paths, "ExecStart", "environment"); secrets redacted.

    files: (path, pairs) in the order that K3s reads them. Values of flags that can be repeated are lists, always.
    """
    config: Dict[str, Any] = {}
    sources: Dict[str, str] = {}
    for path, pairs in files:
        for written, value in pairs:
            key = written.rstrip("+")
            key = _ALIASES.get(key, key)
            if written.endswith("+") and key in config:
                config[key] = _list(config[key]) + _list(value)
                sources[key] = _also(sources[key], path)
            else:
                config[key], sources[key] = value, path
    for key, value in arguments:
        adds = sources.get(key) is not None and key in _LISTS
        config[key] = _list(config[key]) + _list(value) if adds else value
        sources[key] = _also(sources[key], "ExecStart") if adds else "ExecStart"
    for name, value in environment.items():
        key = _ENVIRONMENT.get(name, "")
        if key and value and key not in config:
            config[key], sources[key] = _flag_value(value), "environment"
    return {key: redact(key, _shape(key, value)) for key, value in config.items()}, sources


def redact(key: str, value: Any) -> Any:
    """The value of a key as it may be shown: what its name calls a secret, and PEM, is replaced, at any depth."""
    if _SECRET.search(key) or (isinstance(value, str) and _PEM.search(value)):
        return REDACTED
    if isinstance(value, dict):
        return {name: redact(name, item) for name, item in value.items()}
    if isinstance(value, list):
        return [redact(key, item) for item in value]
    if isinstance(value, str):
        return _USERINFO.sub(rf"\1{REDACTED}@", _SECRET_ARGUMENT.sub(rf"\1={REDACTED}", value))
    return value


def drop_in(config: Mapping[str, Any], name: str) -> str:
    """The path of a file beside a configuration, which is read after it."""
    return f"{config.get('config', CONFIG)}.d/{name}"


def containerd_cni(config_toml: str) -> Tuple[str, List[str]]:
    """(conf_dir, bin_dirs) that containerd reads; its defaults where its configuration has no section for the CNI."""
    conf_dir, bin_dirs, inside = CNI_CONF_DIR, ["/opt/cni/bin"], False
    for line in config_toml.splitlines():
        header = re.match(r"\s*\[(.*)\]\s*$", line)
        if header:
            inside = bool(re.search(r"io\.containerd\.(cri\.v1\.runtime|grpc\.v1\.cri)[\"']?\.cni$", header[1]))
        pair = re.match(r"\s*(conf_dir|bin_dirs?)\s*=\s*(.*)$", line)
        if not inside or not pair:
            continue
        values = [double or single for double, single in re.findall(r"\"([^\"]*)\"|'([^']*)'", pair[2])]
        if pair[1] == "conf_dir":
            conf_dir = values[0]
        else:
            bin_dirs = values
    return conf_dir, bin_dirs


def pause_image(config_toml: str) -> str:
    """The image that containerd pauses pods by: sandbox_image in version 2 of its configuration, sandbox in version 3.

    "" where the configuration names none.
    """
    found = re.search(r"\bsandbox(?:_image)? *= *[\"']([^\"']+)", config_toml)
    return found[1] if found else ""


def _append(pairs: List[Tuple[str, Any]], item: str, depth: int, indent: Optional[int]) -> int:
    """Puts an item of a block list to its key, and returns the list's depth."""
    key, value = pairs[-1]
    if indent == -1:
        value, indent = [], depth
    if depth != indent:
        raise ValueError("an item that belongs to no list")
    if item.startswith("["):
        raise ValueError("a list within a list")
    pairs[-1] = (key, [*value, _value(item)])
    return depth


def _value(text: str) -> Any:
    """What follows "key:" or "-", without the remark behind it."""
    if _IGNORED.match(text):
        return None
    value, rest = _brackets(text) if text.startswith("[") else _scalar(text, _PLAIN)
    if not _IGNORED.match(rest) or rest.startswith("#"):
        raise ValueError("text behind a value")
    return value


def _brackets(text: str) -> Tuple[List[Any], str]:
    values: List[Any] = []
    rest = text[1:].lstrip(" ")
    while not rest.startswith("]"):
        value, rest = _scalar(rest, _PLAIN_IN_BRACKETS)
        values.append(value)
        rest = rest.lstrip(" ")
        if rest.startswith(","):
            rest = rest[1:].lstrip(" ")
        elif not rest.startswith("]"):
            raise ValueError("a list in brackets must end on its line and hold plain or quoted scalars only")
    return values, rest[1:]


def _scalar(text: str, plain: Pattern[str]) -> Tuple[Any, str]:
    """The scalar that the text begins with, and the text behind it."""
    quoted = _QUOTED.match(text)
    if quoted:
        value = quoted[2].replace("''", "'") if quoted[1] is None else json.loads(f'"{quoted[1]}"')
        return value, text[quoted.end() :]
    word = plain.match(text)
    if not word or _NOT_PLAIN.match(word[0]):
        raise ValueError("not a plain or quoted scalar")
    return _plain(word[0]), text[word.end() :]


def _plain(text: str) -> Any:
    if text in _WORDS or (text.lower() in _WORDS and text in (text.upper(), text.capitalize())):
        return _WORDS[text.lower()]
    if _INTEGER.match(text):
        return int(text)
    if _OCTAL.match(text):
        return int(text, 8)
    if _HEXADECIMAL.match(text):
        return int(text, 16)
    return text


def _flag_value(text: str) -> Any:
    """A flag's value in the types that the files give: octal numbers and words like `yes` are plain text here."""
    if text in ("true", "false"):
        return text == "true"
    return int(text) if _INTEGER.match(text) else text


def _shape(key: str, value: Any) -> Any:
    if key not in _LISTS:
        return value
    values = _list(value)
    return [part.strip() for item in values for part in str(item).split(",")] if key in _COMMA else values


def _list(value: Any) -> List[Any]:
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def _also(sources: str, more: str) -> str:
    return sources if more in sources.split(", ") else f"{sources}, {more}"


def _split(text: str, what: str) -> List[str]:
    try:
        return shlex.split(text)
    except ValueError:
        raise ValueError(f"{what}: quotes that do not match") from None

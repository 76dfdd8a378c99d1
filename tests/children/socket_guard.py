"""Forbids, to the process that installs it, any socket that is not loopback or of this machine.

It stands in the interpreter itself (an audit hook), so no import or reference that was taken
before goes around it; and once there it cannot be taken away. What was refused is also written
to the file that TESTS_SOCKETS names, so that a test fails where the error itself was caught.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys

LOG = "TESTS_SOCKETS"
_ADDRESSED = {"socket.connect": 1, "socket.bind": 1, "socket.sendto": 1, "socket.sendmsg": 1,
              "socket.getnameinfo": 0}  # fmt: skip
_NAMED = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
# What gives the network up by itself.
_CONFINED = (
    "capt_local.llama.probe",
    "capt_local.documents.process",
    "capt_local.hardening",
)
_FAMILIES = {getattr(socket, name, None) for name in ("AF_UNIX", "AF_INET", "AF_INET6")}


class NetworkForbidden(AssertionError):
    """The program tried to reach the network."""


def install() -> None:
    """From now on, for the life of the process."""
    sys.addaudithook(watch)


def watch(event: str, arguments: tuple[object, ...]) -> None:
    """Looks at what the interpreter is about to do; raises where that is forbidden."""
    if event == "subprocess.Popen":
        _check_process(arguments)
    # The processes of Ray listen on all interfaces; its own (slow) test lets them.
    if not event.startswith("socket.") or os.environ.get("TESTS_RAY"):
        return
    if event in _ADDRESSED:
        allowed = _is_near(arguments[_ADDRESSED[event]])
    elif event in _NAMED:
        allowed = _is_loopback(arguments[0])
    elif event == "socket.__new__":
        allowed = arguments[1] in _FAMILIES or arguments[1] == -1
    else:
        allowed = True
    if not allowed:
        _refuse(event)


def _check_process(arguments: tuple[object, ...]) -> None:
    """The program is started with this guard, or as the process that confines itself."""
    _, command, _, environment = arguments
    words = [os.fsdecode(each) for each in command] if isinstance(command, list | tuple) else []
    if words[:1] != [sys.executable] or not any("capt_local" in word for word in words):
        return
    variables = environment if isinstance(environment, dict) else os.environ
    folder = os.path.dirname(os.path.abspath(__file__))
    guarded = folder in str(variables.get("PYTHONPATH", "")).split(os.pathsep)
    isolated = {"-I", "-E", "-S"} & set(words[1:3])
    if (isolated or not guarded) and not any(name in word for word in words for name in _CONFINED):
        raise AssertionError("the program is started without the guard of sockets")


def _is_near(address: object) -> bool:
    """Whether an address is a loopback one, a name in the file system, or none at all."""
    if address is None or isinstance(address, str | bytes):
        return True
    return isinstance(address, tuple) and _is_loopback(address[0])


def _is_loopback(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host is None or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse(event: str) -> None:
    if os.environ.get(LOG):
        with open(os.environ[LOG], "a") as file:
            file.write(f"{event} in {sys.argv[0] if sys.argv else '?'}\n")
    raise NetworkForbidden(f"{event}: not loopback")

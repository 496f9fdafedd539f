"""A web server's socket and names: where it listens, and under which hosts it may be asked.

A page of another site can point a name of its own at a server of this machine (DNS rebinding), so a server answers only
requests whose Host header names it.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable

from dst.errors import ConfigError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
PAGE_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
"""Of everything that a page is made of, in addition to its content security policy"""


def is_loopback(host: str) -> bool:
    """Whether a server that listens at this host is reached from its own machine only."""
    return bool({host.lower(), f"[{host}]"} & LOOPBACK)


def url_host(host: str) -> str:
    """The host as URLs and Host headers write it."""
    return f"[{host}]" if ":" in host else host.lower()


def host_name(header: str) -> str:
    """The host of a Host header, without its port: localhost, 127.0.0.1, [::1]."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdigit() else header).lower()


def own_hosts(host: str) -> Callable[[str], bool]:
    """Whether a Host header without its port names the server that listens at a host.

    A page of another site can point a name of its own at this server, but no IP address: so a server that listens
    elsewhere than on this machine is reached by any address, and by its own names only.
    """
    if host in LOOPBACK:
        return LOOPBACK.__contains__
    names = LOOPBACK | {host, socket.gethostname().lower(), socket.getfqdn().lower()}

    def is_own(asked: str) -> bool:
        try:
            ipaddress.ip_address(asked.removeprefix("[").removesuffix("]"))
        except ValueError:
            return asked in names
        return True

    return is_own


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens there; port 0: any free one. Raises ConfigError for an address that cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets that name TCP; without it each page waits 40 ms for an acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if port:  # with it, Linux may choose a port that another program holds for later
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            step = "expected an address of this machine, such as 127.0.0.1"
            raise ConfigError([f"--host {host}: cannot be used ({error.strerror}); {step}"]) from None
        raise ConfigError(
            [f"port {port} of {host} cannot be used ({error.strerror}); choose another with --port, 0 for any free one"]
        ) from None
    return listening

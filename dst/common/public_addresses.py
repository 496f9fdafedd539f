"""Which URLs may be requested, and which addresses may be connected to.

A URL in data or in a request is untrusted: it must not make this machine ask its own services, its network's or the
cloud provider's metadata server. So the check is of the very address that a socket connects to, after DNS and after
every redirect: a host name that resolves to something else a moment later gains nothing.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from aiohttp import AddrInfoType

PRIVATE = "a private address"
"""The text of the refusal; always the same, so that aiohttp raises the refusal itself if a host has several"""

_NOT_IN_A_URL = re.compile(r"[\x00-\x1f\x7f]")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
"""All that was ever given to the internet; outside are local addresses and old forms of IPv4 ones"""
_OF_CLOUD_HOSTS = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Azure's services for its virtual machines: nothing of the internet, though the address is a public one"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A URL that can be requested. host: in lower case, without port."""

    url: str
    scheme: str
    host: str


def parse_url(url: str) -> Target:
    """Raises ValueError, whose text says why it cannot be requested."""
    if _NOT_IN_A_URL.search(url):
        raise ValueError("there is a control character in it")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"its scheme is {parts.scheme[:20]!r}; expected http or https")
    if parts.username is not None or parts.password is not None:
        raise ValueError("there is a user name or a password in it, which are not sent")
    if not parts.hostname or parts.port == 0:  # .port raises ValueError for what is not a port
        raise ValueError("there is no host in it")
    return Target(url=url, scheme=parts.scheme, host=parts.hostname)


def is_public(address: str) -> bool:
    """Whether a numeric address is one of the public internet; an address inside another counts as well."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # 127.1 or 2130706433, which the system would read as 127.0.0.1
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if found not in _PUBLIC_IPV6:
            return False
    return found.is_global and not found.is_multicast and found not in _OF_CLOUD_HOSTS


def public_socket(address: AddrInfoType) -> socket.socket:
    """A new socket for an address, as aiohttp's socket_factory. Raises PermissionError for one that is not public."""
    family, kind, protocol, _, place = address
    if not is_public(str(place[0])):
        raise PermissionError(errno.EACCES, PRIVATE)
    return socket.socket(family, kind, protocol)


def is_refusal(error: BaseException) -> bool:
    """Whether an error of a connection began with `public_socket`."""
    return any(isinstance(cause, PermissionError) and cause.strerror == PRIVATE for cause in _causes(error))


def is_unknown_host(error: BaseException) -> bool:
    """Whether DNS answered that there is no such name; a DNS server that does not answer is another error."""
    return any(isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__

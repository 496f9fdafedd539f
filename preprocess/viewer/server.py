"""`dsvl-prep view`: a web server for one build, on this machine."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path

from preprocess.errors import ConfigError
from preprocess.viewer.opened_build import OpenedBuilds
from preprocess.viewer.source_records import bases_of

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


def serve(location: str | Path, *, host: str, port: int, blend: Path | None, started: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. started: gets the address as soon as the server listens.

    Raises ShardError if there is no build, ConfigError for an address that cannot be used or a missing package.
    """
    try:
        import uvicorn

        from preprocess.viewer.app import make_app
    except ModuleNotFoundError as error:
        raise ConfigError([f"{error}; dsvl-prep view needs the packages of pip install 'dsvl[view]'"]) from None
    bases = bases_of(location, blend)
    builds = OpenedBuilds(location)
    listening = listen(host, port)
    own_name = f"[{host}]" if ":" in host else host.lower()
    app = make_app(builds, is_own=own_hosts(own_name), bases=bases)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, date_header=False, lifespan="off"
    )
    server = uvicorn.Server(config)
    with listening:
        started(f"http://{own_name}:{listening.getsockname()[1]}/")
        server.run(sockets=[listening])


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

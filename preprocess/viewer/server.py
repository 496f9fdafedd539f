"""`dsvl-prep view`: a web server for one build, on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dst.common.web_server import listen, own_hosts, url_host
from preprocess.errors import ConfigError
from preprocess.viewer.opened_build import OpenedBuilds
from preprocess.viewer.source_records import bases_of


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
    app = make_app(builds, is_own=own_hosts(url_host(host)), bases=bases)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, date_header=False, lifespan="off"
    )
    server = uvicorn.Server(config)
    with listening:
        started(f"http://{url_host(host)}:{listening.getsockname()[1]}/")
        server.run(sockets=[listening])

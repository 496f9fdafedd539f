#!/usr/bin/env bash
# uvicorn 0.54: a socket from Config.bind_socket, or one of your own without a protocol, serves with Nagle's algorithm on.
#
# One expects: a server built on asyncio sends each answer at once, since asyncio sets TCP_NODELAY on TCP connections
# (since Python 3.6), however its listening socket was made. Seen: asyncio asks the accepted socket for its protocol,
# and sets the option only if that is IPPROTO_TCP. A socket made by socket.socket(AF_INET, SOCK_STREAM) has the protocol
# 0, and so has each that it accepts. uvicorn makes such a socket for workers and --reload, and takes one from callers
# who bind a free port themselves. A client that keeps its connection then waits about 40 ms for some answers: the
# server holds back the end of an answer until the client's delayed acknowledgement. Naming socket.IPPROTO_TCP when the
# socket is made avoids it; uvicorn.run(host=, port=) without sockets is not concerned.
#
# Seen with uvicorn 0.54.0, Python 3.11, Linux.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install -qq --disable-pip-version-check uvicorn==0.54.0 h11

cat > "$folder/sockets.py" <<'PYTHON'
import socket
import threading
import time

import uvicorn


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def delay_is_off(listening):
    """Whether TCP_NODELAY is set on a connection that a server accepted from this socket."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", http="h11"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    with socket.create_connection(listening.getsockname()) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.recv(1000)
        (connection,) = server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        option = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    server.should_exit = True
    thread.join()
    return bool(option)


def bound(*protocol):
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, *protocol)
    listening.bind(("127.0.0.1", 0))
    return listening


own = delay_is_off(bound())
named = delay_is_off(bound(socket.IPPROTO_TCP))
uvicorns = delay_is_off(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical").bind_socket())
print(f"without a protocol {own}; IPPROTO_TCP {named}; bind_socket {uvicorns}")
PYTHON
found=$("$python" "$folder/sockets.py" 2> "$folder/log") || { cat "$folder/log"; exit 1; }
echo "uvicorn 0.54.0, TCP_NODELAY of accepted connections: $found"
expected='without a protocol False; IPPROTO_TCP True; bind_socket False'
[ "$found" = "$expected" ] || { echo "changed: expected '$expected'"; exit 1; }

"""Ports of this machine that the sandbox serves on."""

from __future__ import annotations

import socket

from prefect_vertex_launch.sandbox.start_refusal import StartRefusal

HOST = "127.0.0.1"


def bind(port: int) -> socket.socket:
    """Return a socket that has a port, 0 for any free one, and does not listen yet: it refuses connections.

    Raises StartRefusal if the port cannot be had.
    """
    # asyncio switches Nagle's algorithm off only where the protocol is named: every answer on a
    # connection that is kept would wait 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise StartRefusal(
            f"{HOST}:{port} cannot be listened on: {error.strerror}",
            "end what listens there, or choose another port; 0 picks a free one",
        ) from error
    return listener

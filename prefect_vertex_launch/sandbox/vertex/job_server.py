"""The sandbox's job service on a gRPC port; it can go away and come back."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import grpc
import grpc.aio

from prefect_vertex_launch.sandbox.listener import HOST, bind
from prefect_vertex_launch.sandbox.vertex.backend import VertexBackend
from prefect_vertex_launch.sandbox.vertex.grpc_service import add_job_service


class JobServer:
    """Serves the CustomJobs of `backend` from `start` until `aclose`; port 0 picks one and keeps it."""

    def __init__(
        self, backend: VertexBackend, port: int, interceptors: Sequence[grpc.aio.ServerInterceptor]
    ) -> None:
        self.port = port
        self._backend = backend
        self._interceptors = interceptors
        self._server: grpc.aio.Server | None = None
        self._reserved: socket.socket | None = None

    @property
    def url(self) -> str:
        """Where it is served."""
        return f"grpc://{HOST}:{self.port}"

    async def start(self) -> None:
        """Serve. Raises StartRefusal if the port cannot be had."""
        # Without this a second server could have the same port, and each would get some of the calls.
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)], interceptors=self._interceptors)
        add_job_service(server, self._backend)
        # Tried beforehand: gRPC writes a line of its own to stderr when it cannot have a port, without a
        # reason.
        (self._reserved or bind(self.port)).close()
        self._reserved = None
        self.port = server.add_insecure_port(f"{HOST}:{self.port}")
        await server.start()
        self._server = server

    async def take_down(self) -> None:
        """Refuse connections and break those there are; the port stays this server's."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace=None)
            self._reserved = bind(self.port)

    async def bring_up(self) -> None:
        """Serve again after `take_down`."""
        if self._server is None:
            await self.start()

    async def aclose(self) -> None:
        """Stop serving and let go of the port."""
        await self.take_down()
        if self._reserved is not None:
            self._reserved.close()

"""The switches of the sandbox's faults over HTTP, at an address of their own: it stays up in outages."""

from __future__ import annotations

import json

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefect_vertex_launch.sandbox.faults.registry import Fault, Faults, Switch
from prefect_vertex_launch.sandbox.wandb.login import login_problem


def faults_app(faults: Faults) -> Starlette:
    """Return the app: POST, GET and DELETE of /faults, GET and DELETE of /faults/{id}."""
    switches = _Switches(faults)
    return Starlette(
        routes=[
            Route("/faults", switches.add, methods=["POST"]),
            Route("/faults", switches.list, methods=["GET"]),
            Route("/faults", switches.clear, methods=["DELETE"]),
            Route("/faults/{id}", switches.get, methods=["GET"]),
            Route("/faults/{id}", switches.remove, methods=["DELETE"]),
        ]
    )


def faults_refusal(api_key: str, authorization: str) -> Response | None:
    """Return the answer to a request that does not show W&B's API key, None for one that does."""
    problem = login_problem(authorization, api_key)
    return _error(401, [problem]) if problem else None


class _Switches:
    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    async def add(self, request: Request) -> Response:
        try:
            fault = Fault.model_validate_json(await request.body())
        except ValidationError as problem:
            return _error(400, [_said(error) for error in problem.errors(include_url=False)])
        return JSONResponse((await self._faults.add(fault)).to_json(), 201)

    async def list(self, _request: Request) -> Response:
        return JSONResponse([switch.to_json() for switch in self._faults])

    async def get(self, request: Request) -> Response:
        switch = self._named(request)
        return _unknown(request) if switch is None else JSONResponse(switch.to_json())

    async def remove(self, request: Request) -> Response:
        switch = self._named(request)
        if switch is None:
            return _unknown(request)
        await self._faults.remove(switch)
        return JSONResponse(switch.to_json())

    async def clear(self, _request: Request) -> Response:
        await self._faults.clear()
        return JSONResponse([])

    def _named(self, request: Request) -> Switch | None:
        return next((switch for switch in self._faults if str(switch.id) == request.path_params["id"]), None)


def _said(error: object) -> str:
    details = json.loads(json.dumps(error, default=str))
    where = ".".join(str(part) for part in details["loc"])
    text = str(details["msg"]).removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


def _unknown(request: Request) -> Response:
    return _error(404, [f"no fault {request.path_params['id']} is switched on"])


def _error(http_status: int, errors: list[str]) -> Response:
    return JSONResponse({"errors": errors}, http_status)

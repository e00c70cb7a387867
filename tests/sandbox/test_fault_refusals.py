"""What a fault may be: one that could never happen is refused, with all that is wrong and what was meant."""

from __future__ import annotations

import inspect
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import ValidationError

from prefect_vertex_launch.sandbox.faults.registry import Fault, What
from prefect_vertex_launch.wandb import documents
from tests.sandbox.fault_scene import Scene

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"server": "wandb", "what": "hidden"}, "not a fault of W&B's"),
        ({"server": "vertex", "what": "null"}, "not a fault of Vertex AI's"),
        ({"server": "vertex", "what": "answer"}, "needs status or code"),
        ({"server": "wandb", "what": "answer", "code": "INTERNAL"}, "needs status"),
        ({"server": "vertex", "what": "answer", "code": "UNAVAILBLE"}, "did you mean 'UNAVAILABLE'"),
        ({"server": "vertex", "what": "answer", "status": 418}, "status: '418' cannot be used"),
        ({"server": "vertex", "what": "stale", "operation": "GetCustomJobs"}, "did you mean 'GetCustomJob'"),
        ({"server": "vertex", "what": "hidden", "operation": "GetCustomJob", "lists": 1}, "CreateCustomJob"),
        ({"server": "vertex", "what": "state", "state": "JOB_STATE_PAUSE"}, "'JOB_STATE_PAUSED'"),
        ({"server": "vertex", "what": "state"}, "needs state"),
        ({"server": "vertex", "what": "down", "operation": "GetCustomJob"}, "operation: a server"),
        ({"server": "vertex", "what": "down", "times": 3}, "times: a server that is down"),
        ({"server": "wandb", "what": "down", "skip": 1}, "skip: a server that is down"),
        ({"server": "vertex", "what": "answer", "code": "OK"}, "code: 'OK' cannot be used"),
        ({"server": "vertex", "what": "state", "state": 4, "code": "OK"}, "code: 'OK' cannot be used"),
        ({"server": "vertex", "what": "answer", "status": 204, "code": "ABORTED"}, "status: '204'"),
        ({"server": "vertex", "what": "state", "state": 5, "message": "broken"}, "needs a 'code'"),
        ({"server": "vertex", "what": "state", "state": "PAUSED"}, "'JOB_STATE_PAUSED'"),
        ({"server": "vertex", "what": "state", "state": "RUNING"}, "'JOB_STATE_RUNNING'"),
        ({"server": "vertex", "what": "state", "state": 1 << 31}, "from 0 to 2147483647"),
        ({"server": "vertex", "what": "garbge"}, "what: did you mean 'garbage'?"),
        ({"server": "vertex", "what": "cut-after"}, "what: did you mean 'cut_after'?"),
        ({"server": "vertx", "what": "hang"}, "server: did you mean 'vertex'?"),
        ({"server": "Vertex", "what": "hang"}, "server: did you mean 'vertex'?"),
        ({"server": "wandb", "what": "null", "operation": "ackRunQueueItm"}, "mean 'ackRunQueueItem'?"),
        ({"server": "wandb", "what": "null", "operation": "pop_from_run_queue"}, "mean 'popFromRunQueue'?"),
        ({"server": "wandb", "what": "hang", "operation": "file-stream"}, "mean 'file_stream'?"),
        ({"server": "wandb", "what": "hang", "operation": "GetCustomJob"}, "operation of Vertex AI's"),
        ({"server": "wandb", "what": "same_item", "operation": "ackRunQueueItem"}, "cannot have 'same_item'"),
        ({"server": "wandb", "what": "lease_ends", "operation": "RunStatuses"}, "cannot have 'lease_ends'"),
        ({"server": "wandb", "what": "stop_polling", "operation": "popFromRunQueue"}, "'stop_polling'"),
        ({"server": "wandb", "what": "null", "operation": "file_stream"}, "cannot have 'null'"),
        ({"server": "wandb", "what": "deleted", "operation": "upload"}, "cannot have 'deleted'"),
        ({"server": "wandb", "what": "false", "operation": "LaunchAgent"}, "cannot have 'false'"),
        ({"server": "wandb", "what": "run_spec", "run_spec": "{}", "size_bytes": 9}, "together with"),
        ({"server": "wandb", "what": "hang", "seconds": 1}, "seconds: 'hang' does not use it"),
        ({"server": "wandb", "what": "answer", "status": 500, "code": "ABORTED"}, "code: 'answer' does not"),
        ({"server": "wandb", "what": "hang", "times": True}, "times: Input should be a valid integer"),
        ({"server": "wandb", "what": "hang", "times": "3"}, "times: Input should be a valid integer"),
        ({"server": "vertex", "what": "state", "state": True}, "by its name or its number"),
        ({"server": "vertex", "what": "state", "state": []}, "by its name or its number"),
        ({"server": "wandb", "what": "answer", "status": 500, "message": "x" * 20_000}, "3000 bytes"),
        ({"server": "wandb", "what": "answer", "status": 500, "message": "é" * 501}, "3000 bytes"),
        ({"server": "wandb", "what": "answer", "status": 429, "retry_after_seconds": 10**19}, "less than or"),
        ({"server": "wandb", "what": "slow"}, "needs seconds"),
        ({"server": "wandb", "what": "hang", "operatoin": "x"}, "did you mean 'operation'"),
        ({"server": "gcs", "what": "hang"}, "server: there are: wandb, vertex"),
        ({"server": "wandb", "what": "hang", "times": 0}, "greater than or equal to 1"),
    ],
)  # fmt: skip
async def test_a_fault_that_could_never_happen_is_refused(scene: Scene, fault: dict[str, Any], said: str):
    with pytest.raises(ValidationError):
        Fault.model_validate(fault)
    answer = await scene.http.post(scene.sandbox.faults_url, json=fault)
    assert answer.status_code == 400
    assert said in " ".join(answer.json()["errors"])
    assert (await scene.http.get(scene.sandbox.faults_url)).json() == []


async def test_all_that_is_wrong_with_a_fault_is_said_at_once(scene: Scene):
    async def errors_of(**fault: Any) -> list[str]:
        return (await scene.http.post(scene.sandbox.faults_url, json=fault)).json()["errors"]

    assert await errors_of(tmes=1, opertion="x", state=1.5) == [
        "server: Field required",
        "what: Field required",
        "state: it is a job state by its name or its number",
        "tmes: there is no such field; did you mean 'times'?",
        "opertion: there is no such field; did you mean 'operation'?",
    ]
    found = await errors_of(server="vertex", what="slow", lists=1, operation="GetJob", code="X")
    assert [error.partition(":")[0] for error in found] == ["code", "lists", "what", "operation", "code"]


OPERATION: Final = re.compile(r"\b(?:query|mutation) (\w+)\s*[({]")


async def test_any_operation_of_any_client_can_have_a_fault():
    ours = set(OPERATION.findall(inspect.getsource(documents)))
    package = Path(str(find_spec("wandb").origin)).parent
    wandbs = {
        name for path in package.rglob("*.py") for name in OPERATION.findall(path.read_text(encoding="utf-8"))
    }
    assert len(ours) > 15
    assert len(wandbs) > 50
    for name in {*ours, *wandbs, "MyOwn", "Q"}:
        assert Fault(server="wandb", what=What.HANG, operation=name).operation == name

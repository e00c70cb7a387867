"""The run that a launch agent has of its own at W&B, for the files of the items that failed.

W&B's agent keeps a run under its own name, of a job type that the run tables leave out, saves what went
wrong with an item there, and names the file's path when it fails the item (sdk/launch/agent/agent.py and
run_queue_item_file_saver.py): the item's page then shows the file.
"""

from __future__ import annotations

import socket
from typing import Any, cast
from urllib.parse import quote

from prefect_vertex_launch.core.errors import Problem, Refused
from prefect_vertex_launch.wandb.documents import CREATE_RUN_FILES, UPSERT_RUN
from prefect_vertex_launch.wandb.graphql import WandbGraphql, at, objects_at, text_at
from prefect_vertex_launch.wandb.runs import RunPath

# The job type of W&B's own agents' runs: HIDDEN_AGENT_RUN_TYPE.
AGENT_JOB_TYPE = "sweep-controller"
MAX_FILE_BYTES = 1024 * 1024
_LEFT_OUT = "\n… {} bytes left out …\n"


def error_file(item_id: str) -> str:
    """Return the path at which W&B's agent keeps what went wrong with a run queue item."""
    return f"{item_id}/error/error.log"


async def open_agent_run(graphql: WandbGraphql, run: RunPath) -> None:
    """Create an agent's run, or start it again; doing so once more changes nothing."""
    variables = {
        "name": run.run_id,
        "entity": run.entity,
        "project": run.project,
        "jobType": AGENT_JOB_TYPE,
        "host": socket.gethostname(),
    }
    answer = at(await graphql.execute(UPSERT_RUN, variables), "upsertBucket", "bucket")
    if answer is None:
        raise Refused(Problem(f"run {run}", "W&B did not create the launch agent's run"))


async def upload_file(graphql: WandbGraphql, run: RunPath, path: str, text: str) -> None:
    """Save a text as a file of a run, replacing what was there; of more than 1 MiB the middle is left out.

    Raises NotFound when there is no such run.
    """
    variables = {"entity": run.entity, "project": run.project, "run": run.run_id, "files": [path]}
    answer = at(await graphql.execute(CREATE_RUN_FILES, variables), "createRunFiles") or {}
    files = objects_at(answer, "files")
    url = text_at(files[0], "uploadUrl") if files else None
    if url is None:
        raise Refused(Problem(f"run {run}", f"W&B gave no address to upload {path} to"))
    # Each one is a line of HTTP, `Name: value`.
    sent: Any = answer.get("uploadHeaders")
    lines = [str(line).partition(":") for line in cast("list[Any]", sent if isinstance(sent, list) else [])]
    headers = {name.strip(): value.strip() for name, _, value in lines}
    await graphql.upload(url, _bounded(text), headers=headers)


async def close_agent_run(graphql: WandbGraphql, run: RunPath) -> None:
    """End an agent's run as finished, as its process would when it exits."""
    path = "/".join(quote(part, safe="") for part in (run.entity, run.project, run.run_id))
    await graphql.post(f"/files/{path}/file_stream", {"complete": True, "exitcode": 0}, name="file_stream")


def _bounded(text: str) -> bytes:
    content = text.encode("utf-8", errors="replace")
    excess = len(content) - MAX_FILE_BYTES
    if excess <= 0:
        return content
    half = MAX_FILE_BYTES // 2
    # Cut where a character ends.
    start, end = (part.decode("utf-8", errors="ignore") for part in (content[:half], content[-half:]))
    return (start + _LEFT_OUT.format(excess) + end).encode()

"""What `vertex-launch migrate` writes to Prefect: blocks and limits, each only where it differs."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound

from prefect_vertex_launch.blocks.gcp_credentials import GcpCredentials
from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.blocks.wandb_credentials import WandbCredentials
from prefect_vertex_launch.cli.errors import NOT_READY, CommandError
from prefect_vertex_launch.coordination import prefect_api
from prefect_vertex_launch.coordination.prefect_api import block_names

POOL = "vertex-launch"


@dataclass(frozen=True, slots=True)
class QueuePlan:
    """One VertexLaunchQueue block: its name and the fields to set; what else it has stays."""

    block: str
    fields: dict[str, Any]
    macros: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is to be written. `limits` are sizes by name.

    `wandb_credentials` and `project` are what the two credentials blocks hold; a block that exists
    under the name and was named on the command line is used as it is, then they are None.
    """

    wandb_block: str
    wandb_credentials: WandbCredentials | None
    gcp_block: str
    project: str | None
    queues: tuple[QueuePlan, ...]
    limits: dict[str, int]
    log_level: str | None = None

    def lines(self) -> list[str]:
        """Return what is to be written, one line each, without secrets."""
        lines: list[str] = []
        if self.wandb_credentials is not None:
            url = self.wandb_credentials.base_url
            lines.append(f"WandbCredentials block {self.wandb_block}: base_url {url}, api_key")
        if self.project is not None:
            lines.append(f"GcpCredentials block {self.gcp_block}: application default credentials")
        for queue in self.queues:
            fields = {**queue.fields, **({"allowed_macros": list(queue.macros)} if queue.macros else {})}
            values = ", ".join(f"{name}={value!r}" for name, value in fields.items())
            lines.append(f"VertexLaunchQueue block {queue.block}: {values}")
        lines += [f"limit {name}: {size}" for name, size in self.limits.items()]
        return lines

    def commands(self) -> list[str]:
        """Return the shell commands that serve the queues: deployed, or by one agent here and now."""
        debug = [f"prefect config set PREFECT_LOGGING_LEVEL={self.log_level}"] if self.log_level else []
        macros = sorted({name for queue in self.queues for name in queue.macros})
        served = " ".join(f"--queue {queue.block}" for queue in self.queues)
        return [
            *debug,
            *([f"# set where the worker runs: {', '.join(macros)}"] if macros else []),
            f"prefect work-pool inspect {POOL} >/dev/null || prefect work-pool create {POOL} --type process",
            *(f"vertex-launch deploy --queue {queue.block} --pool {POOL}" for queue in self.queues),
            f"prefect worker start --pool {POOL}",
            f"# or without deployments: vertex-launch agent {served}",
        ]


def names_of_blocks(queues: Sequence[str]) -> dict[str, str]:
    """Return the name of each queue's block: Prefect takes lower-case letters, digits and dashes only.

    Two queues whose names come out the same get a piece of their hash behind it.
    """
    forms = {queue: block_form(queue) for queue in queues}
    counts = Counter(forms.values())
    return {
        queue: form if form and counts[form] == 1 else f"{form or 'queue'}-{_digest(queue)}"
        for queue, form in forms.items()
    }


def block_form(text: str) -> str:
    """Return a text as part of a block's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


async def write(plan: Plan, client: PrefectClient) -> list[str]:
    """Write what differs from what is there; return a line for each block and limit.

    Raises CommandError when there are no Google credentials or a block's field is not valid.
    """
    wandb_credentials, wandb_line = await _wandb_credentials(plan)
    gcp_credentials, gcp_line = await _gcp_credentials(plan)
    lines = [wandb_line, gcp_line]
    existing = await block_names(client)
    for queue in plan.queues:
        own = {"wandb_credentials": wandb_credentials, "gcp_credentials": gcp_credentials}
        lines.append(await _write_queue(queue, own, is_there=queue.block in existing))
    for name, size in plan.limits.items():
        lines.append(await _write_limit(client, name, size))
    return lines


async def load_block(kind: Any, name: str) -> Any:
    """Return a block that was named on the command line. Raises CommandError when there is none."""
    try:
        return await kind.aload(name)
    except ValueError as error:
        what = f"there is no {kind.get_block_type_slug()} block named {name!r}"
        hint = "create it in the Prefect UI, or leave the option out and one is made"
        raise CommandError(what, hint, code=NOT_READY) from error


async def _find_block(kind: Any, name: str) -> Any:
    try:
        return await kind.aload(name)
    except ValueError:
        return None


async def _wandb_credentials(plan: Plan) -> tuple[WandbCredentials, str]:
    where, wanted = f"WandbCredentials block {plan.wandb_block}", plan.wandb_credentials
    if wanted is None:
        return await load_block(WandbCredentials, plan.wandb_block), f"{where}: used as it is"
    found = await _find_block(WandbCredentials, plan.wandb_block)
    if found is not None and found.endpoint() == wanted.endpoint():
        return found, f"{where}: unchanged"
    await wanted.asave(plan.wandb_block, overwrite=True)
    return wanted, f"{where}: {'created' if found is None else 'changed'}"


async def _gcp_credentials(plan: Plan) -> tuple[GcpCredentials, str]:
    where = f"GcpCredentials block {plan.gcp_block}"
    if plan.project is None:
        return await load_block(GcpCredentials, plan.gcp_block), f"{where}: used as it is"
    found = await _find_block(GcpCredentials, plan.gcp_block)
    if found is not None:
        return found, f"{where}: unchanged"
    made = _default_credentials(plan.project)
    await made.asave(plan.gcp_block)
    return made, f"{where}: created"


def _default_credentials(project: str) -> GcpCredentials:
    from google.auth.exceptions import DefaultCredentialsError

    try:
        return GcpCredentials(project=project)
    except DefaultCredentialsError as error:
        raise CommandError(
            f"there are no application default credentials here: {error}",
            "run `gcloud auth application-default login`, or name a block with --gcp-credentials",
            code=NOT_READY,
        ) from error


async def _write_queue(queue: QueuePlan, credentials: dict[str, Any], *, is_there: bool) -> str:
    where = f"VertexLaunchQueue block {queue.block}"
    found = await prefect_api.load_block(queue.block) if is_there else None
    kept = (
        {name: getattr(found, name) for name in VertexLaunchQueue.model_fields} if found is not None else {}
    )
    wanted = {**queue.fields}
    if queue.macros:
        wanted["allowed_macros"] = sorted({*kept.get("allowed_macros", ()), *queue.macros})
    changed = [name for name, value in wanted.items() if name not in kept or kept[name] != value]
    changed += [name for name, block in credentials.items() if not _is_same_block(kept.get(name), block)]
    if not changed:
        return f"{where}: unchanged"
    try:
        block = VertexLaunchQueue(**{**kept, **wanted, **credentials})
    except ValueError as error:
        raise CommandError(
            f"{where}: {error}", "correct the file or the option that it comes from"
        ) from error
    await block.asave(queue.block, overwrite=True)
    return f"{where}: created" if found is None else f"{where}: changed {', '.join(changed)}"


def _is_same_block(one: Any, other: Any) -> bool:
    """Tell whether two loaded or saved blocks are one document at Prefect."""
    return one is not None and one._block_document_id == other._block_document_id  # noqa: SLF001 - Prefect has no public name for it


async def _write_limit(client: PrefectClient, name: str, size: int) -> str:
    try:
        was = (await client.read_global_concurrency_limit_by_name(name)).limit
    except ObjectNotFound:
        was = None
    if was == size:
        return f"limit {name}: unchanged"
    await client.upsert_global_concurrency_limit_by_name(name, size)
    return (
        f"limit {name}: created with {size}" if was is None else f"limit {name}: changed from {was} to {size}"
    )

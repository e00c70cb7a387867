"""`vertex-launch migrate`: from the configuration of W&B's launch agent to blocks, limits and deployments.

The file is read as W&B's agent reads it, its queues are looked at where they are, at W&B, and all that
speaks against the move is said at once. Without `--apply` nothing is written anywhere.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prefect_vertex_launch.blocks.gcp_credentials import GcpCredentials
from prefect_vertex_launch.blocks.wandb_credentials import WandbCredentials
from prefect_vertex_launch.cli.errors import FAILED, NOT_READY, USAGE, CommandError
from prefect_vertex_launch.cli.migrate import report
from prefect_vertex_launch.cli.migrate.agent_config import read_agent_config
from prefect_vertex_launch.cli.migrate.migration import UNLIMITED, Migration
from prefect_vertex_launch.cli.migrate.plan import (
    Plan,
    QueuePlan,
    block_form,
    load_block,
    names_of_blocks,
    write,
)
from prefect_vertex_launch.cli.migrate.queue_review import QueueReview, review_queue
from prefect_vertex_launch.coordination.prefect_api import open_prefect
from prefect_vertex_launch.core.errors import NotFound, Problem
from prefect_vertex_launch.core.identity import QueueIdentity, server_name
from prefect_vertex_launch.core.json_value import is_object
from prefect_vertex_launch.core.secrets import is_secret_name
from prefect_vertex_launch.wandb.queue import WandbEndpoint, WandbQueue


@dataclass(frozen=True, slots=True)
class MigrateOptions:
    """What the command line says. The two credentials are names of blocks that exist."""

    path: Path
    apply: bool = False
    project: str | None = None
    gcp_credentials: str | None = None
    wandb_credentials: str | None = None
    staging_bucket: str | None = None
    allow_macros: bool = False
    output: Path | None = None


async def migrate(options: MigrateOptions) -> None:
    """Say what becomes of the agent's configuration, and with `apply` write it.

    Raises CommandError when something prevents it, and LaunchError when W&B does not answer or does
    not accept the key; what is known until then has been printed.
    """
    migration = read_agent_config(read_yaml(options.path), os.environ)
    report.print_fields(options.path, migration)
    named = await _named_blocks(options)
    credentials = named.wandb or _credentials_here()
    entity = migration.entity or await _default_entity(credentials)
    reviews = {
        queue: await _review(credentials.endpoint(), entity, queue, options.staging_bucket)
        for queue in migration.queues
    }
    report.print_queues(entity, reviews, allow_macros=options.allow_macros)
    project, no_project = _project(options, named.gcp)
    problems = [
        *migration.problems,
        *(problem for review in reviews.values() for problem in review.problems),
        *no_project,
    ]
    if problems:
        report.print_problems(problems)
        raise CommandError(
            f"{len(problems)} findings prevent the move"
            if len(problems) > 1
            else "a finding prevents the move",
            "correct what is listed above and run the command again; nothing was written",
            code=FAILED,
        )
    assert project is not None
    plan = make_plan(migration, reviews, entity, project, options, credentials)
    if not options.apply:
        report.print_plan(plan)
        return
    async with open_prefect() as client:
        report.print_written(await write(plan, client))
    commands = plan.commands()
    if options.output is not None:
        options.output.write_text("\n".join(["#!/bin/sh", "set -e", *commands, ""]))
    report.print_commands(commands, options.output)


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds. Raises CommandError when it cannot be read; its text is not shown."""
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CommandError(
            f"there is no {path}", "name the agent's file: vertex-launch migrate PATH", code=USAGE
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise CommandError(f"{path} cannot be read: {reason}", "name a readable file", code=USAGE) from error
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or "it cannot be read"
        raise CommandError(
            f"{path}{where} is not YAML: {what}", "W&B's agent does not start with it either; correct it"
        ) from error


@dataclass(frozen=True, slots=True)
class _NamedBlocks:
    wandb: WandbCredentials | None
    gcp: GcpCredentials | None


async def _named_blocks(options: MigrateOptions) -> _NamedBlocks:
    if options.wandb_credentials is None and options.gcp_credentials is None:
        return _NamedBlocks(None, None)
    async with open_prefect():
        wandb = options.wandb_credentials
        gcp = options.gcp_credentials
        return _NamedBlocks(
            await load_block(WandbCredentials, wandb) if wandb else None,
            await load_block(GcpCredentials, gcp) if gcp else None,
        )


def _credentials_here() -> WandbCredentials:
    """Return the server and the key that wandb's own client would use here."""
    endpoint = WandbEndpoint.resolve()
    return WandbCredentials(api_key=endpoint.api_key, base_url=endpoint.base_url)


async def _default_entity(credentials: WandbCredentials) -> str:
    import wandb

    def read() -> str | None:
        return credentials.get_client().default_entity

    try:
        entity = await asyncio.to_thread(read)
    except (wandb.Error, ValueError) as error:
        raise CommandError(
            f"W&B does not say which entity the key's default one is: {error}",
            "write entity: into the file, or set WANDB_ENTITY",
            code=NOT_READY,
        ) from error
    if not entity:
        raise CommandError(
            "the API key has no default entity",
            "write entity: into the file, or set WANDB_ENTITY",
            code=NOT_READY,
        )
    return entity


async def _review(
    endpoint: WandbEndpoint, entity: str, queue: str, staging_bucket: str | None
) -> QueueReview:
    where = f"queue {entity}/{queue}"
    async with WandbQueue(endpoint, entity=entity, queue=queue) as wandb:
        try:
            found = await wandb.find_queue()
        except NotFound as error:
            return QueueReview(problems=error.problems)
    return review_queue(found.config, resource=found.resource, where=where, staging_bucket=staging_bucket)


def _project(options: MigrateOptions, gcp: GcpCredentials | None) -> tuple[str | None, list[Problem]]:
    project = options.project or (gcp.project if gcp else project_of_environment(os.environ))
    if project:
        return project, []
    return None, [
        Problem(
            "--project",
            "missing",
            "W&B's agent took the project of its Google credentials, and here nothing names one",
            "Add --project PROJECT; `gcloud config get-value project` prints the agent's.",
        )
    ]


def project_of_environment(environ: Mapping[str, str]) -> str | None:
    """Return the project of the application default credentials, as far as a variable or a file names it.

    The order is that of `google.auth.default`; no server is asked.
    """
    if named := environ.get("GOOGLE_CLOUD_PROJECT") or environ.get("GCLOUD_PROJECT"):
        return named
    config = Path(environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud")
    path = environ.get("GOOGLE_APPLICATION_CREDENTIALS") or config / "application_default_credentials.json"
    try:
        held: Any = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    project = held.get("project_id") if is_object(held) else None
    return project if isinstance(project, str) else None


def make_plan(
    migration: Migration,
    reviews: Mapping[str, QueueReview],
    entity: str,
    project: str,
    options: MigrateOptions,
    credentials: WandbCredentials,
) -> Plan:
    """Return what is to be written for a configuration without problems."""
    blocks = names_of_blocks(migration.queues)
    server = server_name(credentials.base_url)
    bucket = {"staging_bucket": options.staging_bucket} if options.staging_bucket else {}
    queues = tuple(
        QueuePlan(
            block=blocks[queue],
            fields={"queue": queue, "project": project, **migration.block_fields(server, entity), **bucket},
            macros=allowed_macros(review) if options.allow_macros else (),
        )
        for queue, review in reviews.items()
    )
    limits = [QueueIdentity(server, entity, queue).limit_name for queue in reviews]
    if migration.shares_its_limit:
        limits = [migration.limit_of_all(server, entity)]
    return Plan(
        wandb_block=options.wandb_credentials or f"wandb-{block_form(entity)}",
        wandb_credentials=None if options.wandb_credentials else credentials,
        gcp_block=options.gcp_credentials or f"gcp-{block_form(project)}",
        project=None if options.gcp_credentials else project,
        queues=queues,
        limits={} if migration.max_jobs == UNLIMITED else dict.fromkeys(limits, migration.max_jobs),
        log_level=migration.log_level,
    )


def allowed_macros(review: QueueReview) -> tuple[str, ...]:
    """Return the variables that a queue uses, without those that are likely to hold a secret."""
    return tuple(sorted({macro.name for macro in review.macros if not is_secret_name(macro.name)}))

"""A W&B Launch queue that runs on Vertex AI, as a Prefect block."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from prefect.blocks.core import Block
from pydantic import ConfigDict, model_validator

from prefect_vertex_launch.blocks.queue_fields import QueueFields
from prefect_vertex_launch.blocks.wandb_credentials import LOGO_URL
from prefect_vertex_launch.core.errors import InvalidQueueConfig, NotFound, Problem
from prefect_vertex_launch.core.identity import QueueIdentity, server_name
from prefect_vertex_launch.core.secrets import is_secret_name
from prefect_vertex_launch.jobspec.config.queue_config import QueueDefaults, parse_queue_config
from prefect_vertex_launch.jobspec.locks import Locks
from prefect_vertex_launch.vertex.jobs import VertexJobs
from prefect_vertex_launch.wandb.queue import WandbQueue

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

RESOURCE: Literal["gcp-vertex"] = "gcp-vertex"
WITH_PRIORITIES: Literal["V0"] = "V0"
DOCUMENTATION_URL = "https://docs.wandb.ai/guides/launch/setup-vertex"


def _may_come_with_the_run(problem: Problem) -> bool:
    required = {"block.spec.worker_pool_specs", "block.spec.staging_bucket"}
    return problem.what == "missing" and problem.where in required


class VertexLaunchQueue(QueueFields, Block):
    """A W&B Launch queue whose runs become Vertex AI custom jobs.

    Holds what the flows need to serve the queue: where it is, where its jobs go, the credentials for
    both, how many jobs may run at once, and the configuration for runs that bring none along.

    Attributes:
        entity: W&B entity (team or user) that owns the queue.
        queue: Name of the run queue.
        project: Google Cloud project of the jobs.
        location: Region of the jobs.

    Example:
        ```python
        from prefect_vertex_launch.blocks import VertexLaunchQueue

        vertex_launch_queue = VertexLaunchQueue.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str | None] = "Vertex Launch Queue"
    _block_type_slug: ClassVar[str | None] = "vertex-launch-queue"
    _logo_url: ClassVar[Any] = LOGO_URL
    _documentation_url: ClassVar[Any] = DOCUMENTATION_URL

    # An error of pydantic quotes what it was given, and that may hold keys.
    model_config = ConfigDict(validate_assignment=True, hide_input_in_errors=True)

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the JSON schema, as `Block` has it."""
        return json.loads(cls._schema_made_once(args, frozenset(kwargs.items())))

    @classmethod
    @cache
    def _schema_made_once(cls, args: tuple[Any, ...], kwargs: frozenset[tuple[str, Any]]) -> str:
        # Prefect asks for the schema again for each field of a block that it saves, 40 times and more, and
        # changes what it gets.
        return json.dumps(super().model_json_schema(*args, **dict(kwargs)))

    @model_validator(mode="after")
    def _config_is_valid(self) -> VertexLaunchQueue:
        """Check `spec` and `run` when they are saved and not only when a run needs them.

        They may be incomplete: a run may bring along what is missing.
        """
        try:
            parse_queue_config(None, defaults=self.defaults(), where="block")
        except InvalidQueueConfig as error:
            wrong = [problem for problem in error.problems if not _may_come_with_the_run(problem)]
            if wrong:
                raise ValueError(str(InvalidQueueConfig(wrong))) from error
        return self

    @property
    def identity(self) -> QueueIdentity:
        """Which queue it is, among those of every W&B server."""
        return QueueIdentity(server_name(self.wandb_credentials.base_url), self.entity, self.queue)

    @property
    def locations(self) -> list[str]:
        """The regions that this block itself sends jobs to: its own, and those of its fallbacks."""
        fallbacks = self.launch.get("fallbacks") or ()
        return list(
            dict.fromkeys([self.location, *(each["location"] for each in fallbacks if "location" in each)])
        )

    def defaults(self) -> QueueDefaults:
        """Return the configuration for what a run does not bring along."""
        return QueueDefaults(
            spec=self.spec, run=self.run, launch=self.launch, staging_bucket=self.staging_bucket
        )

    def scheduler_locks(self) -> Locks:
        """Return what the sweep schedulers of this queue are locked to.

        The block's image for them and the command that W&B gives them are allowed as well.
        """
        locks = self.locks()
        image = () if self.scheduler_image is None else (self.scheduler_image,)
        command = ("wandb scheduler *",)
        return replace(
            locks,
            images=None if locks.images is None else (*locks.images, *image),
            entry_points=None if locks.entry_points is None else (*locks.entry_points, *command),
            commands=None if locks.commands is None else (*locks.commands, *command),
        )

    def locks(self) -> Locks:
        """Return what the jobs of this queue are locked to."""
        return Locks.of(
            secure_mode=self.secure_mode,
            images=self.allowed_images or None,
            entry_points=self.allowed_entry_points or None,
            commands=self.allowed_commands or None,
            service_accounts=self.allowed_service_accounts or None,
            networks=self.allowed_networks or None,
            machine_types=self.allowed_machine_types or None,
        )

    def macros(self) -> dict[str, str | None]:
        """Return the allowed environment variables; None for those that are not set here."""
        return {name: os.environ.get(name) for name in self.allowed_macros}

    def secrets(self) -> set[str]:
        """Return what no text about the queue may hold: its keys, and the values of secret macros."""
        account: Any = self.gcp_credentials.service_account_info
        secrets = {self.wandb_credentials.api_key.get_secret_value()}
        secrets |= {value for name, value in self.macros().items() if value and is_secret_name(name)}
        if account is not None:
            secrets |= {str(account.get_secret_value().get("private_key") or "")}
        return secrets

    def open_wandb_queue(self, *, on_denied: Callable[[], None] | None = None) -> WandbQueue:
        """Return a client of the queue; nothing is sent before its first call.

        `on_denied` is called when W&B does not accept the key, or says no.
        """
        return WandbQueue(
            self.wandb_credentials.endpoint(),
            entity=self.entity,
            queue=self.queue,
            timeout_seconds=self.call_timeout_seconds,
            on_denied=on_denied,
        )

    def open_vertex_jobs(
        self,
        location: str | None = None,
        project: str | None = None,
        *,
        on_denied: Callable[[], None] | None = None,
    ) -> VertexJobs:
        """Return a client of the jobs in a region and project, the block's own where none is named.

        Nothing is sent before its first call; `on_denied` as above, of Google.
        """
        location = location or self.location
        return VertexJobs(
            project=project or self.project,
            location=location,
            credentials=self.google_credentials(),
            endpoint=self.endpoint and self.endpoint.replace("{location}", location),
            timeout_seconds=self.call_timeout_seconds,
            create_timeout_seconds=self.create_timeout_seconds,
            calls_per_minute=self.calls_per_minute,
            submissions_per_minute=self.submissions_per_minute,
            on_denied=on_denied,
        )

    def google_credentials(self) -> Credentials | None:
        """Return what the calls are signed with.

        Without TLS only a key that somebody names counts: Google's servers are not asked for credentials.
        """
        given = self.gcp_credentials
        named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        key = given.service_account_info or given.service_account_file or named
        is_plain = self.endpoint is not None and self.endpoint.startswith("grpc://")
        return None if is_plain and not key else given.get_credentials_from_service_account()

    async def aupsert_queue(self, *, prioritize: bool | None = None) -> None:
        """Create the queue at W&B, or set its configuration to this block's `spec` and `run`.

        `prioritize` turns priorities on or off; None leaves them as they are. Repeating it changes
        nothing. Raises InvalidQueueConfig when the block holds no usable configuration,
        AuthenticationFailed when W&B does not accept the key, and wandb's own errors.
        """
        config = parse_queue_config(
            {"spec": self.spec, "run": self.run}, defaults=self.defaults(), where=f"queue {self.queue}"
        )
        if prioritize is None:
            prioritize = await self._has_priorities()
        await asyncio.to_thread(self._upsert_queue, {"spec": config.spec, "run": config.run}, prioritize)

    def upsert_queue(self, *, prioritize: bool | None = None) -> None:
        """Create or update the queue at W&B, as `aupsert_queue` does, where no event loop runs."""
        asyncio.run(self.aupsert_queue(prioritize=prioritize))

    def _upsert_queue(self, config: dict[str, Any], prioritize: bool) -> None:
        self.wandb_credentials.get_client().upsert_run_queue(
            name=self.queue,
            resource_config=config,
            resource_type=RESOURCE,
            entity=self.entity,
            prioritization_mode=WITH_PRIORITIES if prioritize else None,
        )

    async def _has_priorities(self) -> bool:
        async with self.open_wandb_queue() as wandb:
            try:
                return (await wandb.find_queue()).prioritization_mode == WITH_PRIORITIES
            except NotFound:
                return False

    async def aread_queue_config(self) -> dict[str, Any]:
        """Return the queue's configuration as W&B has it. Raises NotFound for no such queue."""
        async with self.open_wandb_queue() as wandb:
            found = await wandb.find_queue()
        kept: Any = found.config
        arguments = kept.get("resource_args") if isinstance(kept, dict) else None
        return dict((arguments or {}).get(found.resource) or {})

    def read_queue_config(self) -> dict[str, Any]:
        """Return the queue's configuration as W&B has it. Raises NotFound for no such queue."""
        return asyncio.run(self.aread_queue_config())

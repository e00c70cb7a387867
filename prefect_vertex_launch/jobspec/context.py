"""What a launch knows besides its run spec and its queue's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import SecretStr

from prefect_vertex_launch.core.identity import QueueIdentity
from prefect_vertex_launch.jobspec.config.queue_config import QueueDefaults
from prefect_vertex_launch.jobspec.job_source import JobCode
from prefect_vertex_launch.jobspec.locks import Locks


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """The item, its queue, the run that was acknowledged, and where the job goes.

    Attributes:
        item_id: The run queue item.
        queue: Its queue.
        run_id: The W&B run's id, as it was acknowledged.
        image_uri: The image to run: the run spec's own, or the job's.
        base_url: W&B's API, as the container reaches it.
        api_key: The key the container logs in with.
        project: Google Cloud project of the queue's block.
        location: Region of the queue's block.
        attempt: 1, or more if the item is submitted again.
        macros: Further macros by name, which the block allows; None for one that has no value.
        job_entry_point: The entry point that the W&B job brings along.
        api_key_of_author: Whether `api_key` came with the item and so is its author's own.
        api_key_secret: The Secret Manager version that holds the key instead; None for the key itself.
        code: The code of the W&B job, which the container fetches.
        locks: What the block locks its jobs to.
        block_defaults: What the block itself says, which every lock accepts.
    """

    item_id: str
    queue: QueueIdentity
    run_id: str
    image_uri: str
    base_url: str
    api_key: SecretStr
    project: str
    location: str
    attempt: int = 1
    macros: Mapping[str, str | None] = field(default_factory=dict[str, str | None], repr=False)
    job_entry_point: tuple[str, ...] = ()
    api_key_of_author: bool = False
    api_key_secret: str | None = None
    code: JobCode | None = None
    locks: Locks | None = None
    block_defaults: QueueDefaults | None = None

    @property
    def parent(self) -> str:
        """The project and region that the job goes to, as Vertex AI names them together."""
        return f"projects/{self.project}/locations/{self.location}"

"""The flow that puts a run on a queue, for deployments that run in a clone of the repository."""

from prefect_vertex_launch.flows.enqueue import enqueue

__all__ = ["enqueue"]

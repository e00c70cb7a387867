"""The flow that serves queues, for deployments that run in a clone of the repository."""

from prefect_vertex_launch.flows.agent import agent

__all__ = ["agent"]

"""The flow that follows one run to its end, for deployments that run in a clone of the repository."""

from prefect_vertex_launch.flows.launch import launch

__all__ = ["launch"]

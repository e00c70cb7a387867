"""The Prefect blocks that a person fills in: the queue and its credentials.

Flows and commands load them. A block checks what was filled in and opens clients; it submits nothing.
Prefect imports this package by its entry point in `prefect.collections`: what it exports is registered.
"""

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.blocks.wandb_credentials import WandbCredentials

__all__ = ["VertexLaunchQueue", "WandbCredentials"]

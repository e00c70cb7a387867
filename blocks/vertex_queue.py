"""The block that describes a queue, for `prefect block register --file`."""

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue

__all__ = ["VertexLaunchQueue"]

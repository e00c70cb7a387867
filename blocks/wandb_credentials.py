"""The block that holds a W&B key, for `prefect block register --file`."""

from prefect_vertex_launch.blocks.wandb_credentials import WandbCredentials

__all__ = ["WandbCredentials"]

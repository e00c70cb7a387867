"""Runs a W&B Launch queue on Vertex AI with Prefect.

The layers, from top to bottom: `cli`, `flows`, `agent`, `launch`, `coordination`, `blocks`, then the adapters
`wandb` and `vertex`, then `jobspec` and `core`. Each package says in its docstring what lives there.
docs/architecture.md has the map.
"""

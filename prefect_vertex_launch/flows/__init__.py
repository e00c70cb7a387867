"""The flows that Prefect runs: `agent`, `launch` and `enqueue`.

The files in `flows/` at the top of the repository and the deployments name them. A flow opens what it needs
and calls the package below; no rule of launching lives here.
"""

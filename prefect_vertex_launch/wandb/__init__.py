"""The adapter to W&B: the protocol of its Launch queues, its runs, jobs, files, sweeps and agents.

Each verb is one call with a timeout and a bounded retry; errors become those of `core.errors`. It makes no
decisions about launches.
"""

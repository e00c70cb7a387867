"""W&B's backend of the sandbox: queues, items, runs, artifacts, sweeps and agents.

`app` serves it; the package `graphql` resolves the documents that W&B's clients send.
"""

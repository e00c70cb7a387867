"""The adapter to Vertex AI: the job service, the watcher of jobs and the budget of calls.

Each verb is one call with a timeout and a bounded retry; errors become those of `core.errors`. It makes no
decisions about launches.
"""

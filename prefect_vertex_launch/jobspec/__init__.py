"""From a run spec and a queue configuration to a CustomJob.

`launch` calls `render`; blocks and commands call the checks in `config`. It is pure: values come in, values
and problems go out, and it imports no Prefect and no client.
"""

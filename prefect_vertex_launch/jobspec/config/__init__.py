"""The configuration of a queue: read, checked and laid over the defaults of its block.

`render` builds the job from it; blocks and commands use it for their checks. Every problem is found at once
and carries its path.
"""

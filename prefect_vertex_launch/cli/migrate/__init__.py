"""`vertex-launch migrate`: from the configuration of W&B's own launch agent to blocks and limits of ours.

Reading and planning are pure; only `migrate` writes, and only with `--apply`.
"""

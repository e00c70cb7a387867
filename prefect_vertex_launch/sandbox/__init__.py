"""The sandbox: W&B's backend and the APIs of Google as local servers that the real clients talk to.

The command line, the demo and the tests start it. It knows nothing of flows, agents or blocks.
"""

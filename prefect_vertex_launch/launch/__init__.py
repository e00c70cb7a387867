"""One launch: one item of a run queue on its way from claim to report.

The flow `launch` calls the steps in their order. Nothing here knows of other queues, or of the agent that
started the launch.
"""

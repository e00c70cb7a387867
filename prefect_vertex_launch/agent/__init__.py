"""One agent: which queues it serves, in which order, what it adopts and what it hands over.

The flow `agent` and the command line start it. It starts launches and never looks into their steps.
"""

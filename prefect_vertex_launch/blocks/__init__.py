"""The Prefect blocks that a person fills in: the queue and its credentials.

Flows and commands load them. A block checks what was filled in and opens clients; it submits nothing.
"""

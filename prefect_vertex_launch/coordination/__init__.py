"""What agents keep in Prefect: heartbeats, launch records, slots and rates.

The packages `agent` and `launch` call it. Nothing here knows what an item is or what a job looks like.
"""

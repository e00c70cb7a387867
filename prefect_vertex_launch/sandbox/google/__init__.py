"""What the container of a job finds of Google Cloud: its identity and its secrets.

The paths and answers are those of the real services.
"""

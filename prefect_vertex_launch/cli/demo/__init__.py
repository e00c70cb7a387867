"""`vertex-launch demo`: eight runs from a W&B queue through Vertex AI and back, on local servers.

It uses what a user uses, and it ends everything that it starts.
"""

"""`vertex-launch status`: where every run of a queue is, and why.

It reads Prefect, W&B and Vertex AI, and writes nothing.
"""

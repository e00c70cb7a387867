"""Vertex AI's job service of the sandbox: one store of jobs behind REST and gRPC.

The replicas of a job are local processes. Refusals and states are those of the real service, as far as its
documents and clients say.
"""

"""The GraphQL face of the sandbox's W&B backend: its schema, and the fields that resolve it.

`execution` runs a document; each file of fields covers one part of the schema.
"""

"""The rules of launching W&B runs on Vertex AI, free of Prefect."""

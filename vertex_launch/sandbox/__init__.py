"""W&B's backend and Vertex AI's job service as local servers, for the demo and for tests."""

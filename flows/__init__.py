"""What Prefect runs: thin flows and tasks around the core, and the command line."""

"""What a person fills in, in the Prefect UI."""

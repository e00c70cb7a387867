"""What the product costs: measured from outside, on the sandbox and a Prefect server, as real processes."""

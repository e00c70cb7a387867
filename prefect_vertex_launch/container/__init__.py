"""The program that runs inside of a job's container, before the launch's own command."""

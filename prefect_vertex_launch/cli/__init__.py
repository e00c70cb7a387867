"""The command line, `vertex-launch`.

`main` has the commands; each larger one has a package or file of its own. Only the command line starts the
sandbox, and nothing imports the command line.
"""

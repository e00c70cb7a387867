"""Facts and rules that every other package uses: errors, states, labels, diagnosis, clock and retry.

Everybody may import it. It imports no Prefect, and it opens no connection.
"""

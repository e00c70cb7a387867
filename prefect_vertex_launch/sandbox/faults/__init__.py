"""What can be made to go wrong in the sandbox, and the switches for it.

The servers ask the registry at the wire, and again where an answer gets its meaning.
"""

"""The public Python API and the command line of chitchat-compress."""

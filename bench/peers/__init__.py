"""The tools that we are measured beside, a file each."""

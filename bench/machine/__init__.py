"""What the machine is, and what a process takes of it."""

"""What every stage needs of the machine: child processes, other interpreters, output folders, notices."""

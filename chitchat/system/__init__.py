"""Child processes, interpreters of other environments, output folders and notices."""

"""Distributed, interpreters, folders and messages: what every stage needs of the machine."""

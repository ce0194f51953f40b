"""The report of a bench run: rows and tables, the files it is written into, and what changed between two of them."""

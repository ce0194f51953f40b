"""Text files: unpacking, encodings, line ends, and cleaning of characters that are no text."""

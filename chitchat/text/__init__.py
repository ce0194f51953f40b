"""Text files: decompression, encodings, line ends, and cleaning."""

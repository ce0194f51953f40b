"""Text files as people bring them: packed or not, in any encoding, with any line ends, and what is no text in them."""

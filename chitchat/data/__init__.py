"""From conversations to a tokenised data set, in streams: corpora, the split, Arrow files, windows of whole turns."""

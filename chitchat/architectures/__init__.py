"""The architectures that can be compressed: one file each, behind one interface."""

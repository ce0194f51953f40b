"""What a shape costs on this machine: bundles of random weights, timed."""

"""What compression reads of calibration conversations: batches, second moments, ranges, least squares."""

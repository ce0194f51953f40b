"""The edge runtime, free of torch: bundle reader, engine, sampler, text, terminal chat and HTTP server."""

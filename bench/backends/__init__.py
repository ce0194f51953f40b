"""The runtimes that are measured, one module each; `bench.runtimes` knows which kind of model is whose."""

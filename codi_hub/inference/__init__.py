"""Few-step inference: the engine, batching, tiling."""

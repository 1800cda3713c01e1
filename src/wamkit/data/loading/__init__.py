"""From stores to batches: windows, mixtures, augmentation and the caches behind them."""

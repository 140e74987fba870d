"""Turn files into batches: records, decoder and cache, audit, splits, augmentation, loaders."""

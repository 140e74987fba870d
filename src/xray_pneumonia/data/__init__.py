"""Files -> batches: records, the decoder and its cache, the audit, splits, augmentation."""

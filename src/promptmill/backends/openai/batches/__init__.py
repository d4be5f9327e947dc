"""The Batch APIs of providers: one class for each family of formats, behind `backends.batches.BatchApi`."""

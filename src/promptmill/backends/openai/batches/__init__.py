"""The Batch APIs of providers: one class per family of wire formats, behind `wire.BatchApi`."""

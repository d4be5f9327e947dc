"""The interfaces that other programs expect: UltraRAG's generation server, DataStudio's classes."""

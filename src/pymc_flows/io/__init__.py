"""Files on disk: one format, written whole or not at all, and known to be undamaged when read."""

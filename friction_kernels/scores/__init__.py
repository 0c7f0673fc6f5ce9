"""Score matrices of queries and keys, computed tile by tile without being stored, and their backends."""

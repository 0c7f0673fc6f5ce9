"""Score matrices of queries and keys that need never be stored: passes over them, and their backends."""

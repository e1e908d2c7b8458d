"""What a lift says of itself, beside its own files, found through the pointer that names it."""

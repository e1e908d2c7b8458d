"""Names in headers that lead nowhere after a move: found again, written anew, all or nothing, with a way back."""

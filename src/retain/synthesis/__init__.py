"""The model writes its own rehearsal data (SSR; MATH 4, 5)."""

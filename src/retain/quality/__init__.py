"""Which synthetic samples are kept, and why the others are not (SSR 2, 3, 7.2, 9; MATH 5)."""

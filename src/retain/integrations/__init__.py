"""Where retain meets other software. Each module imports its package only when it is used."""

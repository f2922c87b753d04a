"""Our training against what a user would pick instead, and against the machine's own limit."""

"""The two kinds of stack."""

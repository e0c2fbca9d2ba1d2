"""The end of a stack: its sandboxes first, then what held them."""

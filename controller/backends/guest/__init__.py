"""What runs in a pod or container beside the command, and what it writes down."""

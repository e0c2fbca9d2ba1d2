"""A Kubernetes API server that tests start in their own process: its store, its controllers and its faults."""

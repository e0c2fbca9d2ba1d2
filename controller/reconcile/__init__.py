"""The controller's loop: claims rows, takes each sandbox from step to step, and compares the table with the engine."""

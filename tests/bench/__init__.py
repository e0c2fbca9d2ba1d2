"""The figures: each a ratio to a floor measured in the same run, where it can be. `make bench` prints them."""

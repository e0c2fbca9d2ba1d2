"""The environment as code: one Pulumi program for every stack."""

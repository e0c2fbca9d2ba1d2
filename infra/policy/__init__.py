"""What may not be deployed, whatever the configuration."""

"""`parameter.yaml`: its typed settings, and how they are found, read and overridden."""

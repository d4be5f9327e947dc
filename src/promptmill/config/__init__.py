"""`parameter.yaml`: its typed settings, and how it is found, read and overridden."""

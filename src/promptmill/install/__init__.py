"""Install promptmill into clients' configuration files, and uninstall it."""

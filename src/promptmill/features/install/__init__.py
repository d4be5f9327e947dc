"""Adds promptmill to the configuration files of clients and to checkouts of UltraRAG, and removes it again."""

from promptmill.core.feature import Command, Feature

FEATURE = Feature(
    client_command="install",
    words="adds promptmill to the configuration of MCP clients",
    commands=(
        Command(
            "install", "add promptmill to a client's configuration", "promptmill.features.install.command:add_options"
        ),
    ),
)

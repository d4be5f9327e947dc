"""File → file jobs that survive pulling the plug. One job is one folder on disk; `folder` says what lies in it."""

"""Jobs from file to file that survive a power loss. A job is one folder on disk, whose files `store.folder` lists."""

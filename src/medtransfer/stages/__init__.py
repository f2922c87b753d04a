"""One short function a DVC stage: reads files, calls the module that does the work, writes files."""
